"""Scores of one object by name."""

import functools

import numpy as np
import pytest
import trimesh

from e3d_jax import structs
from e3d_jax.evaluation import alignment, metrics, report


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    few = functools.partial(metrics.surface_distances, samples=2000)
    monkeypatch.setattr(metrics, "surface_distances", few)


def ball(radius=0.4):
    shape = trimesh.creation.icosphere(2, radius)
    vertices = np.asarray(shape.vertices, np.float32)
    return structs.Mesh(vertices, np.asarray(shape.faces, np.int32), np.full_like(vertices, 0.5))


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


def test_views_that_are_not_finite_are_an_error():
    view = np.full((32, 32, 4), 0.5, np.float32)
    with pytest.raises(ValueError, match="view 3 holds values that are not finite"):
        report.score_views({3: view}, {3: view * np.nan})


def test_means_are_over_the_rows_that_have_a_score():
    assert report.mean_scores([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {"a": 2, "b": 2}
