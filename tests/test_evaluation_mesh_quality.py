"""What is wrong with a mesh, counted."""

import numpy as np
import pytest
import trimesh

from e3d_jax import structs
from e3d_jax.evaluation import mesh_quality, visible


def mesh_of(vertices, faces, texture=None):
    vertices = np.asarray(vertices, np.float32)
    return structs.Mesh(vertices, np.asarray(faces, np.int32), np.full_like(vertices, 0.5), texture)


def ball(radius=0.4):
    shape = trimesh.creation.icosphere(2, radius)
    return mesh_of(shape.vertices, shape.faces)


def joined(*meshes):
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    faces = [mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]
    return mesh_of(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def without_faces(mesh, count):
    return mesh_of(mesh.vertices, mesh.faces[count:])


def test_a_ball_has_no_defect():
    assert mesh_quality.quality(ball()) == {
        "watertight": 1,
        "boundary_edges": 0,
        "nonmanifold_edges": 0,
        "nonmanifold_vertices": 0,
        "components": 1,
        "degenerate_faces": 0,
        "self_intersecting_faces": 0,
        "faces": 320,
    }


def test_a_hole_has_boundary_edges():
    quality = mesh_quality.quality(without_faces(ball(), 1))
    assert quality["watertight"] == 0 and quality["boundary_edges"] == 3


def test_a_face_that_is_turned_over_is_not_manifold():
    shape = ball()
    shape.faces[0] = shape.faces[0, ::-1]
    quality = mesh_quality.quality(shape)
    assert quality["watertight"] == 0 and quality["nonmanifold_edges"] == 3


def crossing_triangles():
    """Two triangles; an edge of the second goes through the first."""
    return mesh_of([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.2, 0.2, -1], [0.2, 0.2, 1], [5, 5, 0]], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_both_faces_that_cross_are_counted(order):
    mesh = crossing_triangles()
    assert mesh_quality.quality(mesh_of(mesh.vertices, mesh.faces[order]))["self_intersecting_faces"] == 2


def test_both_faces_of_an_edge_that_crosses_are_counted():
    mesh = crossing_triangles()
    fan = mesh_of(np.vstack([mesh.vertices, [[-1, -1, 0.5]]]), [[0, 1, 2], [3, 4, 5], [4, 3, 6]])
    assert mesh_quality.quality(fan)["self_intersecting_faces"] == 3


def test_balls_cross_only_if_they_overlap():
    apart = joined(ball(), ball(0.2))
    moved = ball()
    moved.vertices[:, 0] += 0.3
    assert mesh_quality.quality(apart)["self_intersecting_faces"] == 0
    assert 20 < mesh_quality.quality(joined(ball(), moved))["self_intersecting_faces"] < 200


def test_vertices_at_one_place_are_one():
    shape = ball()
    apart = mesh_of(shape.vertices[shape.faces].reshape(-1, 3), np.arange(shape.faces.size).reshape(-1, 3))
    assert mesh_quality.quality(apart)["watertight"] == 1


def test_parts_are_counted():
    assert mesh_quality.quality(joined(ball(0.4), ball(0.2)))["components"] == 2


def test_cones_that_touch_in_their_tips_are_not_manifold_there():
    tetrahedron = np.array([[0, 0, 0], [1, 0, 1], [0, 1, 1], [-1, -1, 1]])
    faces = [[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]]
    quality = mesh_quality.quality(joined(mesh_of(tetrahedron, faces), mesh_of(-tetrahedron, np.fliplr(faces))))
    assert quality["nonmanifold_vertices"] == 1 and quality["watertight"] == 1


def test_three_faces_at_an_edge_are_not_manifold():
    vertices = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]]
    assert mesh_quality.quality(mesh_of(vertices, [[0, 1, 2], [1, 0, 3], [0, 1, 4]]))["nonmanifold_edges"] == 1


def test_thin_faces_are_degenerate():
    vertices = [[0, 0, 0], [1, 0, 0], [0.5, 1e-6, 0], [0.5, 1, 0]]
    assert mesh_quality.quality(mesh_of(vertices, [[0, 1, 2], [0, 2, 3]]))["degenerate_faces"] == 1


def textured(*triangles):
    texture = structs.Texture(np.zeros((64, 64, 3), np.float32), np.asarray(triangles, np.float32))
    return mesh_of(np.eye(3), [[0, 1, 2]] * len(triangles), texture)


LOWER, UPPER = [[0, 0], [1, 0], [0, 1]], [[1, 0], [1, 1], [0, 1]]


def test_an_atlas_without_gaps_wastes_and_overlaps_nothing():
    quality = mesh_quality.quality(textured(LOWER, UPPER))
    assert quality["uv_overlap"] == 0 and quality["texels_wasted"] == pytest.approx(0, abs=0.03)


def test_unused_texels_are_wasted():
    assert mesh_quality.quality(textured(LOWER))["texels_wasted"] == pytest.approx(0.5, abs=0.02)


def test_faces_that_share_texels_overlap():
    assert mesh_quality.quality(textured(LOWER, LOWER[::-1]))["uv_overlap"] == 1


def test_a_mesh_without_faces_is_an_error():
    with pytest.raises(ValueError, match="no faces"):
        mesh_quality.quality(mesh_of(np.eye(3), np.zeros((0, 3))))


def test_a_ball_is_visible_and_one_inside_it_is_not():
    shape = joined(ball(0.4), ball(0.2))
    seen = visible.visible(np.asarray(shape.vertices, np.float64), shape)
    np.testing.assert_array_equal(seen, np.arange(len(seen)) < len(seen) // 2)
