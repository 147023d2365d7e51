"""Meshes of any format as images and records."""

import dataclasses
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest
import trimesh
from array_record.python import array_record_module
from PIL import Image
from scipy import spatial

from e3d_jax import cameras, images, views_io
from e3d_jax.data import assets, photographs, records
from e3d_jax.data.assets import jobs, reading, textures
from e3d_jax.stages import anchor_data
from tests import tiny


def textured_box(extents=(0.2, 0.4, 0.8)) -> trimesh.Trimesh:
    """Upper half of the texture red, lower half blue; mapped by height, so that the top (world z) is red."""
    box = trimesh.creation.box(extents=extents)
    height = (box.vertices[:, 2] > 0) * 0.8 + 0.1
    image = Image.fromarray(np.uint8([[[255, 0, 0]], [[0, 0, 255]]]).repeat(8, 0).repeat(8, 1))
    box.visual = trimesh.visual.TextureVisuals(uv=np.stack([height * 0 + 0.5, height], -1), image=image)
    return box


def front(asset, size=32):
    return assets.render(asset, cameras.ring(size)[:1], np.arange(1))


def test_asset_is_centered_and_normalized(tmp_path):
    textured_box().apply_translation([3, 4, 5]).export(tmp_path / "box.obj")
    vertices = reading.read_asset(tmp_path / "box.obj").vertices
    np.testing.assert_allclose(vertices.max(0), -vertices.min(0))
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(0.5)


def test_gltf_axes_become_world_axes(tmp_path):
    trimesh.creation.box(extents=(0.2, 0.4, 0.8)).export(tmp_path / "box.glb")
    asset = reading.read_asset(tmp_path / "box.glb")
    np.testing.assert_allclose(np.argsort(np.ptp(asset.vertices, axis=0)), [1, 2, 0])  # glTF z is world x


def test_text_of_any_encoding_names_an_stl_file(tmp_path):
    text = trimesh.creation.box().export(file_type="stl_ascii")
    (tmp_path / "box.stl").write_bytes(b"solid M\xf6bel" + text.encode().removeprefix(b"solid"))
    assert len(reading.read_asset(tmp_path / "box.stl").faces) == 12


def test_y_up_files_are_rotated(tmp_path):
    trimesh.creation.box(extents=(0.2, 0.4, 0.8)).export(tmp_path / "box.stl")
    assert np.ptp(reading.read_asset(tmp_path / "box.stl").vertices, axis=0).argmax() == 2
    assert np.ptp(reading.read_asset(tmp_path / "box.stl", y_up=True).vertices, axis=0).argmax() == 0


@pytest.mark.parametrize("suffix", [".obj", ".glb"])
def test_textures_are_drawn(tmp_path, suffix):
    (tmp_path / "box").mkdir()
    textured_box().export(tmp_path / "box" / f"box{suffix}")
    asset = reading.read_asset(tmp_path / "box" / f"box{suffix}", y_up=False)
    if suffix == ".glb":  # written as it stands, so its z, up above, points to the front
        rgba = assets.render(asset, cameras.ring(32)[[0, 16]], np.arange(0)).views.rgba[:, 16, 16]
        assert rgba[0, 0] > 0.4 > rgba[0, 2] and rgba[1, 2] > 0.4 > rgba[1, 0]
    else:
        rgba = front(asset).views.rgba[0]
        assert rgba[8, 16, 0] > 0.5 > rgba[8, 16, 2] and rgba[23, 16, 2] > 0.5 > rgba[23, 16, 0]


def test_vertex_colors_and_parts_with_transforms(tmp_path):
    scene = trimesh.Scene()
    for side, color in ((-1, [0, 255, 0, 255]), (1, [255, 0, 0, 255])):
        ball = trimesh.creation.icosphere(2, 0.2)
        ball.visual.vertex_colors = np.tile(np.uint8(color), (len(ball.vertices), 1))
        scene.add_geometry(ball, transform=trimesh.transformations.translation_matrix([side, 0, 0]))
    scene.export(tmp_path / "balls.glb")
    rgba = front(reading.read_asset(tmp_path / "balls.glb")).views.rgba[0]  # glTF x is world y, right
    assert rgba[16, 3, 1] > 0.4 > rgba[16, 3, 0] and rgba[16, 28, 0] > 0.4 > rgba[16, 28, 1]


def test_base_color_factor_is_linear(tmp_path):
    ball = trimesh.creation.icosphere(2)
    ball.visual = trimesh.visual.TextureVisuals(
        uv=np.zeros((len(ball.vertices), 2)),
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[55, 255, 0, 255]),
    )
    ball.export(tmp_path / "ball.glb")
    colors = reading.read_asset(tmp_path / "ball.glb").corner_colors
    np.testing.assert_allclose(colors[0, 0], [0.502, 1, 0], atol=2e-3)


def test_normals_are_smooth_except_across_creases():
    box, ball = trimesh.creation.box(), trimesh.creation.icosphere(3)
    of_box = reading.crease_normals(box.vertices, box.faces)
    np.testing.assert_allclose(of_box, np.repeat(box.face_normals[:, None], 3, 1), atol=1e-6)
    np.testing.assert_allclose(reading.crease_normals(ball.vertices, ball.faces), ball.triangles, atol=0.02)


def test_images_normals_and_depths_of_a_box(tmp_path):
    box = trimesh.creation.box(extents=(0.2, 0.4, 0.8))
    box.export(tmp_path / "box.ply")
    drawn = front(reading.read_asset(tmp_path / "box.ply"))
    scale = 1 / np.linalg.norm([0.2, 0.4, 0.8])
    assert drawn.depths[0, 16, 16] == pytest.approx(1.5 - 0.1 * scale, abs=1e-4)
    assert drawn.depths[0, 0, 0] == 0
    np.testing.assert_allclose(drawn.views.normals[0, 16, 16], [1, 0, 0], atol=1e-5)
    light = 0.55 + 0.45 * (0.5 + 0.5 * 0.4 / np.linalg.norm([0.4, 0.3, 0.85]))
    np.testing.assert_allclose(drawn.views.rgba[0, 16, 16], [*3 * [0.8 * light], 1], atol=0.01)


def test_the_back_of_a_sheet_shows_its_normal_to_the_viewer(tmp_path):
    sheet = trimesh.Trimesh([[0, -1, -1], [0, 1, -1], [0, 0, 1]], [[0, 2, 1]])
    sheet.export(tmp_path / "sheet.ply")
    normals = front(reading.read_asset(tmp_path / "sheet.ply")).views.normals
    np.testing.assert_allclose(normals[0, 16, 16], [1, 0, 0], atol=1e-5)


def broken(path, kind):
    if kind == "bytes":
        path.write_bytes(b"glTF" + bytes(100))
    elif kind == "points":
        trimesh.PointCloud(np.random.default_rng(0).random((9, 3))).export(path)
    elif kind == "flat faces":
        trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False).export(path)
    else:
        trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], process=False).export(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("bytes", "damaged"), ("points", "no triangles"), ("flat faces", "no triangles"), ("nan", "no triangles")],
)
def test_files_without_a_surface_are_refused(tmp_path, kind, message):
    path = tmp_path / ("mesh.glb" if kind == "bytes" else "mesh.ply")
    broken(path, kind)
    with pytest.raises(ValueError, match=message) as error:
        reading.read_asset(path)
    assert str(path) in str(error.value)


def test_huge_textures_are_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(textures, "MAX_SIZE", 8)
    textured_box().export(tmp_path / "box.obj")
    assert reading.read_asset(tmp_path / "box.obj").materials[0].texture.pixels.shape == (8, 4, 3)


def test_degenerate_faces_are_dropped(tmp_path):
    box = trimesh.creation.box()
    vertices = np.concatenate([box.vertices, [[np.nan] * 3, [0, 0, 0.1]]])
    faces = np.concatenate([box.faces, [[0, 0, 1], [0, 1, 8]]])
    trimesh.Trimesh(vertices, faces, process=False).export(tmp_path / "box.ply")
    asset = reading.read_asset(tmp_path / "box.ply")
    assert len(asset.faces) == 12 and np.isfinite(asset.corner_normals).all()


@pytest.fixture(scope="module")
def mesh_folder(tmp_path_factory):
    """A ball, a box in a subfolder, and a file that is not a mesh."""
    folder = tmp_path_factory.mktemp("meshes")
    (folder / "deep").mkdir()
    trimesh.creation.icosphere(1).export(folder / "ball.ply")
    textured_box().export(folder / "deep" / "box.glb")
    (folder / "broken.glb").write_bytes(b"nothing")
    return folder


def settings_of(size=16, num_views=8, normals=True, **more) -> assets.RenderSettings:
    """Settings of a ring with eight anchors."""
    layout = cameras.ViewLayout(num_views=num_views)
    return assets.RenderSettings(records.Rig.of_layout(layout, size, normals=normals), **more)


def write_records(meshes, out, settings, **more):
    return assets.write_records(meshes, out, settings, workers=0, **more)


def write_folders(meshes, out, settings):
    return assets.write_folders(meshes, out, settings, workers=0)


def test_folders_of_views(mesh_folder, tmp_path, capsys):
    assert write_folders(mesh_folder, tmp_path, settings_of()) == (2, 0, 1, 0)
    assert "broken.glb is damaged" in capsys.readouterr().err
    views = views_io.read_views(tmp_path / "deep" / "box")
    assert views.rgba.shape == (8, 16, 16, 4) and len(views.normal_views) == 8
    transforms = json.loads((tmp_path / "ball" / "transforms.json").read_text())
    depth = np.asarray(Image.open(tmp_path / "ball" / transforms["frames"][3]["depth_path"]))
    assert depth[8, 8] * transforms["integer_depth_scale"] == pytest.approx(1.0, abs=0.03)
    assert write_folders(mesh_folder, tmp_path, settings_of()) == (0, 2, 1, 0)


def test_records_resume_and_feed_training(mesh_folder, tmp_path):
    settings = settings_of(num_views=32)
    meshes = tmp_path / "meshes"
    shutil.copytree(mesh_folder / "deep", meshes)
    assert write_records(meshes, tmp_path, settings) == (1, 0, 0, 0)
    trimesh.creation.icosphere(1).export(meshes / "ball.ply")
    assert write_records(meshes, tmp_path, settings) == (1, 1, 0, 0)
    shards = records.find_shards(tmp_path)
    assert len(shards) == 2
    record = records.unpack(array_record_module.ArrayRecordReader(shards[0]).read_all()[0])
    assert record.id == "box" and record.provenance["file"] == "box.glb"
    example = anchor_data.Images().example(record, np.random.default_rng(0), tiny.config())
    assert example.targets.shape == (2, 8, 16, 16, 4)


def test_further_poses_are_random_rotations(tmp_path):
    (tmp_path / "meshes").mkdir()
    textured_box().export(tmp_path / "meshes" / "box.glb")
    out = tmp_path / "meshes" / "out"
    assert write_folders(tmp_path / "meshes", out, settings_of(poses=1)) == (1, 0, 0, 0)
    assert write_folders(tmp_path / "meshes", out, settings_of(poses=3)) == (2, 1, 0, 0)
    views = [views_io.read_views(out / f"box{pose}").rgba for pose in ("", "@1", "@2")]
    asset = reading.read_asset(tmp_path / "meshes" / "box.glb")
    as_in_the_file = assets.render(asset, cameras.ring(16, 8), np.arange(0)).views.rgba
    np.testing.assert_allclose(views[0][..., 3], as_in_the_file[..., 3], atol=1 / 255)
    assert min(np.abs(a - b).mean() for a, b in itertools.combinations(views, 2)) > 0.05


@pytest.fixture
def rendered(tmp_path):
    """A folder of views of a box, as another renderer may write them: a normal map for every view."""
    textured_box().export(tmp_path / "box.glb")
    ring = cameras.ring(16, 8)
    drawn = assets.render(reading.read_asset(tmp_path / "box.glb"), ring, np.arange(8))
    views_io.write_views(tmp_path / "renders" / "box", drawn.views)
    return tmp_path / "renders"


def test_renders_become_the_record_of_their_mesh(rendered, tmp_path):
    settings = settings_of(poses=3)
    found = []
    for folder in (rendered, tmp_path):  # The second has the mesh as well.
        write_records(folder, tmp_path / folder.name / "out", settings)
        for shard in records.find_shards(tmp_path / folder.name / "out"):
            found += [records.unpack(data) for data in array_record_module.ArrayRecordReader(shard).read_all()]
    by_name = {record.id: record for record in found}
    assert sorted(by_name) == ["box", "box@1", "box@2", "renders/box"]
    for index in range(8):
        np.testing.assert_allclose(by_name["renders/box"].image(index), by_name["box"].image(index), atol=1)
        there, here = (by_name[name].image(index, "normal") for name in ("renders/box", "box"))
        np.testing.assert_allclose(there, here, atol=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 32}, "holds 8 views of 16 px; expected 8 of 32 px"),
        ({"num_views": 32}, "holds 8 views of 16 px; expected 32 of 16 px"),
    ],
)
def test_renders_of_another_size_or_number_are_skipped(rendered, tmp_path, capsys, changes, message):
    assert write_records(rendered, tmp_path / "out", settings_of(**changes)) == (0, 0, 1, 0)
    assert message in capsys.readouterr().err


def test_a_dataset_without_any_readable_mesh_has_no_shard(rendered, tmp_path):
    write_records(rendered, tmp_path / "out", settings_of(size=32))
    assert not list((tmp_path / "out").glob("*.array_record*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(fl_x=20.0, fl_y=20.0), "focal of view 0 differs from the expected camera"),
        (lambda t: t["frames"].reverse(), "world_from_cam of view 0 differs from the expected camera"),
        (lambda t: t["frames"][3].pop("normal_path"), "has no normal map of view 3"),
    ],
)
def test_renders_of_other_cameras_are_skipped(rendered, tmp_path, capsys, change, message):
    path = rendered / "box" / "transforms.json"
    transforms = json.loads(path.read_text())
    change(transforms)
    path.write_text(json.dumps(transforms))
    assert write_records(rendered, tmp_path / "out", settings_of()) == (0, 0, 1, 0)
    assert message in capsys.readouterr().err


def test_shards_of_a_job_make_all_meshes_once(tmp_path):
    (tmp_path / "meshes").mkdir()
    for name in "abc":
        trimesh.creation.icosphere(1).export(tmp_path / "meshes" / f"{name}.ply")
    settings = settings_of(normals=False)
    done = [write_records(tmp_path / "meshes", tmp_path, settings, shard=(index, 2)) for index in (0, 1)]
    assert done == [(2, 0, 0, 0), (1, 0, 0, 0)]
    assert jobs.recorded(tmp_path) == set("abc")
    # Both may run at once: neither uses a name of the other's.
    shards = [pathlib.Path(shard).name for shard in records.find_shards(tmp_path)]
    assert shards == ["assets-0000-000000.array_record", "assets-0001-000000.array_record"]


def test_a_rotated_mesh_is_normalized_and_a_rotation_of_the_file(tmp_path):
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.ply")
    quarter = spatial.transform.Rotation.from_euler("x", 90, degrees=True)
    vertices = reading.read_asset(tmp_path / "box.ply", rotation=quarter).vertices
    np.testing.assert_allclose(np.ptp(vertices, axis=0), np.array([1, 3, 2]) / np.sqrt(14), atol=1e-6)


def test_names_of_files_that_share_a_stem(tmp_path):
    for name in ("a.ply", "a.stl", "b.ply", "notes.txt"):
        (tmp_path / name).touch()
    assert set(assets.find_assets(tmp_path)) == {"a.ply", "a.stl", "b"}


def test_folder_without_meshes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no meshes"):
        assets.find_assets(tmp_path)


# -- Input images from cameras of their own ---------------------------------------------------------------------------

INPUTS = cameras.InputCameras(count=3, effects=0.0)


def record_of(folder):
    (shard,) = records.find_shards(folder)
    return records.unpack(array_record_module.ArrayRecordReader(shard).read_all()[0])


@pytest.fixture(scope="module")
def box_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("box")
    textured_box().export(folder / "box.glb")
    return folder


@pytest.fixture(scope="module")
def with_inputs(box_folder, tmp_path_factory):
    """The record of a box with three input images."""
    out = tmp_path_factory.mktemp("records")
    write_records(box_folder, out, settings_of(size=32, inputs=INPUTS))
    return record_of(out)


def test_input_images_are_drawn_after_the_views(with_inputs):
    assert list(with_inputs.inputs) == [8, 9, 10] and all(map(with_inputs.is_framed, with_inputs.inputs))
    assert with_inputs.views_with("normal") == list(range(11))
    assert cameras.azimuth_of(np.asarray(with_inputs.cameras.world_from_cam))[8] == pytest.approx(0, abs=1e-5)


def test_input_images_are_framed_as_a_users_image(with_inputs):
    for view in with_inputs.inputs:
        found = images.object_box(with_inputs.image(view)[..., 3] / np.float32(255))
        np.testing.assert_allclose(found, (0, 0, 32), atol=3)


def test_the_camera_of_an_input_image_is_that_of_its_crop(with_inputs, box_folder):
    surface = reading.read_asset(box_folder / "box.glb")
    for view in with_inputs.inputs:
        drawn = assets.render(surface, with_inputs.cameras[[view]], np.arange(1)).views
        np.testing.assert_allclose(drawn.rgba[0] * 255, with_inputs.image(view), atol=1)


def test_a_mesh_has_the_same_input_images_whatever_else_is_drawn(with_inputs, box_folder, tmp_path):
    shutil.copytree(box_folder, tmp_path / "meshes")
    trimesh.creation.icosphere(1).export(tmp_path / "meshes" / "a.ply")
    write_records(tmp_path / "meshes", tmp_path / "out", settings_of(size=32, inputs=INPUTS))
    (shard,) = records.find_shards(tmp_path / "out")
    again = next(
        r for r in map(records.unpack, array_record_module.ArrayRecordReader(shard).read_all()) if r.id == "box"
    )
    for view in with_inputs.inputs:
        np.testing.assert_array_equal(again.image(view), with_inputs.image(view))


def test_input_images_are_lit_and_exposed_otherwise_than_views(with_inputs, box_folder, tmp_path):
    write_records(box_folder, tmp_path, settings_of(size=32, inputs=dataclasses.replace(INPUTS, effects=1.0)))
    changed = record_of(tmp_path)
    for view in changed.inputs:
        assert np.abs(changed.image(view).astype(int) - with_inputs.image(view)).mean() > 1
    np.testing.assert_array_equal(changed.image(3), with_inputs.image(3))


@pytest.fixture
def folder_with_inputs(box_folder, tmp_path):
    """A folder of views with a folder of larger input images, as other renderers may write them."""
    out = tmp_path / "renders"
    write_folders(box_folder, out, settings_of(size=32))
    shots = photographs.plan(INPUTS, "box", 80)
    drawn = assets.render(reading.read_asset(box_folder / "box.glb"), shots.cameras, np.arange(3))
    views_io.write_views(out / "box" / "inputs", drawn.views)
    return out


def test_input_images_of_any_size_are_read_from_folders(folder_with_inputs, with_inputs, tmp_path):
    assert write_records(folder_with_inputs, tmp_path / "out", settings_of(size=32, inputs=INPUTS)) == (1, 0, 0, 0)
    found = record_of(tmp_path / "out")
    assert list(found.inputs) == [8, 9, 10]
    for view in found.inputs:
        pose = [record.cameras.world_from_cam[view] for record in (found, with_inputs)]
        np.testing.assert_allclose(*pose, atol=1e-5)
        np.testing.assert_allclose(*(record.cameras.focal[view] for record in (found, with_inputs)), rtol=0.05)
        for name in ("color", "normal"):
            one, other = (record.image(view, name).astype(int) for record in (found, with_inputs))
            inside = (one[..., 3] == 255) & (other[..., 3] == 255)
            assert inside.mean() > 0.1 and np.median(np.abs(one - other)[inside]) <= 2


def test_folders_of_views_have_their_input_images_in_a_folder(box_folder, tmp_path):
    write_folders(box_folder, tmp_path, settings_of(inputs=INPUTS))
    assert len(views_io.read_views(tmp_path / "box" / "inputs").cameras) == 3
    assert set(assets.find_assets(tmp_path, rendered=True)) == {"box"}


def test_a_folder_without_input_images_is_skipped(rendered, tmp_path, capsys):
    assert write_records(rendered, tmp_path / "out", settings_of(inputs=INPUTS)) == (0, 0, 1, 0)
    assert "has no input images; put them into" in capsys.readouterr().err


def test_a_first_input_image_from_the_side_is_skipped(folder_with_inputs, tmp_path, capsys):
    path = folder_with_inputs / "box" / "inputs" / "transforms.json"
    transforms = json.loads(path.read_text())
    transforms["frames"].reverse()
    path.write_text(json.dumps(transforms))
    assert write_records(folder_with_inputs, tmp_path / "out", settings_of(size=32, inputs=INPUTS)) == (0, 0, 1, 0)
    assert "degrees of azimuth from view 0; first put one that is in its direction" in capsys.readouterr().err
