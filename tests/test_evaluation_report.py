"""Comparing files: scores by name, and the command."""

import functools
import json

import numpy as np
import pytest
import trimesh

from e3d_jax import cli, images, structs
from e3d_jax.evaluation import alignment, metrics, report


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
def few_samples(monkeypatch):
    few = functools.partial(metrics.surface_distances, samples=2000)
    monkeypatch.setattr(metrics, "surface_distances", few)


def ball(radius=0.4):
    shape = trimesh.creation.icosphere(2, radius)
    vertices = np.asarray(shape.vertices, np.float32)
    return structs.Mesh(vertices, np.asarray(shape.faces, np.int32), np.full_like(vertices, 0.5))


def test_equal_folders_have_perfect_scores(views):
    scores = report.compare(views("a"), views("b"))
    assert scores["psnr"] == pytest.approx(100)
    assert scores["ssim"] == scores["mask_iou"] == 1
    assert scores["views"] == scores["gt_views"] == 2


def test_normal_maps_are_compared(views):
    scores = report.compare(views("a"), views("b", normal=(0, 1, 0)))
    assert scores["normal_angle_deg"] == pytest.approx(90, abs=0.5)


def test_missing_views_are_counted(views):
    pred, gt = views("a"), views("b")
    (pred / "rgb_01.png").unlink()
    scores = report.compare(pred, gt)
    assert (scores["views"], scores["gt_views"]) == (1, 2)


def test_views_of_other_size_are_an_error(views):
    with pytest.raises(ValueError, match=r"32 x 32 px but .* 40 x 40 px"):
        report.compare(views("a"), views("b", size=40))


def test_folder_without_views_is_an_error(views, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="in common"):
        report.compare(tmp_path / "empty", views("a"))


def test_folder_against_mesh_is_an_error(views, tmp_path):
    (tmp_path / "a.glb").touch()
    with pytest.raises(ValueError, match="not a mesh file"):
        report.compare(views("a"), tmp_path / "a.glb")


def test_views_cannot_be_aligned(views):
    with pytest.raises(ValueError, match="--align"):
        report.compare(views("a"), views("b"), align=True)


def test_a_new_metric_needs_one_entry(monkeypatch):
    few = metrics.Metric(lambda pair: len(pair.pred.faces), missing=0.0)
    monkeypatch.setattr(metrics, "MESH_METRICS", {"faces": few})
    assert report.mesh_scores(ball(), ball()) == {"faces": 320}


def test_scores_of_a_mesh_against_itself():
    scores = report.mesh_scores(ball(), ball())
    assert scores["chamfer"] < 1e-6
    assert scores["volume_iou"] == scores["fscore_0.01"] == 1


def test_aligned_scores_are_those_of_the_moved_mesh(monkeypatch):
    transform = alignment.Similarity(2.0, np.pi / 2, np.array([0, 0, 0.1]))
    monkeypatch.setattr(alignment, "align", lambda pred, gt, seed: (ball(0.4), transform))
    scores = report.mesh_scores(ball(0.2), ball(0.4), align=True)
    assert scores["volume_iou"] == 1
    assert (scores["align_scale"], scores["align_yaw_deg"], scores["align_z"]) == (2, pytest.approx(90), 0.1)


def test_mesh_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(report.export, "read_mesh", lambda path: ball(0.4 if path.stem == "gt" else 0.3))
    for name in ("pred.glb", "gt.glb"):
        (tmp_path / name).touch()
    assert report.compare(tmp_path / "pred.glb", tmp_path / "gt.glb")["chamfer"] == pytest.approx(0.1, rel=0.03)


def test_command_prints_table_and_json(views, capsys):
    cli.main(["eval", f"--pred={views('a')}", f"--gt={views('b')}", "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["psnr", "100.0000"]
    assert json.loads(lines[-1])["mask_iou"] == 1


def test_command_fails_with_one_sentence(views, tmp_path):
    with pytest.raises(SystemExit, match=r"e3d eval: .*none does not exist"):
        cli.main(["eval", f"--pred={tmp_path / 'none'}", f"--gt={views('a')}"])
