"""Meshes of analytic signed distances."""

import numpy as np
import pytest
import trimesh

from e3d_jax import raycast
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


def test_a_surface_that_leaves_the_box_is_closed():
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


def test_a_field_without_surface_is_refused():
    with pytest.raises(ValueError, match="no surface inside the box"):
        mesh_of(sphere((5, 5, 5)))


def test_non_finite_distances_are_refused():
    with pytest.raises(ValueError, match="non-finite"):
        mesh_of(lambda p: np.full(len(p), np.nan))


def test_a_coarse_resolution_is_refused():
    with pytest.raises(ValueError, match="resolution=4 is too coarse"):
        mesh_of(sphere(), resolution=4)


def test_decimated_mesh_is_closed_and_keeps_its_shape():
    mesh = extract.extract_mesh(sphere(), position_as_color, BOX, 32, max_faces=500)
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert len(mesh.faces) <= 500 and shape.is_watertight
    assert shape.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.03)
    np.testing.assert_allclose(mesh.colors, mesh.vertices + 0.5, atol=1e-6)


def thin_sheets(points):
    """Return a thickened gyroid, cut to a ball."""
    x, y, z = 20 * points.T
    sheets = np.abs(np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)) / 35 - 0.006
    return np.maximum(sheets, sphere(radius=0.4)(points))


def test_thin_sheets_are_decimated_to_the_faces_asked_for():
    mesh = extract.extract_mesh(thin_sheets, position_as_color, BOX, 48, max_faces=3000)
    assert extract.is_closed(mesh.vertices, mesh.faces)
    assert 2850 <= len(mesh.faces) <= 3000


def noise(points):
    values = np.random.default_rng(28).normal(0, 0.03, (30, 30, 30)).astype(np.float32)
    return values[tuple(np.rint((points.T + 0.5) * 29).astype(int).clip(0, 29))]


def test_noise_gives_a_closed_mesh():
    mesh = extract.extract_mesh(noise, position_as_color, BOX, 29)
    assert extract.is_closed(mesh.vertices, mesh.faces)


def test_gaps_are_filled_where_handles_need_more_faces_than_asked_for():
    with pytest.warns(UserWarning, match="gaps of up to .* cells are filled"):
        mesh = extract.extract_mesh(noise, position_as_color, BOX, 16, max_faces=400)
    assert extract.is_closed(mesh.vertices, mesh.faces)
    assert 380 <= len(mesh.faces) <= 400


def test_faces_are_kept_if_wide_gaps_are_filled_in_vain():
    with pytest.warns(UserWarning, match="keeps .* faces"):
        mesh = extract.extract_mesh(noise, position_as_color, BOX, 16, max_faces=100)
    assert extract.is_closed(mesh.vertices, mesh.faces)


def test_filled_gaps_leave_the_rest_as_it_was():
    far = sphere((0, 0, 0.2), 0.1)

    def plates(points):
        """Return two plates with a grid of bars between them, and a ball apart from them."""
        x, y, z = np.abs(points.T - np.float32([[0], [0], [-0.2]]))
        bars = np.hypot(*((points.T[:2] + 0.5) % 0.1 - 0.05)) - 0.02
        inner = np.minimum(np.abs(z - 0.06) - 0.02, np.maximum(bars, z - 0.06))
        return np.minimum(np.maximum(inner, np.maximum(x, y) - 0.4), far(points))

    with pytest.warns(UserWarning, match="filled"):
        mesh = extract.extract_mesh(plates, position_as_color, BOX, 48, max_faces=400)
    ball = mesh.vertices[mesh.vertices[:, 2] > 0.05]
    np.testing.assert_allclose(np.linalg.norm(ball - [0, 0, 0.2], axis=1), 0.1, atol=0.005)


def test_meshes_that_touch_at_a_vertex_or_an_edge_are_not_closed():
    corner = trimesh.creation.box()
    for shift in ([1, 1, 1], [1, 1, 0]):
        both = trimesh.util.concatenate([corner, corner.copy().apply_translation(shift)])
        both.merge_vertices()
        assert extract.is_closed(corner.vertices, corner.faces)
        assert not extract.is_closed(both.vertices, both.faces)


def test_decimated_sheets_do_not_cross():
    outer, inner = trimesh.creation.icosphere(3), trimesh.creation.icosphere(3, 0.95)
    inner.invert()
    shell = trimesh.util.concatenate([outer, inner])
    vertices, faces = extract.decimate(shell.vertices.astype(np.float32), shell.faces.astype(np.int32), 200)
    assert len(faces) <= 200 and not raycast.intersecting(vertices, faces).any()


def test_meshes_below_the_limit_are_not_decimated():
    assert len(extract.extract_mesh(sphere(), position_as_color, BOX, 16, max_faces=10**6).faces) == len(
        extract.extract_mesh(sphere(), position_as_color, BOX, 16).faces
    )


def test_too_few_faces_are_refused():
    with pytest.raises(ValueError, match="ask for more"):
        extract.extract_mesh(sphere(), position_as_color, BOX, 16, max_faces=2)


def test_smoothing_removes_roughness():
    def rough(points):
        return sphere()(points) + 0.01 * np.sin(90 * points).prod(-1)

    areas = []
    for smoothing in (0.0, 1.0):
        mesh = extract.extract_mesh(rough, position_as_color, BOX, 32, smoothing=smoothing)
        areas.append(trimesh.Trimesh(mesh.vertices, mesh.faces).area)
    assert areas[0] > 1.02 * areas[1] and areas[1] == pytest.approx(4 * np.pi * 0.3**2, rel=0.03)
