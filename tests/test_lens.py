"""Lens distortion is read and removed."""

import numpy as np
import pytest

from e3d_jax import lens


def checkers(at):
    """A smooth pattern at positions [2, ...]."""
    return np.stack([np.cos(3 * at[0]), np.sin(2 * at[1]), at[0] * at[1], np.full_like(at[0], 2)], -1) / 4 + 0.5


@pytest.mark.parametrize(
    "known",
    [
        {"k1": 0.3, "k2": -0.1, "p1": 0.02, "p2": -0.01},
        {"camera_model": "OPENCV_FISHEYE", "k1": 0.1},
        {"camera_model": "FULL_OPENCV", "k1": 0.2, "k4": 0.1},
    ],
)
def test_an_image_that_a_lens_took_is_undistorted(known):
    found, size, focal = lens.read(known, "it"), 64, 60.0
    ideal = np.stack(np.meshgrid(*[(np.arange(size) + 0.5 - size / 2) / focal] * 2))
    # What the lens shows at a pixel is the pattern where the ideal point came from, found by fixed-point iteration.
    source = ideal.copy()
    for _ in range(50):
        source += ideal - found.distort(*source)
    undistorted = lens.undistort(checkers(source).astype(np.float32), (focal, focal), (size / 2, size / 2), found)
    inside = (slice(12, -12), slice(12, -12))
    np.testing.assert_allclose(undistorted[inside], checkers(ideal)[inside], atol=4e-3)


def test_zero_coefficients_do_not_distort():
    assert lens.read({"camera_model": "OPENCV", "k1": 0, "p2": 0.0, "distortion_params": [0] * 6}, "it") is None


def test_a_fisheye_distorts_without_coefficients():
    assert lens.read({"is_fisheye": True, "k1": 0}, "it").fisheye


def test_lists_of_six_are_in_the_order_of_nerfstudio():
    found = lens.read({"distortion_params": [1, 2, 3, 0, 5, 6]}, "it")
    assert found.radial[:4] == (1, 2, 3, 0) and found.tangential == (5, 6)


def test_lists_of_five_are_in_the_order_of_opencv():
    found = lens.read({"distortion_params": [1, 2, 3, 4, 5]}, "it")
    assert found.radial[:3] == (1, 2, 5) and found.tangential == (3, 4)


@pytest.mark.parametrize("name", ["distortion_coefficients", "dist_coeffs", "rolling_shutter"])
def test_entries_that_change_the_projection_are_refused_by_name(name):
    assert lens.read({name: [0, 0, 0, 0], "distortion_model": "opencv"}, "it") is None
    with pytest.raises(ValueError, match=f"it has {name}"):
        lens.read({name: [0.1, 0, 0, 0]}, "it")


def test_coefficients_that_a_model_does_not_define_are_refused():
    with pytest.raises(ValueError, match="it has k4 or more, which OPENCV does not define"):
        lens.read({"camera_model": "OPENCV", "k4": 0.1}, "it")


@pytest.mark.parametrize("params", [[1, 2], ["a"] * 6, 3])
def test_lists_that_are_not_understood_are_refused(params):
    with pytest.raises(ValueError, match="distortion that is not understood"):
        lens.read({"distortion_params": params}, "it")


def test_parts_that_the_lens_shows_twice_are_transparent():
    found = lens.read({"k1": -0.9}, "it")
    assert lens.undistort(np.ones((32, 32, 4), np.float32), (16.0, 16.0), (16.0, 16.0), found)[0, 0, 3] == 0
