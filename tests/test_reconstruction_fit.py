"""The start of a fit: the visual hull, the views on the device, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import structs
from e3d_jax.reconstruction import batches, fields, fit, hull, occupancy
from tests import sphere

# With 8 views, one may be wrong.
TOLERANT = dataclasses.replace(sphere.TINY, hull_votes=0.15)


@pytest.fixture(scope="module")
def views() -> structs.ViewSet:
    return sphere.views()


@pytest.fixture(scope="module")
def start(views) -> tuple[fields.Field, batches.Pixels]:
    return fit.start(views, TOLERANT, jax.random.key(0))


def with_cameras(views, **changes):
    return dataclasses.replace(views, cameras=dataclasses.replace(views.cameras, **changes))


def test_hull_of_a_sphere():
    views = sphere.views(64, 16)
    base, box = hull.carve(views.rgba[..., 3], views.cameras, half_extent=0.5, cells=32, votes=0)
    points = np.asarray(fields.lattice(box, base.shape))
    equator = (np.abs(points[..., 2]) < 0.02) & (np.linalg.norm(points, axis=-1) > 0.15)
    np.testing.assert_allclose(base[equator], np.linalg.norm(points[equator], axis=-1) - sphere.RADIUS, atol=0.02)
    assert base.min() < -0.25


@pytest.mark.parametrize(("votes", "survives"), [(0, False), (1, True)])
def test_one_bad_mask_has_a_vote_not_a_veto(views, votes, survives):
    alpha = views.rgba[..., 3].copy()
    alpha[3] = 0
    alpha[3, 0, 0] = 1  # something, but not the object

    def carve():
        return hull.carve(alpha, views.cameras, half_extent=0.55, cells=24, votes=votes)

    if survives:
        assert carve()[0].min() < -0.1
    else:
        with pytest.raises(ValueError, match="share no object"):
            carve()


@pytest.mark.parametrize("kind", ["empty", "another"])
def test_a_view_of_something_else_is_left_out(views, start, kind):
    rgba = views.rgba.copy()
    rgba[4] = np.roll(rgba[4], 12, 0) * [1, 1, 1, kind == "another"]
    with pytest.warns(UserWarning, match="views 4 show a different shape"):
        field, pixels = fit.start(dataclasses.replace(views, rgba=rgba), TOLERANT, jax.random.key(0))
    np.testing.assert_array_equal(pixels.weights, np.arange(8) != 4)
    points = jnp.asarray(np.random.default_rng(0).uniform(-0.3, 0.3, (200, 3)), jnp.float32)
    distance, expected = (fields.interpolate(each.base, each.box, points) for each in (field, start[0]))
    np.testing.assert_allclose(distance, expected, atol=0.06)


def test_one_view_is_enough_but_warns(views):
    one = dataclasses.replace(
        views,
        rgba=views.rgba[:1],
        cameras=views.cameras[[0]],
        normal_views=np.arange(1),
        normals=views.normals[:1],
        anchors=np.arange(1),
    )
    with pytest.warns(UserWarning, match="one view"):
        field, _ = fit.start(one, TOLERANT, jax.random.key(0))
    assert np.isfinite(field.base).all()


def test_soft_masks_are_sharpened(views):
    soft = dataclasses.replace(views, rgba=views.rgba * np.float32([1, 1, 1, 0.2]) + np.float32([0, 0, 0, 0.4]))
    pixels = batches.load(soft, np.ones(8), contrast=5.0)
    np.testing.assert_allclose(pixels.rgba[..., 3], views.rgba[..., 3].ravel(), atol=1e-5)


def test_occupancy_cache_holds_distances():
    box = np.array([[-0.5] * 3, [0.5] * 3], np.float32)
    cached = occupancy.cache(lambda points: points[:, 0], box, 4)
    np.testing.assert_allclose(cached[:, 2, 2, 0], [-0.5, -0.25, 0, 0.25, 0.5])


def test_views_can_be_weighted_by_their_azimuth(views, start):
    favored = dataclasses.replace(TOLERANT, favor_front=True)
    _, pixels = fit.start(views, favored, jax.random.key(0))
    np.testing.assert_allclose(pixels.weights[:3], [1.0, 0.8, 0.3])
    np.testing.assert_array_equal(start[1].weights, np.ones(8))


def test_empty_masks_are_refused(views):
    empty = dataclasses.replace(views, rgba=views.rgba * np.float32([1, 1, 1, 0]))
    with pytest.raises(ValueError, match="no view shows an object"):
        fit.fit(empty, TOLERANT, jax.random.key(0))


def test_views_that_share_no_object_are_refused(views):
    rgba = np.zeros_like(views.rgba)
    rgba[::2, :8, :8] = rgba[1::2, -8:, -8:] = 1
    with pytest.raises(ValueError, match="share no object"):
        fit.fit(dataclasses.replace(views, rgba=rgba), TOLERANT, jax.random.key(0))


def test_cameras_that_look_elsewhere_are_named(views):
    poses = np.array(views.cameras.world_from_cam)
    poses[3, :3, :3] = poses[3, :3, :3] @ np.diag([-1.0, 1, -1])  # turned around
    with pytest.raises(ValueError, match="cameras of views 3 do not look at the object"):
        fit.fit(with_cameras(views, world_from_cam=poses), TOLERANT, jax.random.key(0))


def test_a_pose_that_is_not_finite_is_named(views):
    poses = np.array(views.cameras.world_from_cam)
    poses[2, 0, 3] = np.nan
    with pytest.raises(ValueError, match="poses of views 2 are not finite"):
        fit.fit(with_cameras(views, world_from_cam=poses), TOLERANT, jax.random.key(0))


def test_pictures_get_rays_once_their_cameras_are_known(views):
    pictures = [np.ones((48, 48, 4), np.float32), np.ones((20, 20, 4), np.float32)]
    pixels = batches.load(views, np.ones(8), contrast=1.0, pictures=pictures)
    box = jnp.array([[-0.4] * 3, [0.4] * 3])
    cache = occupancy.Cache(jnp.zeros((3, 3, 3, 1)), box, jnp.float32(0.1))

    @jax.jit
    def drawn(pixels):
        return batches.sample(jax.random.key(1), pixels, jnp.float32(0.15), cache, TOLERANT)

    assert drawn(pixels).view.max() == 7
    camera = dataclasses.replace(views.cameras[[2]], focal=np.full((1, 2), 77, np.float32), width=48, height=48)
    batch = drawn(batches.join(pixels, [camera, None]))
    assert set(np.unique(batch.view)) == set(range(10)), "views differ in size"
    np.testing.assert_array_equal(batch.weights, batch.view != 9)
    ours = np.asarray(batch.view) == 8
    assert (np.asarray(batch.rgba)[ours] == 1).all() and np.asarray(batch.anchor)[ours].all()
    origins = np.asarray(batch.rays.origins)[ours]
    np.testing.assert_allclose(origins - views.cameras.world_from_cam[2, :3, 3], 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(batch.across)[ours, 0], axis=-1).max(), 1 / 77, rtol=1e-3)
