"""Images of a box with known sides."""

import numpy as np
import pytest
import trimesh

from e3d_jax import cameras, structs
from e3d_jax.mesh import preview


@pytest.fixture(scope="module")
def box():
    shape = trimesh.creation.box(extents=(0.4, 0.4, 0.8))
    # Red toward +y, so that left and right differ.
    colors = np.where(shape.vertices[:, 1:2] > 0, [1.0, 0, 0], [0, 0, 1.0])
    return structs.Mesh(shape.vertices.astype(np.float32), shape.faces, colors.astype(np.float32))


def test_the_silhouette_has_the_size_of_the_front_face(box):
    alpha = preview.render_mesh(box, cameras.ring(64)[:1])[0, ..., 3]
    # The front face is at distance 1.3.
    width, height = 64 * cameras.RELEASED.focal * np.array([0.4, 0.8]) / 1.3
    assert alpha.sum() == pytest.approx(width * height, rel=0.03)
    assert alpha[0].max() == 0 and alpha[32, 32] == 1


def test_left_and_right_are_not_swapped(box):
    rgba = preview.render_mesh(box, cameras.ring(64)[:1])[0]
    assert rgba[32, 39, 0] > 0.6, "world +y is right in view 0"
    assert rgba[32, 25, 2] > 0.6
    np.testing.assert_array_equal(rgba[0, 0], [1, 1, 1, 0])


def test_normals_of_a_sphere():
    sphere = trimesh.creation.icosphere(3, 0.3)
    mesh = structs.Mesh(sphere.vertices, sphere.faces, np.ones_like(sphere.vertices))
    normal = preview.render_mesh(mesh, cameras.ring(65)[[0, 8]], "normal")[:, 32, 32, :3] * 2 - 1
    np.testing.assert_allclose(normal, [[1, 0, 0], [0, 1, 0]], atol=0.05)


def test_an_unknown_shading_is_refused(box):
    with pytest.raises(ValueError, match="choose one of"):
        preview.render_mesh(box, cameras.ring(8)[:1], "wire")
