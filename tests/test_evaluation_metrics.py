"""Metrics of images and meshes, against values computed by hand."""

import dataclasses
import functools

import numpy as np
import pytest
import trimesh
from scipy import ndimage

from e3d_jax import structs
from e3d_jax.evaluation import metrics


def as_mesh(shape, offset=(0, 0, 0)):
    vertices = (np.asarray(shape.vertices) + offset).astype(np.float32)
    return structs.Mesh(vertices, np.asarray(shape.faces, np.int32), np.full_like(vertices, 0.5))


def box(extents, offset=(0, 0, 0)):
    return as_mesh(trimesh.creation.box(extents), offset)


def sphere(radius, offset=(0, 0, 0)):
    return as_mesh(trimesh.creation.icosphere(3, radius), offset)


def flat(*triangles):
    vertices = np.float32(triangles).reshape(-1, 3)
    return structs.Mesh(vertices, np.arange(len(vertices), dtype=np.int32).reshape(-1, 3), np.zeros_like(vertices))


# -- Images -----------------------------------------------------------------------------------------------------------


def test_psnr_by_hand():
    assert metrics.psnr(np.zeros((4, 4, 3)), np.full((4, 4, 3), 0.1)) == pytest.approx(20)


def test_psnr_of_equal_images_is_finite():
    assert metrics.psnr(np.ones((4, 4, 3)), np.ones((4, 4, 3))) == pytest.approx(100)


def test_ssim_of_equal_images_is_1():
    image = np.random.default_rng(0).random((16, 16, 3))
    assert metrics.ssim(image, image) == pytest.approx(1)


def test_ssim_of_flat_images_is_their_luminance_term():
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert metrics.ssim(np.full((16, 16, 3), 0.2), np.full((16, 16, 3), 0.6)) == pytest.approx(expected, rel=1e-6)


def test_ssim_by_its_definition():
    a, b = np.random.default_rng(0).random((2, 24, 24))
    mean = functools.partial(ndimage.gaussian_filter, sigma=1.5, truncate=3.5)  # 11 x 11 window
    variance = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
    luminance = (2 * mean(a) * mean(b) + 1e-4) / (mean(a) ** 2 + mean(b) ** 2 + 1e-4)
    structure = (2 * (mean(a * b) - mean(a) * mean(b)) + 9e-4) / (variance + 9e-4)
    expected = (luminance * structure)[5:-5, 5:-5].mean()
    assert metrics.ssim(a[..., None], b[..., None]) == pytest.approx(expected, rel=1e-6)


def test_normal_angle_counts_the_mask_only():
    pred = np.float32([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    gt = np.float32([[0, 0, 1], [0, 0, 1], [0, -1, 0]])
    assert metrics.normal_angle(pred, gt, np.array([True, True, False])) == pytest.approx(45)


def test_a_missing_normal_counts_like_a_random_guess():
    gt = np.array([[0.0, 0, 1]])
    assert metrics.normal_angle(np.zeros((1, 3)), gt, np.array([True])) == pytest.approx(90)


def test_normal_angle_of_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="mask"):
        metrics.normal_angle(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(2, bool))


def test_mask_iou_by_hand():
    assert metrics.mask_iou(np.array([[1.0, 1, 0]]), np.array([[0, 1.0, 1]])) == pytest.approx(1 / 3)


# -- Surfaces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.25, 0.25, 0.5), 0.5),  # above the face
        ((0.5, -1, 0), 1),  # beside an edge
        ((-3, -4, 0), 5),  # beyond a corner
        ((1, 1, 0), np.sqrt(0.5)),  # beside the long edge
        ((0.2, 0.3, 0), 0),  # on the face
    ],
)
def test_point_triangle_distance_by_hand(point, expected):
    triangle = np.array([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    assert metrics.point_triangle_distance(np.array([point], float), triangle)[0] == pytest.approx(expected, abs=1e-9)


def test_mesh_is_at_distance_0_of_itself():
    distances = metrics.surface_distances(sphere(0.4), sphere(0.4), 2000)
    assert distances.chamfer() < 1e-6
    assert distances.fscore(0.001) == 1


def test_chamfer_of_nested_spheres_is_the_gap():
    distances = metrics.surface_distances(sphere(0.3), sphere(0.4), 2000)
    assert distances.chamfer() == pytest.approx(0.1, rel=0.02)


def test_chamfer_is_the_mean_of_both_directions():
    small = flat([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    both = flat([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 2], [1, 0, 2], [0, 1, 2]])
    distances = metrics.surface_distances(small, both, 2000)
    assert distances.pred_to_gt.mean() == pytest.approx(0, abs=1e-6)
    assert distances.chamfer() == pytest.approx(0.5, rel=0.01)


def test_fscore_is_the_harmonic_mean():
    distances = metrics.SurfaceDistances(np.array([0.0, 1]), np.zeros(2), np.ones(2), np.ones(2))
    assert distances.fscore(0.5) == pytest.approx(2 * 0.5 / 1.5)


def test_thin_faces_are_found():
    sliver = flat([[0, 0, 0], [1, 0, 0], [1, 1e-4, 0]], [[0, 5, 0], [40, 5, 0], [0, 45, 0]])
    probe = flat([[0.99, 0, 0.1], [1, 0, 0.1], [1, 1e-4, 0.1]])
    assert metrics.surface_distances(probe, sliver, 500).pred_to_gt.max() == pytest.approx(0.1, rel=0.01)


def test_normal_consistency_of_a_tilted_plane():
    level = flat([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    tilted = flat([[0, 0, 0], [0.5, 0, np.sqrt(0.75)], [0, 1, 0]])
    assert metrics.surface_distances(level, tilted, 100).normal_consistency() == pytest.approx(0.5, abs=1e-6)


def test_normal_consistency_ignores_the_winding():
    mesh = sphere(0.4)
    turned = dataclasses.replace(mesh, faces=mesh.faces[:, ::-1])
    assert metrics.surface_distances(mesh, turned, 1000).normal_consistency() == pytest.approx(1, abs=1e-3)


def test_samples_follow_the_area():
    mesh = flat([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 1], [3, 0, 1], [0, 1, 1]])
    _, faces = metrics.sample_surface(mesh, 1000, np.random.default_rng(0))
    assert (faces == 1).mean() == pytest.approx(0.75, abs=0.002)


def test_mesh_without_surface_is_an_error():
    with pytest.raises(ValueError, match="no surface"):
        metrics.surface_distances(flat([[0, 0, 0]] * 3), sphere(0.4), 100)


# -- Volumes ----------------------------------------------------------------------------------------------------------


def test_iou_of_shifted_boxes():
    iou = metrics.volume_iou(box([0.5, 0.5, 0.5]), box([0.5, 0.5, 0.5], (0.25, 0, 0)), 32)
    assert iou == pytest.approx(1 / 3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_iou_sees_every_axis(axis):
    offset = np.zeros(3)
    offset[axis] = 0.125
    assert metrics.volume_iou(box([0.5, 0.5, 0.5]), box([0.5, 0.5, 0.5], offset), 32) == pytest.approx(3 / 5)


def test_iou_of_a_mesh_and_its_field():
    def inside(points):
        return np.linalg.norm(points, axis=-1) < 0.4

    assert metrics.volume_iou(sphere(0.4), inside, 48) > 0.97


def test_iou_of_disjoint_solids_is_0():
    assert metrics.volume_iou(sphere(0.1, (0.3, 0, 0)), sphere(0.1, (-0.3, 0, 0)), 32) == 0


def test_iou_counts_what_leaves_the_unit_cube():
    assert metrics.volume_iou(box([1, 1, 1]), box([2, 1, 1]), 16) == pytest.approx(0.5)


def test_overlapping_parts_are_filled():
    a, b = box([0.5, 0.5, 0.5]), box([0.5, 0.5, 0.5], (0.25, 0, 0))
    union = structs.Mesh(
        np.concatenate([a.vertices, b.vertices]), np.concatenate([a.faces, b.faces + 8]), np.zeros((16, 3), np.float32)
    )
    assert metrics.volume_iou(union, box([0.75, 0.5, 0.5], (0.125, 0, 0)), 32) == 1


def test_cavities_are_hollow():
    outer, inner = box([0.8, 0.8, 0.8]), box([0.4, 0.4, 0.4])
    hollow = structs.Mesh(
        np.concatenate([outer.vertices, inner.vertices]),
        np.concatenate([outer.faces, inner.faces[:, ::-1] + 8]),
        np.zeros((16, 3), np.float32),
    )
    assert metrics.volume_iou(hollow, outer, 40) == pytest.approx(1 - 0.125)


def test_open_mesh_is_filled_along_the_axes_that_close():
    closed = box([0.5, 0.5, 0.5])
    corners = closed.vertices[closed.faces]
    opened = np.isclose(corners[..., 2], 0.25).all(1) | np.isclose(corners[..., 0], 0.25).all(1)
    assert metrics.volume_iou(dataclasses.replace(closed, faces=closed.faces[~opened]), closed, 32) == 1
