"""Hollows that silhouettes do not show."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from e3d_jax import cameras, images, structs
from e3d_jax.mesh import extract, preview
from e3d_jax.reconstruction import fields, fit, hull, sweep
from tests import sphere

RING = cameras.ViewLayout(num_views=8, elevation=20.0, elevation_swing=25.0)
OUTER, INNER, RIM = 0.45, 0.37, 0.1


def bowl(points):
    """Return the signed distance of a thick half sphere, open at the top."""
    radius = np.linalg.norm(points, axis=-1)
    return np.maximum(np.maximum(radius - OUTER, INNER - radius), points[:, 2] - RIM)


def rendered(distance_fn) -> structs.ViewSet:
    """Return views of a gray object, all with normal maps."""
    box = np.array([[-0.5] * 3, [0.5] * 3])
    mesh = extract.extract_mesh(distance_fn, lambda points: np.full((len(points), 3), 0.5), box, 48)
    ring = RING.cameras(48)
    rgba, shaded = (preview.render_mesh(mesh, ring, shading) for shading in ("color", "normal"))
    normals = images.decode_normal(shaded) * (rgba[..., 3:] > 0.5)
    return structs.ViewSet(rgba, ring, np.arange(8), np.asarray(normals, np.float32), np.arange(8))


@functools.cache
def hull_and_carved(distance_fn):
    views = rendered(distance_fn)
    base, box = hull.carve(views.rgba[..., 3], views.cameras, half_extent=0.55, cells=32, votes=0)
    return views, base, box, sweep.carve(views, base, box, width=32)


def along_axis(base, box):
    """Return heights on the z axis, and the signed distances there."""
    middle = (np.array(base.shape[:2]) * (-box[0, :2] / (box[1] - box[0])[:2])).round().astype(int)
    return np.linspace(box[0, 2], box[1, 2], base.shape[2]), base[middle[0], middle[1]]


def test_a_bowl_is_hollow_and_its_hull_is_not():
    _, base, box, carved = hull_and_carved(bowl)
    heights, filled = along_axis(base, box)
    _, found = along_axis(carved, box)
    inside = (heights > -0.25) & (heights < 0.05)
    assert (filled[inside] < 0).all() and (found[inside] > 0).mean() > 0.6


def test_views_of_its_outside_do_not_hide_the_inside_of_a_bowl():
    _, base, box, carved = hull_and_carved(bowl)
    points = np.asarray(fields.lattice(box, base.shape)).reshape(-1, 3)
    empty = (base < 0).ravel() & (bowl(points) > 0.03) & (points[:, 2] < RIM)
    assert (carved.ravel()[empty] > 0).mean() > 0.89  # 0.85 where these views count


def test_the_wall_of_a_bowl_remains():
    _, _, box, carved = hull_and_carved(bowl)
    heights, found = along_axis(carved, box)
    assert (found[(heights > -0.43) & (heights < -0.39)] < 0).all()


def test_nothing_is_added_to_the_hull():
    _, base, _, carved = hull_and_carved(bowl)
    assert (carved >= base).all()


def test_a_sphere_is_left_whole():
    _, base, box, carved = hull_and_carved(lambda points: np.linalg.norm(points, axis=-1) - 0.4)
    spacing = (box[1] - box[0]).max() / 32
    assert (carved[base < -1.5 * spacing] < 0).all()


@pytest.mark.parametrize("width", [0, 32])
def test_the_fit_starts_from_hollows_unless_turned_off(width):
    views, base, _, _ = hull_and_carved(bowl)
    settings = dataclasses.replace(sphere.TINY, hull_cells=32, hull_votes=0.0, depth_width=width)
    field, _ = fit.start(views, settings, jax.random.key(0))
    assert (np.asarray(field.base[..., 0]) > base + 0.05).any() == (width > 0)
