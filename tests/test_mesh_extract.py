"""Meshes of analytic signed distances."""

import numpy as np
import pytest
import trimesh

from e3d_jax.mesh import extract

BOX = np.array([[-0.5] * 3, [0.5] * 3])


def sphere(center=(0, 0, 0), radius=0.3):
    return lambda points: np.linalg.norm(points - np.float32(center), axis=-1) - radius


def position_as_color(points):
    return points + 0.5


def mesh_of(distance_fn, box=BOX, resolution=32):
    mesh = extract.extract_mesh(distance_fn, position_as_color, box, resolution)
    return mesh, trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def test_sphere_is_watertight_and_outward():
    _, shape = mesh_of(sphere())
    assert shape.is_watertight and shape.is_winding_consistent
    assert shape.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.01)


def test_vertices_lie_on_the_surface_of_a_box_with_unequal_sides():
    mesh, _ = mesh_of(sphere((0.1, 0, 0), 0.2), np.array([[-0.13, -0.25, -0.3], [0.5, 0.3, 0.25]]))
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices - [0.1, 0, 0], axis=1), 0.2, atol=2e-3)


def test_surface_that_leaves_the_box_is_closed():
    _, shape = mesh_of(sphere((0.4, 0, 0)))
    assert shape.is_watertight
    assert shape.volume > 0


def test_colors_are_those_of_the_vertices():
    mesh, _ = mesh_of(sphere())
    np.testing.assert_allclose(mesh.colors, mesh.vertices + 0.5, atol=1e-6)


def test_floaters_are_removed():
    floater = sphere((0.42, 0.42, 0.42), 0.05)
    _, shape = mesh_of(lambda p: np.minimum(sphere()(p), floater(p)))
    assert shape.body_count == 1


def test_large_parts_are_kept():
    _, shape = mesh_of(lambda p: np.minimum(sphere((-0.25, 0, 0), 0.2)(p), sphere((0.3, 0, 0), 0.15)(p)))
    assert shape.body_count == 2


def test_cavities_are_filled():
    _, shape = mesh_of(lambda p: np.maximum(sphere()(p), -sphere(radius=0.15)(p)))
    assert shape.body_count == 1
    assert shape.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.01)


def test_lattice_points_on_the_surface_make_no_degenerate_faces():
    _, shape = mesh_of(lambda p: np.abs(p).max(-1) - 0.25)
    assert shape.is_watertight
    assert shape.area_faces.min() > 0


def test_no_surface():
    with pytest.raises(ValueError, match="no surface inside the box"):
        mesh_of(sphere((5, 5, 5)))


def test_non_finite_distances():
    with pytest.raises(ValueError, match="non-finite"):
        mesh_of(lambda p: np.full(len(p), np.nan))


def test_coarse_resolution():
    with pytest.raises(ValueError, match="resolution=4 is too coarse"):
        mesh_of(sphere(), resolution=4)
