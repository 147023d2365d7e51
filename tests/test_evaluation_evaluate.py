"""Reports of many objects, and the command."""

import functools
import json

import numpy as np
import pytest
import trimesh

from e3d_jax import cameras, cli, images, structs, views_io
from e3d_jax.data import assets
from e3d_jax.data.assets import reading
from e3d_jax.evaluation import consistency, evaluate, metrics, missing, perceptual, protocol
from e3d_jax.mesh import export


@pytest.fixture
def views(tmp_path):
    """A function that writes a folder of two views of a gray square, and one normal map."""

    def write(name, value=0.5, size=32, normal=(1, 0, 0)):
        folder = tmp_path / name
        folder.mkdir()
        rgba = np.full((size, size, 4), value, np.float32)
        rgba[..., 3] = 0
        rgba[8:24, 8:24, 3] = 1
        for view in (0, 1):
            images.write_png(folder / f"rgb_{view:02}.png", rgba)
        normals = np.broadcast_to(np.float32(normal), (size, size, 3))
        images.write_png(folder / "normal_00.png", images.encode_normal(normals, rgba[..., 3]))
        return folder

    return write


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few sample points, and no networks."""
    few = functools.partial(metrics.surface_distances, samples=2000)
    monkeypatch.setattr(metrics, "surface_distances", few)

    def refuse(trunk):
        raise missing.NotScored("its weights are not installed; run pip")

    monkeypatch.setattr(perceptual, "st_lpips", refuse)


def ball(radius=0.4, offset=0.0):
    shape = trimesh.creation.icosphere(2, radius)
    vertices = np.asarray(shape.vertices + np.array([0, offset, 0]), np.float32)
    return structs.Mesh(vertices, np.asarray(shape.faces, np.int32), np.full_like(vertices, 0.5))


@pytest.fixture
def meshes(tmp_path):
    """A function that writes a folder of balls by name."""

    def write(name, **radii):
        for stem, radius in radii.items():
            export.write_glb(tmp_path / name / f"{stem}.glb", ball(radius))
        return tmp_path / name

    return write


def scores_of(pred, gt=None, **options):
    (scores,) = evaluate.evaluate(pred, gt, evaluate.Options(**options))["objects"].values()
    return scores


def test_equal_folders_have_perfect_scores(views):
    scores = scores_of(views("a"), views("b"))
    assert scores["psnr"] == pytest.approx(100)
    assert scores["ssim"] == scores["mask_iou"] == scores["sharpness"] == scores["edge_width"] == 1
    assert scores["views"] == scores["gt_views"] == 2


def test_normal_maps_are_compared(views):
    scores = scores_of(views("a"), views("b", normal=(0, 1, 0)))
    assert scores["normal_angle_deg"] == pytest.approx(90, abs=0.5)


def test_missing_views_are_counted(views):
    pred, gt = views("a"), views("b")
    (pred / "rgb_01.png").unlink()
    report = evaluate.evaluate(pred, gt)
    assert (report["mean"]["views"], report["mean"]["gt_views"]) == (1, 2)
    assert report["notes"]["views"] == f"{pred} has 1 views, the truth 2; only the 1 that both have are scored"


def test_views_of_other_size_are_an_error(views):
    with pytest.raises(ValueError, match=r"32 x 32 px but .* 40 x 40 px"):
        evaluate.evaluate(views("a"), views("b", size=40))


def test_folder_without_views_is_an_error(views, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no views"):
        evaluate.evaluate(tmp_path / "empty", views("a"))


def test_a_mesh_against_views_is_an_error(views, meshes):
    with pytest.raises(ValueError, match="the truth is views"):
        evaluate.evaluate(meshes("m", a=0.4) / "a.glb", views("a"))


def test_true_views_cannot_be_drawn_again(views):
    with pytest.raises(ValueError, match="--align=front"):
        evaluate.evaluate(views("a"), views("b"), evaluate.Options(align="front"))


def test_mesh_files_are_read(meshes):
    scores = scores_of(meshes("a", x=0.3) / "x.glb", meshes("b", y=0.4) / "y.glb")
    assert scores["chamfer"] == pytest.approx(0.1, rel=0.03)
    assert scores["watertight"] == 1 and scores["file_bytes"] > 1000


def test_objects_are_found_by_name(meshes):
    report = evaluate.evaluate(meshes("a", x=0.4, y=0.3, extra=0.1), meshes("b", x=0.4, y=0.4, lost=0.4))
    assert report["objects"].keys() == {"x", "y"}
    assert report["errors"] == {"lost": "the prediction lacks it", "extra": "the truth lacks it"}
    assert report["mean"]["chamfer"] == pytest.approx(0.05, rel=0.03)
    low, high = report["ci95"]["chamfer"]
    assert low == pytest.approx(0, abs=1e-3) and high == pytest.approx(0.1, rel=0.03)


def test_an_object_that_cannot_be_read_does_not_stop_the_others(meshes):
    pred, gt = meshes("a", x=0.4, y=0.4), meshes("b", x=0.4, y=0.4)
    (pred / "y.glb").write_bytes(b"glTF")
    report = evaluate.evaluate(pred, gt)
    assert report["objects"].keys() == {"x"} and "y.glb is damaged" in report["errors"]["y"]


def test_a_protocol_scores_its_objects_and_lists_those_that_are_missing(meshes):
    names = {"object_000": 0.4, "other": 0.4}
    report = evaluate.evaluate(meshes("a", **names), meshes("b", **names), evaluate.Options(protocol="synthetic40"))
    assert report["objects"].keys() == {"object_000"}
    assert report["errors"] == {f"object_{index:03}": "the prediction lacks it" for index in range(1, 40)}


@pytest.mark.parametrize(
    ("vertex", "face", "said"),
    [("nan", "1 2 3", "vertices that are not finite"), ("0", "1 2 2", r"no surface \(1 faces of area 0\)")],
)
def test_a_mesh_without_a_finite_surface_is_named(meshes, tmp_path, vertex, face, said):
    (tmp_path / "bad.obj").write_text(f"v {vertex} 0 0\nv 1 0 0\nv 0 1 0\nf {face}\n")
    with pytest.raises(ValueError, match=rf"bad\.obj has {said}"):
        evaluate.evaluate(tmp_path / "bad.obj", meshes("gt", x=0.4))


def test_no_common_objects_is_an_error(meshes):
    with pytest.raises(ValueError, match="no object in common"):
        evaluate.evaluate(meshes("a", x=0.4, y=0.4), meshes("b", z=0.4))


def test_a_truth_that_is_not_closed_has_no_volume(meshes, tmp_path):
    shape = ball()
    (tmp_path / "open").mkdir()
    export.write_glb(tmp_path / "open" / "x.glb", structs.Mesh(shape.vertices, shape.faces[5:], shape.colors))
    report = evaluate.evaluate(meshes("a", x=0.4), tmp_path / "open")
    assert "volume_iou" not in report["mean"] and "chamfer" in report["mean"]
    assert "is not closed" in report["notes"]["volume_iou"]


def test_networks_that_are_not_installed_are_noted(views):
    report = evaluate.evaluate(views("a"), views("b"))
    assert report["notes"]["st_lpips"] == "its weights are not installed; run pip"
    assert "st_lpips" not in report["mean"] and "psnr" in report["mean"]


def test_networks_do_not_concern_meshes(meshes):
    assert evaluate.evaluate(meshes("a", x=0.4), meshes("b", x=0.4))["notes"] == {}


def test_headline_figures_come_first_and_psnr_last(views):
    names = list(evaluate.evaluate(views("a"), views("b"))["mean"])
    assert names[0] == "sharpness" and names[-2:] == ["psnr", "ssim"]


def test_the_truth_is_scaled_until_the_fronts_agree(meshes):
    scores = scores_of(meshes("a", x=0.4), meshes("b", x=0.3), align="front")
    assert scores["front_scale"] == pytest.approx(4 / 3, rel=0.02)
    assert scores["chamfer"] < 0.01


def ball_views(cams, radius=0.4):
    """Return gray images and encoded normal maps of a ball."""
    rays = cameras.image_rays(cams)
    origins, directions = np.asarray(rays.origins), np.asarray(rays.directions)
    along = -(origins * directions).sum(-1)
    nearest = origins + along[..., None] * directions
    inside = radius**2 - (nearest**2).sum(-1)
    alpha = (inside > 0).astype(np.float32)
    surface = nearest - np.sqrt(inside.clip(0))[..., None] * directions
    rgba = np.concatenate([np.full((*alpha.shape, 3), 0.5), alpha[..., None]], -1).astype(np.float32)
    return rgba, images.encode_normal(surface / radius, alpha)


@pytest.fixture
def with_poses(tmp_path):
    """Four views of a ball, in a folder that says where they are from."""
    cams, none = cameras.ring(64, 4), np.zeros((0, 64, 64, 3), np.float32)
    views_io.write_views(
        tmp_path / "x", structs.ViewSet(ball_views(cams)[0], cams, np.zeros(0, int), none, np.arange(4))
    )
    return tmp_path / "x"


def test_true_meshes_are_drawn_from_the_cameras_of_the_predicted_views(with_poses, meshes):
    gt = meshes("gt", x=0.5)
    plain, scaled = (scores_of(with_poses, gt / "x.glb", align=align) for align in ("none", "front"))
    assert scaled["front_scale"] == pytest.approx(0.8, abs=0.02)
    assert plain["mask_iou"] < 0.75 < 0.95 < scaled["mask_iou"]


@pytest.fixture
def drawn(tmp_path):
    """A function that draws views of a ball beside the origin from cameras, in a folder that says where they are."""
    truth = tmp_path / "gt" / "baseball.glb"
    export.write_glb(truth, ball(0.3, offset=0.2))

    def draw(cams):
        seen = assets.render(reading.read_asset(truth), cams, np.arange(0)).views
        views_io.write_views(tmp_path / "pred" / "baseball", seen)
        return tmp_path / "pred" / "baseball", truth

    return draw


def edit_frames(folder, change):
    """Change the list of frames of a folder of views."""
    file = folder / "transforms.json"
    contents = json.loads(file.read_text())
    file.write_text(json.dumps(contents | {"frames": change(contents["frames"])}))


def test_a_camera_is_that_of_the_view_of_its_number(drawn):
    pred, truth = drawn(cameras.ring(48, 4))
    (pred / "rgb_00.png").unlink()
    edit_frames(pred, lambda frames: frames[:0:-1])
    scores = scores_of(pred, truth)
    assert scores["views"] == 3 and scores["mask_iou"] > 0.99


def test_a_frame_without_a_number_is_an_error(drawn):
    pred, truth = drawn(cameras.ring(48, 4))
    (pred / "rgb_03.png").rename(pred / "last.png")
    edit_frames(pred, lambda frames: [*frames[:3], frames[3] | {"file_path": "last.png"}])
    with pytest.raises(ValueError, match=r"transforms\.json lists last\.png, which has no number"):
        scores_of(pred, truth)


@pytest.fixture
def without_poses(tmp_path):
    """Views and normal maps of a ball from the poses of a protocol, in files that do not say so."""
    fixed = protocol.load("scans20")
    folder = tmp_path / "pred" / "baseball"
    folder.mkdir(parents=True)
    for number, rgba, normal in zip(fixed.views, *ball_views(fixed.cameras(48), 0.49), strict=True):
        images.write_png(folder / f"rgba_{number:02}.png", rgba)
        images.write_png(folder / f"normal_{number:02}.png", normal)
    return folder


def test_true_meshes_are_drawn_from_the_poses_of_a_protocol(without_poses, meshes):
    scores = scores_of(without_poses.parent, meshes("gt", baseball=0.49), protocol="scans20", align="front")
    assert scores["views"] == 7 and scores["mask_iou"] > 0.95
    assert scores["normal_maps"] == 8 and scores["normal_angle_deg"] < 5


SWINGING = cameras.ViewLayout(elevation=10.0, elevation_swing=25.0)


def test_views_from_other_poses_than_the_protocol_are_refused(drawn):
    pred, truth = drawn(SWINGING.cameras(48))
    with pytest.raises(ValueError, match=rf"^{pred}: the pose of view 0 is not that of the protocol scans20; .*leave"):
        scores_of(pred, truth, protocol="scans20")


def test_views_from_other_poses_do_not_stop_other_objects(drawn, without_poses, meshes):
    good = without_poses.rename(without_poses.with_name("pear"))
    drawn(SWINGING.cameras(48))
    gt = meshes("gt", pear=0.49)
    report = evaluate.evaluate(good.parent, gt, evaluate.Options(protocol="scans20"))
    assert report["objects"].keys() == {"pear"} and "the pose of view 0" in report["errors"]["baseball"]


def test_views_from_the_poses_of_the_protocol_may_say_so(drawn):
    pred, truth = drawn(cameras.RELEASED.cameras(48))
    scores = scores_of(pred, truth, protocol="scans20")
    assert scores["views"] == 7 and scores["mask_iou"] > 0.99


def test_views_from_other_poses_than_the_true_views_are_noted(drawn):
    pred, truth = drawn(cameras.ring(48, 4))
    gt = pred.rename(truth.with_name("views"))
    drawn(cameras.ring(48, 4, offset=0.1))
    report = evaluate.evaluate(pred, gt, evaluate.Options())
    assert report["notes"]["poses"].startswith(f"view 0 of {pred} is from another pose than that of {gt}")


def test_views_from_the_poses_of_the_true_views_are_not_noted(drawn):
    pred, truth = drawn(cameras.ring(48, 4))
    gt = pred.rename(truth.with_name("views"))
    drawn(cameras.ring(48, 4))
    assert "poses" not in evaluate.evaluate(pred, gt, evaluate.Options())["notes"]


@pytest.fixture
def count_views(monkeypatch):
    """Lets the consistency of views be their number."""

    def count(views, *_, **__):
        return {"consistency_psnr": float(len(views.rgba))}

    monkeypatch.setattr(consistency, "consistency", count)


def test_a_surface_is_fitted_to_views_from_the_poses_of_a_protocol(without_poses, count_views):
    report = evaluate.evaluate(without_poses.parent, None, evaluate.Options(consistency=True, protocol="scans20"))
    assert report["mean"] == {"consistency_psnr": 8}
    assert "that of the 8 views of the protocol scans20" in report["notes"]["consistency"]


def test_the_truth_cannot_be_scaled_to_a_missing_front_view(without_poses, meshes):
    (without_poses / "rgba_00.png").unlink()
    with pytest.raises(ValueError, match="view 0 is missing, to which --align=front"):
        scores_of(without_poses.parent, meshes("gt", baseball=0.49), protocol="scans20", align="front")


def test_scans_are_centered_and_scaled(meshes, tmp_path):
    folder = tmp_path / "scans" / "x" / "meshes"
    export.write_obj(folder / "model.obj", ball(0.05, offset=3.0))
    scores = scores_of(meshes("a", x=0.5), tmp_path / "scans")
    assert scores["chamfer"] < 0.002


def test_differences_are_paired_by_object(meshes, tmp_path):
    gt = meshes("gt", x=0.4, y=0.4)
    (tmp_path / "theirs.json").write_text(json.dumps(evaluate.evaluate(meshes("theirs", x=0.3, y=0.39), gt)))
    ours = evaluate.evaluate(meshes("ours", x=0.35, y=0.35), gt)
    pair = evaluate.against(ours, tmp_path / "theirs.json")["differences"]["chamfer"]
    assert pair["objects"] == 2 and pair["better"] == 1
    assert pair["difference"] == pytest.approx(-0.005, abs=2e-3)


def test_a_file_that_is_not_a_report_is_refused(meshes, tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a report of e3d eval"):
        evaluate.against(evaluate.evaluate(meshes("a", x=0.4)), tmp_path / "other.json")


def test_without_a_truth_views_are_compared_with_a_surface_fitted_to_half_of_them(with_poses, count_views):
    assert scores_of(with_poses, consistency=True) == {"consistency_psnr": 4}


def test_views_without_poses_cannot_be_compared_with_a_surface(views):
    with pytest.raises(ValueError, match=r"^\S*a is not a folder of views: it has no transforms\.json; add it"):
        scores_of(views("a"), consistency=True)


def test_command_prints_a_table_and_writes_both_files(views, tmp_path, capsys):
    out = tmp_path / "out.json", tmp_path / "out.md"
    cli.main(["eval", f"--pred={views('a')}", f"--gt={views('b')}", f"--json={out[0]}", f"--markdown={out[1]}"])
    printed = capsys.readouterr().out
    assert "| psnr | 100 |" in printed and out[1].read_text() == printed
    assert json.loads(out[0].read_text())["mean"]["mask_iou"] == 1


def test_command_fails_with_one_sentence(views, tmp_path):
    with pytest.raises(SystemExit, match=r"e3d eval: .*none does not exist"):
        cli.main(["eval", f"--pred={tmp_path / 'none'}", f"--gt={views('a')}"])
