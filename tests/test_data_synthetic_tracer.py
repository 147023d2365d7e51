"""Pictures of synthetic objects, against a ball whose picture is known, and against their own fields."""

import dataclasses

import jax
import numpy as np
import pytest

from e3d_jax import cameras
from e3d_jax.data import synthetic
from e3d_jax.data.synthetic import objects, shapes

SIZE = 48


@pytest.fixture(scope="module")
def drawn() -> tuple[objects.ObjectParams, synthetic.Images]:
    """A ball of radius 0.4 and three sampled objects, rendered together."""
    one = synthetic.sample_object("test", 0, 0)
    solids = shapes.pack([shapes.ellipsoid((0, 0, 0), (0.4, 0.4, 0.4))])
    flat = dataclasses.replace(one, solids=solids, ripple=np.array([0, 1], np.float32))
    sampled = synthetic.sample_batch("test", 1, range(3))
    batch = jax.tree.map(lambda a, b: np.concatenate([a[None], b]), flat, sampled)
    return batch, jax.tree.map(np.asarray, synthetic.render(batch, cameras.ring(SIZE, 4)))


@pytest.fixture(scope="module")
def ball(drawn) -> tuple[objects.ObjectParams, synthetic.Images]:
    return jax.tree.map(lambda a: a[:1], drawn)


def test_shapes_of_images(ball):
    images = ball[1]
    assert images.rgba.shape == (1, 4, SIZE, SIZE, 4)
    assert images.normals.shape == (1, 4, SIZE, SIZE, 3)
    assert images.depth.shape == (1, 4, SIZE, SIZE)


def test_coverage_is_the_area_of_the_disc(ball):
    # A ball of radius r at distance d covers a disc of radius f r / sqrt(d^2 - r^2).
    radius = cameras.FOCAL * SIZE * 0.4 / np.sqrt(1.5**2 - 0.4**2)
    np.testing.assert_allclose(ball[1].rgba[..., 3].sum((2, 3)), np.pi * radius**2, rtol=0.01)


def test_depth_of_the_nearest_point(ball):
    assert ball[1].depth[0, 0, SIZE // 2, SIZE // 2] == pytest.approx(1.1, abs=2e-3)


def test_normals_point_from_the_centre_in_the_world_frame(ball):
    images, rays = ball[1], cameras.image_rays(cameras.ring(SIZE, 4))
    directions = np.asarray(rays.directions)
    forward = cameras.ring(SIZE, 4).world_from_cam[:, None, None, :3, 2]
    along = images.depth[0] / (directions * forward).sum(-1)
    points = np.asarray(rays.origins) + along[..., None] * directions
    inside = images.rgba[0, ..., 3] == 1
    np.testing.assert_allclose(images.normals[0][inside], points[inside] / 0.4, atol=0.02)


def test_background_is_white_and_without_normals(ball):
    images = ball[1]
    empty = images.rgba[..., 3] == 0
    assert empty.any()
    assert (images.rgba[..., :3][empty] == 1).all()
    assert (images.normals[empty] == 0).all()
    assert (images.depth[empty] == 0).all()


def test_edges_are_smooth(ball):
    alpha = ball[1].rgba[..., 3]
    assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 4 * SIZE


def test_light_is_fixed_in_the_world(ball):
    """Seen from two sides, the top is brighter than the bottom by the same shading of the same albedo."""
    batch, images = ball
    toward_camera = images.rgba[0, :, SIZE // 2, SIZE // 2, :3].mean(-1)
    directions, colors = batch.lights.directions[0], batch.lights.colors[0].mean(-1)
    azimuth = cameras.azimuths(4)
    normals = np.stack([np.cos(azimuth), np.sin(azimuth), 0 * azimuth], -1)
    light = batch.lights.ambient[0].mean() + (colors * (0.5 + 0.5 * normals @ directions.T)).sum(-1)
    points = 0.4 * normals
    albedo = np.asarray(synthetic.albedo(objects.take(batch, 0), points)).mean(-1)
    np.testing.assert_allclose(toward_camera, albedo * light, atol=0.05)


def test_silhouettes_agree_with_the_field(drawn):
    rays = cameras.image_rays(cameras.ring(SIZE, 4))
    t = np.linspace(0.97, 2.03, 250)[:, None, None, None, None]
    points = np.asarray(rays.origins) + t * np.asarray(rays.directions)
    sdf = jax.jit(synthetic.sdf)
    for i in range(1, 4):
        hit = np.asarray(sdf(objects.take(drawn[0], i), points)).min(0) < 0
        alpha = drawn[1].rgba[i, ..., 3]
        assert (hit != (alpha > 0.5)).mean() < 0.01
        assert alpha.mean() == pytest.approx(hit.mean(), rel=0.06)


def test_a_picture_may_end_inside_a_tile(ball):
    # The right and lower pixels of a ball's picture are the left and upper ones.
    images = jax.tree.map(np.asarray, synthetic.render(ball[0], cameras.ring(SIZE - 2, 4)))
    alpha = images.rgba[..., 3]
    np.testing.assert_allclose(alpha, alpha[..., ::-1], atol=0.02)


def test_an_object_is_drawn_alike_beside_others(drawn):
    params, images = drawn
    alone = synthetic.render(jax.tree.map(lambda x: x[-1:], params), cameras.ring(SIZE, 4))
    np.testing.assert_allclose(alone.rgba[0], images.rgba[-1], atol=1e-4)


def test_generated_examples_do_not_depend_on_the_batch():
    whole = list(synthetic.generate("test", 2, 4, 3, size=12, batch=2))
    alone = list(synthetic.generate("test", 2, 5, 1, size=12, batch=2))
    assert [example.index for example in whole] == [4, 5, 6]
    assert whole[0].rgba.shape == (32, 12, 12, 4)
    assert whole[0].normals.shape == (8, 12, 12, 4)
    np.testing.assert_allclose(whole[1].rgba.astype(int), alone[0].rgba.astype(int), atol=1)


def test_generate_refuses_an_empty_picture():
    with pytest.raises(ValueError, match="at least 1"):
        next(synthetic.generate("test", 0, 0, 1, size=0))
