"""Baselines on shapes that they can reproduce."""

import numpy as np
import pytest
import trimesh

from e3d_jax import cameras, structs
from e3d_jax.evaluation import baselines, metrics


def as_trimesh(mesh):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.fixture(scope="module")
def ball():
    shape = trimesh.creation.icosphere(3, 0.3)
    vertices = np.float32(shape.vertices) + np.float32([0.05, -0.1, 0.1])
    return structs.Mesh(vertices, np.asarray(shape.faces, np.int32), np.full_like(vertices, 0.5))


def front_view(size=128):
    """A rectangle in view 0: y in [-0.1, 0.3], z in [-0.4, 0.2] in the plane x = 0."""
    pixel = cameras.RELEASED.radius / (cameras.RELEASED.focal * size)
    center = (np.arange(size) + 0.5 - size / 2) * pixel
    y, z = center[None, :], -center[:, None]
    rgba = np.ones((size, size, 4), np.float32)
    rgba[..., 3] = (y > -0.1) & (y < 0.3) & (z > -0.4) & (z < 0.2)
    return rgba


@pytest.fixture(scope="module")
def fitted(ball):
    return baselines.fitted_sphere(ball, resolution=32)


@pytest.fixture(scope="module")
def prism():
    return baselines.extruded_silhouette(front_view())


def test_sphere_fits_a_sphere(ball, fitted):
    assert metrics.volume_iou(fitted, ball, 48) > 0.97


def test_a_flat_mesh_has_no_sphere():
    sheet = structs.Mesh(np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0]]) / 4, np.array([[0, 1, 2]]), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="no volume"):
        baselines.fitted_sphere(sheet, resolution=16)


def test_prism_has_the_position_and_size_of_the_silhouette(prism):
    low, high = prism.vertices.min(0), prism.vertices.max(0)
    np.testing.assert_allclose([low[1], high[1]], [-0.1, 0.3], atol=0.02)
    np.testing.assert_allclose([low[2], high[2]], [-0.4, 0.2], atol=0.02)


def test_prism_is_as_deep_as_the_silhouette_is_wide(prism):
    np.testing.assert_allclose([prism.vertices[:, 0].min(), prism.vertices[:, 0].max()], [-0.2, 0.2], atol=0.02)


def test_prism_is_closed_and_faces_outward(prism):
    assert as_trimesh(prism).is_watertight
    assert as_trimesh(prism).volume == pytest.approx(0.4 * 0.6 * 0.4, rel=0.08)


def test_sphere_faces_outward(fitted):
    assert as_trimesh(fitted).volume > 0


def test_silhouette_at_the_border_is_closed():
    assert as_trimesh(baselines.extruded_silhouette(np.ones((64, 64, 4), np.float32))).is_watertight


def test_empty_view_is_an_error():
    with pytest.raises(ValueError, match="no object"):
        baselines.extruded_silhouette(np.zeros((64, 64, 4), np.float32))


def test_view_must_be_square():
    with pytest.raises(ValueError, match="64 x 32 px"):
        baselines.extruded_silhouette(np.ones((32, 64, 4), np.float32))
