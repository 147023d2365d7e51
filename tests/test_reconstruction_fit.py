"""A sphere from a few tiny views; the hull; errors."""

import dataclasses

import jax
import numpy as np
import pytest

from e3d_jax import cameras, structs
from e3d_jax.reconstruction import batches, fields, fit, hull, occupancy, pipeline

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
    surface = pipeline.SurfaceConfig(resolution=32, max_faces=1000, texture_size=64)
    mesh = pipeline.reconstruct(
        sphere_views(), TINY, jax.random.key(0), lambda done, terms, _: history.append((done, terms)), surface=surface
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


@pytest.mark.slow
def test_views_without_normal_maps_fit():
    views = sphere_views()
    bare = dataclasses.replace(views, normal_views=np.zeros(0, int), normals=np.zeros((0, 32, 32, 3), np.float32))
    field = fit.fit(bare, TINY, jax.random.key(0))
    assert np.isfinite(field.base).all()


def test_pictures_that_are_out_of_place_are_found():
    views = sphere_views()
    moved = dataclasses.replace(views, rgba=views.rgba.copy(), normals=views.normals.copy())
    moved.rgba[2], moved.normals[2] = np.roll(views.rgba[2], 1, 1), np.roll(views.normals[2], 1, 1)  # right by a pixel
    shifts = np.asarray(fit.fit(moved, TINY, jax.random.key(0)).view_shifts)
    assert shifts[2, 0] < -0.3 and np.abs(np.delete(shifts, 2, 0)).max() < 0.3


def test_hull_of_a_sphere():
    views = sphere_views(64, 16)
    base, box = hull.carve(views.rgba[..., 3], views.cameras, half_extent=0.5, cells=32, votes=0)
    points = np.asarray(fields.lattice(box, base.shape))
    equator = (np.abs(points[..., 2]) < 0.02) & (np.linalg.norm(points, axis=-1) > 0.15)
    np.testing.assert_allclose(base[equator], np.linalg.norm(points[equator], axis=-1) - RADIUS, atol=0.02)
    assert base.min() < -0.25


@pytest.mark.parametrize(("votes", "survives"), [(0, False), (1, True)])
def test_one_bad_mask_has_a_vote_not_a_veto(votes, survives):
    views = sphere_views()
    alpha = views.rgba[..., 3].copy()
    alpha[3] = 0
    alpha[3, 0, 0] = 1  # something, but not the object
    carve = lambda: hull.carve(alpha, views.cameras, half_extent=0.5, cells=16, votes=votes)  # noqa: E731
    if survives:
        assert carve()[0].min() < -0.1
    else:
        with pytest.raises(ValueError, match="share no object"):
            carve()


def test_soft_masks_are_sharpened():
    views = sphere_views()
    soft = dataclasses.replace(views, rgba=views.rgba * np.float32([1, 1, 1, 0.2]) + np.float32([0, 0, 0, 0.4]))
    pixels = batches.load(soft, np.ones(8), contrast=5.0)
    np.testing.assert_allclose(pixels.rgba[..., 3], views.rgba[..., 3].reshape(8, -1), atol=1e-5)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 45), ("steps_per_chunk", 0), ("rays", 0), ("color_weight", np.inf), ("levels", (8, -1))],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*; expected" if name != "steps_per_chunk" else "multiple of"):
        dataclasses.replace(TINY, **{name: value})


def test_surface_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="texture_size is 0; expected 16 to"):
        pipeline.SurfaceConfig(texture_size=0)


def test_mesh_is_textured_and_within_its_budget(sphere):
    mesh = sphere[0]
    assert len(mesh.faces) <= 1000 and mesh.texture.image.shape == (64, 64, 3)
    np.testing.assert_allclose(np.median(mesh.texture.image, (0, 1)), [0.8, 0.2, 0.1], atol=0.05)
