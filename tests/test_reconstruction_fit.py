"""A sphere from a few tiny views; the hull; errors."""

import dataclasses

import jax
import numpy as np
import pytest

from e3d_jax import cameras, structs
from e3d_jax.reconstruction import fit, hull, occupancy, pipeline

RADIUS = 0.3
TINY = fit.FitConfig(
    steps=60,
    steps_per_chunk=30,
    rays=128,
    samples=12,
    candidates=32,
    random_points=64,
    hull_cells=24,
    cache_cells=16,
    levels=(8, 16),
    color_levels=(8,),
    first_levels=1,
    hidden=16,
)


def sphere_views(size=32, num_views=8) -> structs.ViewSet:
    """Exact views of a red sphere."""
    ring = cameras.ring(size, num_views)
    rays = cameras.image_rays(ring)
    origins, directions = np.asarray(rays.origins), np.asarray(rays.directions)
    along = -(origins * directions).sum(-1)
    miss = (origins**2).sum(-1) - along**2
    hit = miss < RADIUS**2
    depth = along - np.sqrt(np.maximum(RADIUS**2 - miss, 0))
    normals = np.where(hit[..., None], (origins + depth[..., None] * directions) / RADIUS, 0)
    rgba = np.concatenate([np.where(hit[..., None], [0.8, 0.2, 0.1], 1.0), hit[..., None]], -1)
    return structs.ViewSet(
        rgba=rgba.astype(np.float32),
        cameras=ring,
        normal_views=np.arange(num_views),
        normals=normals.astype(np.float32),
        anchors=np.arange(num_views),
    )


def inside(mesh, points):
    import trimesh

    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).contains(points)


@pytest.fixture(scope="module")
def sphere():
    """The mesh and the losses after each chunk."""
    history = []
    mesh = pipeline.reconstruct(
        sphere_views(), TINY, jax.random.key(0), lambda done, terms: history.append((done, terms)), resolution=32
    )
    return mesh, history


def test_sphere_volume(sphere):
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (4000, 3))
    truth, found = np.linalg.norm(points, axis=1) < RADIUS, inside(sphere[0], points)
    assert (truth & found).sum() / (truth | found).sum() > 0.9


def test_sphere_color(sphere):
    np.testing.assert_allclose(np.median(sphere[0].colors, 0), [0.8, 0.2, 0.1], atol=0.1)


def test_progress_reports_every_chunk(sphere):
    assert [done for done, _ in sphere[1]] == [30, 60]
    assert sphere[1][1][1]["color"] < sphere[1][0][1]["color"]


def test_views_without_normal_maps_fit():
    views = sphere_views()
    bare = dataclasses.replace(views, normal_views=np.zeros(0, int), normals=np.zeros((0, 32, 32, 3), np.float32))
    field = fit.fit(bare, TINY, jax.random.key(0))
    assert np.isfinite(field.base).all()


def test_hull_of_a_sphere():
    views = sphere_views(64, 16)
    points = np.array([[0.0, 0, 0], [0.2, 0, 0], [0.4, 0, 0], [0, 0.35, 0.0]])
    distance = hull.hull_distance(views.rgba[..., 3], views.cameras, points, votes=0)
    np.testing.assert_allclose(distance[1:], [-0.1, 0.1, 0.05], atol=0.02)
    assert distance[0] < -0.25


def test_one_bad_mask_does_not_carve_the_hull():
    views = sphere_views()
    alpha = views.rgba[..., 3].copy()
    alpha[3] = 0
    center = np.zeros((1, 3))
    assert hull.hull_distance(alpha, views.cameras, center, votes=0)[0] > 0
    assert hull.hull_distance(alpha, views.cameras, center, votes=1)[0] < 0


def test_occupancy_cache_holds_distances():
    box = np.array([[-0.5] * 3, [0.5] * 3], np.float32)
    cached = occupancy.cache(lambda points: points[:, 0], box, 4)
    np.testing.assert_allclose(cached[:, 2, 2, 0], [-0.5, -0.25, 0, 0.25, 0.5])


def test_empty_masks_are_refused():
    views = sphere_views()
    empty = dataclasses.replace(views, rgba=views.rgba * np.float32([1, 1, 1, 0]))
    with pytest.raises(ValueError, match="no view shows an object"):
        fit.fit(empty, TINY, jax.random.key(0))


def test_views_that_share_no_object_are_refused():
    views = sphere_views()
    rgba = np.zeros_like(views.rgba)
    rgba[::2, :8, :8] = rgba[1::2, -8:, -8:] = 1
    with pytest.raises(ValueError, match="share no object"):
        fit.fit(dataclasses.replace(views, rgba=rgba), TINY, jax.random.key(0))


def test_steps_fill_chunks():
    with pytest.raises(ValueError, match="multiple"):
        fit.fit(sphere_views(), dataclasses.replace(TINY, steps=45), jax.random.key(0))
