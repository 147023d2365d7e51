"""Input images as photographs are: seeded by name, framed by their silhouette, and exposed in their own way."""

import dataclasses

import jax
import numpy as np
import pytest

from e3d_jax import cameras, images
from e3d_jax.data import lighting, photographs

SETTINGS = cameras.InputCameras(count=4)


def test_a_name_gives_the_same_shots_everywhere():
    one, other = (photographs.plan(SETTINGS, "object", 64) for _ in range(2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_name_gives_other_shots():
    one, other = (photographs.plan(SETTINGS, name, 64) for name in ("a", "b"))
    assert np.abs(one.cameras.world_from_cam[1:] - other.cameras.world_from_cam[1:]).min(0).max() > 0.1


def test_without_effects_the_light_and_the_crop_are_the_usual_ones():
    shots = photographs.plan(dataclasses.replace(SETTINGS, effects=0.0), "object", 64)
    lights = jax.tree.map(lambda x: x[2, ...], shots.lights)
    normals = np.array([[0.0, 0, 1], [1, 0, 0]])
    usual = np.broadcast_to(lighting.brightness(normals), (2, 3))
    np.testing.assert_allclose(lighting.brightness(normals, lights), usual, atol=1e-6)
    assert not shots.errors.any()


def test_every_image_has_a_light_of_its_own():
    lights = photographs.plan(SETTINGS, "object", 64).lights
    assert len(np.unique(lights.ambient[:, 0])) == len(np.unique(lights.directions[:, 0, 0])) == 4


def test_lights_of_two_colors_add_up():
    colors = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    directions = np.array([[0.0, 0, 1], [0, 0, -1], [1, 0, 0]])
    lights = lighting.Lights(np.full(3, 0.1), directions, colors, np.array(0.0))
    np.testing.assert_allclose(lighting.brightness(np.array([[0.0, 0, 1]]), lights), [[1.1, 0.1, 0.1]])


def camera_of(size=64):
    return cameras.ring(size, 1)


def test_a_framed_camera_sees_the_silhouette_in_its_middle():
    low, high = np.array([[0.25, 0.5]]), np.array([[0.75, 0.75]])
    framed = photographs.framed(camera_of(), low, high, np.zeros((1, 3)))
    # The optical axis is a quarter of the box's height above its center.
    side = 0.5 / images.FILL
    np.testing.assert_allclose(framed.center, [[32, 32 - 64 * 0.125 / side]], rtol=1e-5)
    np.testing.assert_allclose(framed.focal, camera_of().focal / side, rtol=1e-5)


def test_errors_shift_and_enlarge_the_crop():
    low, high = np.array([[0.25, 0.25]]), np.array([[0.75, 0.75]])
    framed = photographs.framed(camera_of(), low, high, np.array([[0.1, 0.0, np.log(2.0)]]))
    np.testing.assert_allclose(framed.center, [[32 - 6.4, 32]], rtol=1e-5)
    np.testing.assert_allclose(framed.focal, camera_of().focal / (2 * 0.5 / images.FILL), rtol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [(256, 128), (32, 64)])
def test_a_finder_sees_the_same_in_half_the_pixels_or_in_64(size, expected):
    finder = photographs.finder(camera_of(size))
    assert finder.width == expected
    np.testing.assert_allclose(cameras.fov_of(finder), cameras.fov_of(camera_of(size)), rtol=1e-6)


def test_bounds_are_those_of_the_silhouette():
    alpha = np.zeros((8, 8), np.float32)
    alpha[2:4, 1:7] = 1
    low, high = photographs.bounds(alpha)
    np.testing.assert_array_equal([low, high], [[1 / 8, 2 / 8], [7 / 8, 4 / 8]])


def test_an_object_that_is_not_seen_has_no_bounds():
    with pytest.raises(ValueError, match="an input camera does not see the object"):
        photographs.bounds(np.zeros((8, 8), np.float32))


@pytest.fixture
def clean():
    rgba = np.ones((32, 32, 4), np.float32)
    rgba[..., 3] = 0
    rgba[8:24, 8:24] = [0.6, 0.4, 0.2, 1]
    return rgba


def test_an_image_without_effects_stays(clean):
    np.testing.assert_array_equal(photographs.develop(clean, 3, 0.0), clean)


def test_a_seed_develops_an_image_in_one_way(clean):
    one, same, other = (photographs.develop(clean, seed, 1.0) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("seed", range(8))
def test_effects_change_colors_and_keep_the_silhouette(clean, seed):
    found = photographs.develop(clean, seed, 1.0)
    outside = clean[..., 3] == 0
    np.testing.assert_array_equal(found[outside], clean[outside])
    assert np.abs(found - clean)[~outside][..., :3].mean() > 0.003 and found.min() >= 0 and found.max() <= 1
    assert (found[10:22, 10:22, 3] > 0.9).all()
