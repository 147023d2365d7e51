"""Sampling, normalization, fields and meshes of synthetic objects."""

import dataclasses

import jax
import numpy as np
import pytest

from e3d_jax.data import synthetic
from e3d_jax.data.synthetic import materials, objects, sample, shapes

# Compiling dominates: functions of points always get this many.
POINTS = 4096
# Of all meshes, for the same reason.
RESOLUTION = 64


def at_points(function):
    """Compile a function of points of an object once, for any number of points."""
    compiled = jax.jit(function)

    def call(one, points):
        points = np.asarray(points, np.float32)
        flat = points.reshape(-1, 3)
        padded = np.pad(flat, [(0, -len(flat) % POINTS), (0, 0)]).reshape(-1, POINTS, 3)
        values = np.concatenate([np.asarray(compiled(one, part)) for part in padded])[: len(flat)]
        return values.reshape((*points.shape[:-1], *values.shape[1:]))

    return call


sdf, albedo, occupancy = map(at_points, (synthetic.sdf, synthetic.albedo, synthetic.occupancy))


def leaves(tree):
    return jax.tree.leaves(tree)


def plain(parts) -> objects.ObjectParams:
    """Return an object of given parts in a fixed material, in its own frame."""
    rng = np.random.default_rng(0)
    return objects.ObjectParams(
        solids=shapes.pack(parts),
        materials=materials.palette(rng, np.array([0.8, 0.2, 0.1]), plain=1.0),
        lights=materials.random_lights(rng),
        ripple=np.array([0, 1], np.float32),
        world_from_object=np.eye(3, dtype=np.float32),
        center=np.zeros(3, np.float32),
        scale=np.ones((), np.float32),
    )


def distance(part, point) -> float:
    return float(sdf(plain([part]), point))


@pytest.fixture(scope="module")
def batch() -> objects.ObjectParams:
    return synthetic.sample_batch("test", 5, range(3))


def test_object_depends_on_split_seed_and_index_only():
    again = synthetic.sample_object("train", 3, 7)
    for a, b in zip(leaves(synthetic.sample_object("train", 3, 7)), leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("other", [("test", 3, 7), ("train", 4, 7), ("train", 3, 8)])
def test_split_seed_and_index_each_change_the_object(other):
    one, two = synthetic.sample_object("train", 3, 7), synthetic.sample_object(*other)
    assert not np.array_equal(one.materials.colors, two.materials.colors)


@pytest.mark.parametrize(("split", "seed", "index"), [("val", 0, 0), ("train", -1, 0), ("train", 0, -1)])
def test_unknown_sequences_are_refused(split, seed, index):
    with pytest.raises(ValueError, match="expected"):
        synthetic.sample_object(split, seed, index)


@pytest.mark.parametrize("name", sample.FAMILIES)
def test_every_family_fits_the_padded_arrays_and_the_cube(name):
    for seed in range(30):
        solids = shapes.pack(sample.FAMILIES[name].build(np.random.default_rng(seed)))
        present = np.asarray(solids.center)[:, 0] < 10
        assert all(np.isfinite(leaf).all() for leaf in leaves(solids))
        assert (np.asarray(solids.radius)[present] > 0).all()
        assert (np.abs(np.asarray(solids.center)[present]) < 1.5).all()


def test_symmetries_beyond_nine_are_refused():
    with pytest.raises(ValueError, match="10"):
        shapes.mirror_lines(10)


def test_too_many_parts_are_refused():
    with pytest.raises(ValueError, match="17 parts"):
        shapes.pack([shapes.box((0, 0, 0), (1, 1, 1))] * 17)


def test_distance_to_a_ball():
    assert distance(shapes.ellipsoid((0.1, 0, 0), (0.5, 0.5, 0.5)), (1.1, 0, 0)) == pytest.approx(0.5, abs=1e-4)


def test_distance_to_a_box_face_and_rounded_corner():
    box = shapes.box((0, 0, 0), (0.3, 0.4, 0.5), 0.1)
    assert distance(box, (0.8, 0, 0)) == pytest.approx(0.5, abs=1e-4)
    corner = 0.1 * (1 / np.sqrt(3)) + np.array([0.2, 0.3, 0.4])
    assert distance(box, corner) == pytest.approx(0, abs=1e-4)


def test_distance_to_a_cylinder():
    cylinder = shapes.turned((0, 0, 0), 0.3, 0.5)
    assert distance(cylinder, (0.6, 0.8, 0)) == pytest.approx(0.7, abs=1e-4)
    assert distance(cylinder, (0, 0, 0.9)) == pytest.approx(0.4, abs=1e-4)


def test_distance_to_a_torus():
    assert distance(shapes.torus((0, 0, 0), 0.5, 0.1), (0, 0.3, 0)) == pytest.approx(0.1, abs=1e-4)


def test_capsule_has_its_two_radii():
    bar = shapes.capsule((0, 0, -0.5), (0, 0, 0.5), 0.3, 0.1)
    assert distance(bar, (0.3, 0, -0.5)) == pytest.approx(0, abs=2e-3)
    assert distance(bar, (0.1, 0, 0.5)) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("order", range(3, 10))
def test_prism_has_its_number_of_sides(order):
    prism = plain([shapes.turned((0, 0, 0), 0.3, 0.5, sides=order)])
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    ring = sdf(prism, 0.305 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1))
    outside = ring > 0
    assert (outside & ~np.roll(outside, 1)).sum() == order


def test_repeated_part_is_everywhere_around():
    ring = plain([shapes.ellipsoid((0.5, 0, 0), (0.1, 0.1, 0.1), repeat=5)])
    angle = 2 * np.pi * np.arange(5) / 5
    centers = 0.5 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
    np.testing.assert_allclose(sdf(ring, centers), -0.1, atol=1e-3)


def test_cut_removes():
    parts = [shapes.box((0, 0, 0), (0.5, 0.5, 0.5)), shapes.turned((0, 0, 0), 0.2, 2.0, cut=True)]
    np.testing.assert_array_equal(occupancy(plain(parts), np.array([[0, 0, 0], [0.35, 0, 0]])), [False, True])


@pytest.mark.slow
def test_normalized_objects_touch_the_ball_and_are_centered(batch):
    for i in range(3):
        vertices = synthetic.ground_truth_mesh(objects.take(batch, i), RESOLUTION).vertices
        np.testing.assert_allclose(vertices.max(0) + vertices.min(0), 0, atol=0.03)
        assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(0.5, abs=0.015)


def test_mesh_encloses_its_volume_with_faces_outward(batch):
    one = objects.take(batch, 0)
    mesh = synthetic.ground_truth_mesh(one, RESOLUTION)
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 40)] * 3), -1)
    assert volume == pytest.approx(occupancy(one, grid).mean(), rel=0.1)


def test_mesh_of_an_object_out_of_sight_is_refused():
    far = dataclasses.replace(plain([shapes.box((0, 0, 0), (0.2, 0.2, 0.2))]), center=np.full(3, 9.0, np.float32))
    with pytest.raises(ValueError, match="normalize"):
        synthetic.ground_truth_mesh(far, RESOLUTION)


def test_field_never_leads_a_ray_far_past_the_surface(batch):
    """Steps of the field's length stay outside or barely enter."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (4000, 3)).astype(np.float32)
    step = rng.normal(size=points.shape)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    for i in range(3):
        one = objects.take(batch, i)
        free = sdf(one, points)
        reached = sdf(one, points + step * free[:, None])
        assert np.quantile(reached[free > 0], 0.001) > -0.03


def test_albedo_is_the_color_of_the_nearest_part():
    parts = [shapes.ellipsoid((0, 0, 0), (0.3,) * 3), shapes.ellipsoid((0, 0, 0.6), (0.3,) * 3, material=3)]
    colors = albedo(plain(parts), np.array([[0, 0, -0.3], [0, 0, 0.9]]))
    np.testing.assert_allclose(colors[0], [0.8, 0.2, 0.1], atol=0.1)
    assert colors[1].max() < 0.25
