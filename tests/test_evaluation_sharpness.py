"""Gradient energy and edge width, relative to the truth."""

import numpy as np
import pytest
from scipy import ndimage

from e3d_jax.evaluation import missing, sharpness


def disk(size=64, radius=20.0, width=1.0):
    """Return RGBA of a striped disk whose outline is a ramp of ``width`` pixels."""
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    alpha = ((radius - np.hypot(x, y)) / width + 0.5).clip(0, 1)
    color = 0.5 + 0.4 * np.sin(x)[..., None] * np.ones(3)
    return np.concatenate([color, alpha[..., None]], -1).astype(np.float32)


def blurred(rgba, sigma):
    return ndimage.gaussian_filter(rgba, (sigma, sigma, 0))


def test_the_truth_is_as_sharp_as_itself():
    assert sharpness.sharpness(disk(), disk()) == 1


def test_blur_is_less_sharp_the_wider_it_is():
    truth = disk()
    one, two = (sharpness.sharpness(blurred(truth, sigma), truth) for sigma in (1, 2))
    assert two < one < 0.9


def test_noise_is_too_sharp():
    noise = np.random.default_rng(0).normal(0, 0.1, (64, 64, 4)).astype(np.float32) * np.float32([1, 1, 1, 0])
    assert sharpness.sharpness(disk() + noise, disk()) > 1.1


def test_sharpness_is_squared_contrast():
    flat = disk() * np.float32([0, 0, 0, 1]) + np.float32([1, 1, 1, 0]) * 0.5
    half = flat + np.float32([1, 1, 1, 0]) * 0.25
    assert sharpness.sharpness(half, flat) == pytest.approx(0.25)


def test_a_sharp_guess_of_another_shape_is_sharper_than_the_mean_of_both():
    gray = np.float32([0, 0, 0, 1]), np.float32([0.5, 0.5, 0.5, 0])
    truth, guess = (disk(radius=radius) * gray[0] + gray[1] for radius in (16.0, 20.0))
    alpha = (truth[..., 3:] + guess[..., 3:]) / 2
    mean = np.concatenate([truth[..., :3], alpha], -1)
    as_sharp, soft = (sharpness.sharpness(view, truth) for view in (guess, mean))
    assert soft < 0.8 < as_sharp


def test_a_truth_without_an_object_has_no_sharpness():
    with pytest.raises(missing.NotScored, match="no object"):
        sharpness.sharpness(disk() * 0, disk() * 0)


@pytest.mark.parametrize("width", [2.0, 4.0, 8.0])
def test_the_edge_width_is_that_of_the_ramp(width):
    assert sharpness.edge_width_px(disk(width=width)[..., 3]) == pytest.approx(width, rel=0.05)


def test_the_edge_width_does_not_depend_on_the_size_of_the_object():
    small, large = (sharpness.edge_width_px(disk(radius=radius, width=3)[..., 3]) for radius in (8, 24))
    assert small == pytest.approx(large, rel=0.03)


def test_a_hard_outline_counts_as_half_a_pixel_wide():
    assert sharpness.edge_width_px((disk()[..., 3] > 0.5).astype(np.float32)) == sharpness.MIN_WIDTH


def test_a_halo_is_wider_than_the_truth():
    assert sharpness.edge_width(disk(width=6)[..., 3], disk(width=3)[..., 3]) == pytest.approx(2, rel=0.05)


def test_an_empty_silhouette_has_no_edge():
    with pytest.raises(missing.NotScored, match="no outline"):
        sharpness.edge_width(np.zeros((64, 64), np.float32), disk()[..., 3])
