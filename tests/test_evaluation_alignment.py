"""Alignment undoes a known similarity, and only that."""

import dataclasses

import numpy as np
import pytest
import trimesh

from e3d_jax import structs
from e3d_jax.evaluation import alignment, metrics


@pytest.fixture(scope="module")
def chair():
    """A mesh without symmetry about z: a seat, a back and one arm."""
    parts = [
        trimesh.creation.box([0.4, 0.4, 0.1]),
        trimesh.creation.box([0.05, 0.4, 0.5]).apply_translation([-0.2, 0, 0.2]),
        trimesh.creation.box([0.3, 0.06, 0.2]).apply_translation([0, 0.2, 0.1]),
    ]
    shape = trimesh.util.concatenate(parts)
    vertices = np.asarray(shape.vertices, np.float32)
    return structs.Mesh(vertices, np.asarray(shape.faces, np.int32), np.full_like(vertices, 0.5))


@pytest.fixture(scope="module")
def moved_and_back(chair):
    move = alignment.Similarity(1.4, 2.0, np.array([0.2, -0.1, 0.3]))
    moved = dataclasses.replace(chair, vertices=move(chair.vertices).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "SAMPLES", 3000)
        return alignment.align(moved, chair)


def test_similarity_by_hand():
    moved = alignment.Similarity(2.0, np.pi / 2, np.array([0, 0, 1.0]))(np.array([[1.0, 0, 3]]))
    np.testing.assert_allclose(moved, [[0, 2, 7]], atol=1e-12)


def test_the_aligned_mesh_lies_on_the_ground_truth(chair, moved_and_back):
    assert metrics.surface_distances(moved_and_back[0], chair, 2000).chamfer() < 0.003


def test_scale_and_yaw_are_found(moved_and_back):
    assert moved_and_back[1].scale == pytest.approx(1 / 1.4, rel=0.01)
    assert moved_and_back[1].yaw == pytest.approx(-2.0, abs=0.02)


def test_faces_are_kept(chair, moved_and_back):
    assert moved_and_back[0].faces is chair.faces
