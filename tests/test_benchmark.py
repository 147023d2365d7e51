"""Scores of the benchmark, without a model."""

import json

import numpy as np
import pytest

from e3d_jax import benchmark, cameras, structs, system
from e3d_jax.evaluation import metrics


def gray_views(value: float = 0.5) -> structs.ViewSet:
    """Return 16 views of a gray square, every other one an anchor whose normals point along +x."""
    rgba = np.full((16, 16, 16, 4), value, np.float32)
    rgba[..., 3] = 0
    rgba[:, 4:12, 4:12, 3] = 1
    anchors = np.arange(0, 16, 2)
    normals = rgba[anchors, ..., 3:] * np.float32([1, 0, 0])
    return structs.ViewSet(rgba, cameras.ring(16, 16), anchors, normals, anchors)


def test_views_are_scored_by_every_metric_under_its_name():
    scores = benchmark.score_views(gray_views(), gray_views())
    assert set(scores) == {
        # The views are too small for a network.
        *(f"novel_anchors_{name}" for name in metrics.VIEW_METRICS if name != "st_lpips"),
        *(f"{prefix}_{name}" for prefix in ("anchors", "shared") for name in metrics.NORMAL_METRICS),
    }
    assert scores["novel_anchors_psnr"] == pytest.approx(100) and scores["anchors_normal_angle_deg"] == 0


def test_the_input_view_is_not_scored():
    views = gray_views()
    views.rgba[0] = 1
    assert benchmark.score_views(views, gray_views())["novel_anchors_psnr"] == pytest.approx(100)


def test_missing_normals_count_among_the_anchors_but_not_among_the_shared_ones():
    views = gray_views()
    views.normals[:4] = 0
    scores = benchmark.score_views(views, gray_views())
    assert scores["anchors_normal_angle_deg"] == pytest.approx(45) and scores["shared_normal_angle_deg"] == 0


def test_views_without_any_normal_have_the_score_of_a_missing_one():
    views = gray_views()
    views.normals[:] = 0
    assert benchmark.score_views(views, gray_views())["shared_normal_angle_deg"] == 90


def test_a_missing_mesh_has_a_score_for_every_metric():
    missing = metrics.missing_scores(metrics.MESH_METRICS)
    assert (missing["volume_iou"], missing["chamfer"], missing["normal_consistency"]) == (0, 0.5, 0)


def test_the_summary_has_the_means_of_the_numbers():
    rows = [{"family": "chairs", "mesh_volume_iou": 0.5}, {"family": "cars", "mesh_volume_iou": 1.0}]
    assert benchmark.summary(rows).split() == ["mesh_volume_iou", "0.7500"]


def test_headline_figures_come_first_and_psnr_last():
    names = ["mesh_chamfer", "interpolated_psnr", "other", "consistency_psnr", "novel_anchors_st_lpips"]
    printed = benchmark.summary([dict.fromkeys(names, 1.0)]).split()[::2]
    assert printed == ["novel_anchors_st_lpips", "consistency_psnr", "mesh_chamfer", "other", "interpolated_psnr"]


def test_views_that_share_no_object_have_no_consistency():
    views = gray_views()
    views.rgba[...] = 0
    assert benchmark.score_consistency(views, 0) == {}


def test_scored_objects_are_skipped(tmp_path, monkeypatch, capsys):
    scored = []

    def score(model, index, *_):
        scored.append(index)
        return {"mesh_volume_iou": 1.0}

    monkeypatch.setattr(system, "load", lambda weights: None)
    monkeypatch.setattr(benchmark, "score_object", score)
    (tmp_path / "object_003.json").write_text(json.dumps({"mesh_volume_iou": 0.0}))
    benchmark.run("mini", tmp_path, objects=2, start=3)
    assert scored == [4] and "mean over 2 (object)\nmesh_volume_iou      0.5000" in capsys.readouterr().out
