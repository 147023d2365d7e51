"""The object is found at any scale and offset, and left alone where the fit looks for it."""

import dataclasses

import numpy as np
import pytest

from e3d_jax import structs
from e3d_jax.reconstruction import placement
from tests import sphere


def moved(scale, offset):
    """Views of the sphere with other poses."""
    views = sphere.views()
    pose = np.array(views.cameras.world_from_cam, np.float64)
    pose[:, :3, 3] = scale * pose[:, :3, 3] + offset
    return dataclasses.replace(views, cameras=dataclasses.replace(views.cameras, world_from_cam=pose))


def find(views):
    return placement.find(views, half_extent=0.55, votes=0)


def test_an_object_in_its_place_is_left_alone():
    assert find(moved(1, 0)) is None


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(3, 0), (1, (0.3, 0, 0)), (0.02, 0), (1000, (-2000, 500, 7)), (1, (5e5, 4e6, 100)), (1, (0, 0, -20))],
)
def test_an_object_is_found(scale, offset):
    found = find(moved(scale, offset))
    # The hull of few views is larger than the sphere.
    np.testing.assert_allclose((found.center - offset) / scale, 0, atol=0.12)
    assert 1.9 * sphere.RADIUS < found.scale / scale < 3.5 * sphere.RADIUS


def test_vertices_are_moved_back():
    found = placement.Placement(np.array([1.0, 2, 3]), 10.0)
    mesh = structs.Mesh(np.float32([[0.5, 0, 0]]), np.zeros((0, 3), int), np.zeros((1, 3), np.float32))
    np.testing.assert_array_equal(found.mesh(mesh).vertices, [[6, 2, 3]])


def test_cameras_are_moved_into_object_units():
    views = moved(10, (1, 2, 3))
    back = placement.Placement(np.array([1.0, 2, 3]), 10.0).cameras(views.cameras).world_from_cam
    np.testing.assert_allclose(back, sphere.views().cameras.world_from_cam, atol=1e-6)


def test_views_from_one_direction_are_refused():
    views = moved(5, 0)
    same = dataclasses.replace(views, rgba=views.rgba[[0, 0]], cameras=views.cameras[np.array([0, 0])])
    with pytest.raises(ValueError, match="from nearly one direction"):
        find(same)


def test_cameras_that_look_away_are_refused():
    views = moved(5, 0)
    pose = np.array(views.cameras.world_from_cam)
    pose[:, :3, [0, 2]] *= -1
    away = dataclasses.replace(views, cameras=dataclasses.replace(views.cameras, world_from_cam=pose))
    with pytest.raises(ValueError, match="meet behind the cameras; check the axes"):
        find(away)
