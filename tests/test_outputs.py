"""The folder of a result."""

import dataclasses
import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from e3d_jax import cameras, outputs, reports, structs, system, views_io
from e3d_jax.mesh import export, preview
from e3d_jax.reconstruction import registration
from tests import tiny

SIZE = 16
CONFIG = tiny.system()
FILES = {"input.png", "input_normal.png", "mesh.glb", "contact_sheet.png", "turntable.gif", "report.json"}
VIEWS = {f"views/rgb_{view:02d}.png" for view in range(32)} | {
    f"views/normal_{view:02d}.png" for view in range(0, 32, 4)
}
STAGES = ("input", "anchors", "interpolation", "reconstruction")


def small_result() -> system.Result:
    """A green ball, as views that merely have the right shapes."""
    ball = trimesh.creation.icosphere(2, 0.4)
    rgba = np.zeros((32, SIZE, SIZE, 4), np.float32)
    rgba[:, 4:12, 4:12] = [0, 0.8, 0, 1]
    normals = np.zeros((8, SIZE, SIZE, 3), np.float32)
    normals[:, 4:12, 4:12, 0] = 1
    return system.Result(
        inputs=(system.Input(rgba[0], rgba[0]),),
        views=structs.ViewSet(rgba, cameras.ring(SIZE), cameras.RELEASED.anchors, normals, cameras.RELEASED.anchors),
        mesh=structs.Mesh(
            ball.vertices.astype(np.float32),
            ball.faces.astype(np.int32),
            np.tile(np.float32([0, 0.8, 0]), (len(ball.vertices), 1)),
        ),
        seconds=dict.fromkeys(STAGES, 0.1),
        peak_memory=dict.fromkeys(STAGES, 1.0),
    )


def write(folder):
    outputs.write_result(folder, small_result(), seed=7, config=CONFIG)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def short_turntable(monkeypatch):
    monkeypatch.setattr(preview, "TURNTABLE_FRAMES", 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "ball"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "TURNTABLE_FRAMES", 3)
        write(folder)
    return folder


def test_all_files(written):
    assert files(written) == FILES | VIEWS | {"views/transforms.json"}
    assert [path.name for path in written.parent.iterdir()] == ["ball"], "nothing temporary stays"


def test_views_read_back(written):
    views = views_io.read_views(written / "views")
    np.testing.assert_allclose(views.cameras.world_from_cam, cameras.ring(SIZE).world_from_cam, atol=1e-6)
    np.testing.assert_array_equal(views.anchors, cameras.RELEASED.anchors)
    np.testing.assert_allclose(views.rgba, small_result().views.rgba, atol=1 / 255)


def test_transforms_are_opengl_poses(written):
    frame = json.loads((written / "views/transforms.json").read_text())["frames"][0]
    pose = np.array(frame["transform_matrix"])
    np.testing.assert_allclose(pose[:3, 2], pose[:3, 3] / np.linalg.norm(pose[:3, 3]), atol=1e-5)  # +z looks back


def test_mesh_reads_back(written):
    mesh = export.read_mesh(written / "mesh.glb")
    np.testing.assert_allclose(mesh.colors[0], [0, 0.8, 0], atol=1 / 255)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).volume > 0.2, "faces are outward"


def test_turntable_is_an_endless_animation(written):
    with Image.open(written / "turntable.gif") as animation:
        assert animation.n_frames == 3 and animation.info["loop"] == 0


def test_contact_sheet_has_six_rows_of_eight(written):
    with Image.open(written / "contact_sheet.png") as sheet:
        assert sheet.size == (8 * SIZE, 6 * SIZE)
        assert sheet.getpixel((SIZE // 2, SIZE // 2)) == (0, 204, 0)


def test_a_result_of_the_anchors_alone_is_shown_in_three_rows():
    whole = small_result()
    every, chosen = np.arange(8), whole.views.anchors
    views = structs.ViewSet(whole.views.rgba[chosen], whole.views.cameras[chosen], every, whole.views.normals, every)
    assert outputs.contact_sheet(dataclasses.replace(whole, views=views)).shape == (3 * SIZE, 8 * SIZE, 3)


def test_the_mesh_has_a_row_of_the_contact_sheet_beside_several_inputs():
    one = small_result()
    both = dataclasses.replace(one, inputs=one.inputs * 2)
    assert [len(outputs.contact_sheet(each)) // SIZE for each in (one, both)] == [6, 7]


def test_report_is_complete(written):
    report = json.loads((written / "report.json").read_text())
    assert report["seed"] == 7 and report["settings"] == CONFIG.to_dict()
    assert set(report["seconds"]) == set(report["peak_memory_gb"]) == set(STAGES)
    assert {"e3d_jax", "python", "jax", "flax"} <= set(report["versions"])
    assert report["device"]["platform"] == "cpu"


def test_the_report_says_where_images_were_taken_from_and_how_that_was_found(tmp_path):
    found = {"elevation": "given", "fov": "unknown to the model"}
    one = small_result().inputs[0]
    inputs = (one, dataclasses.replace(one, azimuth=90.0, elevation=25.0, found=found))
    outputs.write_result(tmp_path / "ball", dataclasses.replace(small_result(), inputs=inputs), seed=7, config=CONFIG)
    second = json.loads((tmp_path / "ball/report.json").read_text())["inputs"][1]
    assert second == {
        "file": "input_1.png",
        "azimuth": 90.0,
        "elevation": 25.0,
        "fov": None,
        "elevation_found": "given",
        "fov_found": "unknown to the model",
    }
    assert (tmp_path / "ball/input_1.png").exists() and (tmp_path / "ball/input_1_normal.png").exists()


def located(size, elevation):
    """An input with its camera."""
    camera = cameras.ring(size, 1, elevation=np.radians(elevation))
    rgba = np.full((size, size, 4), 0.5, np.float32)
    picture = registration.Picture(rgba, 0.0, (0.0, 0.0, float(size), float(size)))
    found = registration.Found(camera, elevation, 39.6, 1.5, 0.97, 0.05, used=True)
    names = {"elevation": "fitted to the mesh", "fov": "fitted to the mesh"}
    return system.Input(rgba[:SIZE, :SIZE], rgba[:SIZE, :SIZE], 0.0, elevation, 39.6, None, names, picture, found)


def test_pictures_are_written_with_their_cameras(tmp_path):
    both = dataclasses.replace(small_result(), inputs=(located(20, 25.0), located(32, 5.0)))
    outputs.write_result(tmp_path / "ball", both, seed=7, config=CONFIG)
    posed = views_io.read_views(tmp_path / "ball/view_inputs")
    assert posed.rgba.shape == (2, 32, 32, 4) and not posed.rgba[0, 20:].any(), "extended, not resampled"
    np.testing.assert_allclose(np.degrees(cameras.elevation_of(posed.cameras.world_from_cam)), [25, 5], atol=1e-3)
    np.testing.assert_allclose(posed.cameras.center, [[10, 10], [16, 16]])
    first = json.loads((tmp_path / "ball/report.json").read_text())["inputs"][0]
    assert first["elevation_found"] == "fitted to the mesh" and first["pixels_used"]
    assert (first["silhouette_iou"], first["difference"], first["roll"]) == (0.97, 0.05, 1.5)
    assert first["scale"] == pytest.approx(20 * 1.38906 / 1.5, rel=1e-4)


def test_labels_of_inputs_say_their_cameras():
    assert outputs._camera_label(located(20, 25.0)) == "input 0, elev 25, fov 40"
    assert outputs._camera_label(small_result().inputs[0]) == "input 0"


def test_labels_of_inputs_fit_into_tiles_of_128_px():
    longest = dataclasses.replace(located(20, -30.0), azimuth=210.25, fov=100.0)
    tile = outputs._labeled(np.ones((128, 128, 3), np.float32), outputs._camera_label(longest))
    assert (tile[:, :120] < 0.7).any() and (tile[12:] == 1).all() and (tile[:, 126:] == 1).all()


def test_large_tiles_of_the_contact_sheet_have_labels():
    blank = np.ones((64, 64, 3), np.float32)
    labeled = outputs._labeled(blank, "view 45")
    assert (labeled[:14, :50] < 0.7).any() and (labeled[20:] == 1).all()
    np.testing.assert_array_equal(outputs._labeled(blank[:32, :32], "view 45"), blank[:32, :32])


def test_an_earlier_result_is_replaced(tmp_path):
    target = tmp_path / "ball"
    target.mkdir()
    (target / "report.json").write_text("{}")
    (target / "stale.png").touch()
    write(target)
    assert not (target / "stale.png").exists() and (target / "mesh.glb").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["ball"]


def test_nothing_has_the_final_name_before_all_is_written(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(reports, "write", lambda *_: names.extend(path.name for path in tmp_path.iterdir()))
    write(tmp_path / "ball")
    assert len(names) == 1 and names[0].startswith(".ball.")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_earlier_result(tmp_path, monkeypatch, error):
    target = tmp_path / "ball"
    write(target)
    (target / "report.json").write_text("earlier")

    def fail(*_):
        raise error

    monkeypatch.setattr(preview, "write_turntable", fail)
    with pytest.raises(type(error)):
        write(target)
    assert (target / "report.json").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["ball"]


def test_a_failed_rename_keeps_the_earlier_result(tmp_path, monkeypatch):
    target = tmp_path / "ball"
    write(target)
    (target / "report.json").write_text("earlier")
    replace = outputs.os.replace

    def fail(source, destination):
        if getattr(source, "name", "") == "partial":
            raise OSError(5, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(outputs.os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(target)
    assert (target / "report.json").read_text() == "earlier"


def test_a_full_disk_in_one_sentence(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview, "write_turntable", fail)
    with pytest.raises(OSError, match=r"cannot write .*ball \(No space left on device\); check the disk"):
        write(tmp_path / "ball")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_a_result_is_not_replaced(tmp_path, kind):
    target = tmp_path / "ball"
    precious = target
    if kind == "folder":
        target.mkdir()
        precious = target / "thesis.tex"
    precious.write_text("precious")
    with pytest.raises(FileExistsError, match="is not an earlier result"):
        write(target)
    assert precious.read_text() == "precious"


def test_an_empty_folder_may_be_replaced(tmp_path):
    outputs.check_replaceable(tmp_path)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to .*choose another folder"):
        outputs.check_writable(tmp_path / "file" / "out")


def test_check_writable_leaves_nothing_behind(tmp_path):
    outputs.check_writable(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())
