"""Sliced Wasserstein distance of patches."""

import numpy as np
import pytest
from scipy import ndimage

from e3d_jax.evaluation import missing, wasserstein


@pytest.fixture
def truth():
    """A noisy square."""
    rgba = np.random.default_rng(0).random((64, 64, 4)).astype(np.float32)
    rgba[..., 3] = 0
    rgba[16:48, 16:48, 3] = 1
    return rgba


def test_equal_views_have_distance_zero(truth):
    assert wasserstein.sliced_wasserstein(truth, truth) == 0


def test_blur_is_far_and_a_shift_is_near(truth):
    colors = ndimage.gaussian_filter(truth, (2, 2, 0))[..., :3]
    blurred = np.concatenate([colors, truth[..., 3:]], -1)
    moved = np.roll(truth, 1, axis=1)
    assert wasserstein.sliced_wasserstein(blurred, truth) > 3 * wasserstein.sliced_wasserstein(moved, truth)


def test_views_without_objects_have_no_patches(truth):
    with pytest.raises(missing.NotScored, match="no patches"):
        wasserstein.sliced_wasserstein(truth * 0, truth * 0)


def test_small_views_have_too_few_patches(truth):
    with pytest.raises(missing.NotScored, match="15 x 15 px"):
        wasserstein.sliced_wasserstein(truth[:15, :15] * 0 + 1, truth[:15, :15] * 0 + 1)
