"""Agreement of views with each other."""

import dataclasses

import numpy as np
import pytest

from e3d_jax import cameras, images, structs
from e3d_jax.evaluation import consistency, metrics, missing
from e3d_jax.reconstruction import config, fit, preview


@pytest.fixture(scope="module")
def views():
    """Eight views of a half red, half blue ball, with four normal maps."""
    cams = cameras.ring(32, 8)
    rays = cameras.image_rays(cams)
    origin, direction = np.asarray(rays.origins), np.asarray(rays.directions)
    along = -(origin * direction).sum(-1)
    gap = 0.4**2 - ((origin + along[..., None] * direction) ** 2).sum(-1)
    normal = (origin + (along - np.sqrt(np.maximum(gap, 0)))[..., None] * direction) / 0.4
    color = np.where(normal[..., 1:2] > 0, [1.0, 0, 0], [0, 0, 1.0])
    rgba = np.concatenate([color, (gap > 0)[..., None]], -1).astype(np.float32)
    normals = (normal * (gap > 0)[..., None])[::2].astype(np.float32)
    return structs.ViewSet(rgba, cams, np.arange(0, 8, 2), normals, np.arange(8))


@pytest.fixture
def renders(views, monkeypatch):
    """The views that are fitted; renders are the true views."""
    fitted = []

    def fit_views(given, settings, key):
        fitted.append(given)
        return fit.Fitted.__new__(fit.Fitted)

    def render(field, camera):
        view = int(np.abs(views.cameras.world_from_cam - camera.world_from_cam[0]).sum((1, 2)).argmin())
        shaded = images.encode_normal(views.normals[view // 2], views.rgba[view, ..., 3])
        return views.rgba[view], shaded

    monkeypatch.setattr(fit.Fitted, "field", None, raising=False)
    monkeypatch.setattr(fit, "fit", fit_views)
    monkeypatch.setattr(preview, "render_field", render)
    return fitted


def test_views_that_agree_have_perfect_scores(views, renders):
    scores = consistency.consistency(views, {"mask_iou": metrics.VIEW_METRICS["mask_iou"]})
    assert scores["consistency_psnr"] == pytest.approx(100) and scores["consistency_mask_iou"] == 1
    assert scores["consistency_normal_deg"] == pytest.approx(0, abs=0.1)


def test_the_surface_is_fitted_to_the_even_views_only(views, renders):
    consistency.consistency(views, {})
    (given,) = renders
    np.testing.assert_array_equal(given.rgba, views.rgba[::2])
    np.testing.assert_array_equal(given.normal_views, [0, 1, 2, 3])


def test_an_odd_view_of_something_else_is_caught(views, renders):
    rgba = views.rgba.copy()
    rgba[1] = rgba[1, ::-1, :, [2, 1, 0, 3]].transpose(1, 2, 0)
    assert consistency.consistency(dataclasses.replace(views, rgba=rgba), {})["consistency_psnr"] < 90


def test_silhouettes_of_one_object_agree_with_their_hull(views):
    assert consistency.hull_agreement(views) > 0.9


def test_a_silhouette_that_is_too_small_disagrees_with_the_hull(views):
    rgba = views.rgba.copy()
    rgba[1, :16, :, 3] = 0
    worse = consistency.hull_agreement(dataclasses.replace(views, rgba=rgba))
    assert worse < consistency.hull_agreement(views) - 0.02


def test_few_views_are_not_scored(views):
    with pytest.raises(missing.NotScored, match="2 views are too few"):
        consistency.consistency(consistency._subset(views, np.arange(2)), {})


@pytest.mark.slow
def test_true_views_are_consistent_and_swapped_ones_are_not(views):
    settings = config.FitSettings(steps=50, all_views=(0.0,))
    swapped = dataclasses.replace(views, rgba=views.rgba[[0, 5, 2, 7, 4, 1, 6, 3]])
    right, wrong = (
        consistency.consistency(given, {}, settings=settings)["consistency_psnr"] for given in (views, swapped)
    )
    assert right > wrong + 3
