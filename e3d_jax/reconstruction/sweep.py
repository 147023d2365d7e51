"""Hollows that the visual hull fills: depths at which views agree, by plane sweep and semi-global matching.

No silhouette shows the inside of a bowl, so the hull has a lid. In each view with a normal map, candidates for the
surface begin where a ray enters the hull and go on behind it. The right one looks the same from elsewhere: another view
that faces it shows the same normal, and several show the same color. Views that look at the outside of a wall say
nothing about what is behind it; the hull is such a wall where its normal is the one that the view shows. Where all
candidates look alike, or other views do not reach, the normals of neighboring pixels say how the depth changes between
them. The best depths are found along rows and columns, in both directions (Hirschmueller, PAMI 2008), on slanted
surfaces (Scharstein et al., 3DV 2017). Depths of all views are then merged, and what lies in front of them is removed
from the hull.

Symbols: v views, a views with a normal map, s points per side of a raster over their images, k candidates per ray.
Candidates are spaced evenly in the logarithm of the distance, so that neighbors on a plane differ by the same number of
candidates at any distance.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from e3d_jax import cameras, structs
from e3d_jax.reconstruction import fields, volume

CANDIDATES = 64
ROUNDS = 2  # each begins at the surface that the last one found
COLOR_VIEWS = 16  # views, spread evenly, whose colors are compared
BEST_COLORS = 2  # of these, because others may see something in front
NORMAL_SCALE, COLOR_SCALE = 0.08, 0.15  # differences (1 - cosine; mean over channels) that cost 1, the most
OUTSIDE = 2.0  # cost of candidates outside the hull
BEND = 0.1  # cost of one candidate more or less than the normals say
JUMP, EDGE = 4.0, 0.3  # largest cost of any change between pixels of similar, and of different normals
SIMILAR = 0.94  # cosine of normals of a smooth surface
NEARER = 0.0005  # cost of a candidate over the one before it
UNKNOWN = 0.3  # cost of candidates that no other view sees
SOLID = 0.9  # cosine of the normals of hull and view at which the hull is taken for the surface
FACING = 0.15  # least cosine at which a view sees a surface
HOLLOW = 3.0  # candidates behind the hull at which a hollow begins; closer ones are as likely errors of the depth
BEHIND = 3.0  # cells behind a solid surface at which a point is surely hidden
MARGIN = 0.7  # cells that are left in front of a surface, so that thin walls are not lost between lattice points


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Raster:
    """What the views with normal maps show at the points of a raster.

    Attributes:
      rays: rays through the points.
      normals: world normals, zero where unknown.
      colors: RGB in [0, 1].
      start: distance at which the rays enter the hull; infinite where they miss it.
      solid: whether the hull is the surface there, because its normal is the one that the view shows.
    """

    rays: structs.Rays
    normals: Float[Array, "*a s s 3"]
    colors: Float[Array, "*a s s 3"]
    start: Float[Array, "*a s s"]
    solid: Bool[Array, "*a s s"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Views:
    """The views on the device; ``index`` are those that have normal maps."""

    rgba: Float[Array, "v h w 4"]
    cameras: structs.Cameras
    normals: Float[Array, "a h w 3"]
    index: Int[Array, " a"]


def carve(
    views: structs.ViewSet, base: Float[np.ndarray, "x y z"], box: Float[np.ndarray, "2 3"], *, width: int
) -> Float[np.ndarray, "x y z"]:
    """Return the signed distance of the hull without the hollows that views with normal maps look into.

    Args:
      views: views that agree with the hull, at least one with a normal map.
      base: signed distance of the hull, see :func:`e3d_jax.reconstruction.hull.carve`.
      box: the region that ``base`` spans.
      width: points per side of the depth maps.
    """
    arrays = views.rgba, views.cameras, views.normals, views.normal_views
    shown = _Views(*jax.tree.map(jnp.asarray, arrays))
    carved = jnp.asarray(base)
    for _ in range(ROUNDS):
        carved = _round(shown, carved, jnp.asarray(box), width)
    return np.asarray(carved)


@functools.partial(jax.jit, static_argnames="width")
def _round(views: _Views, base, box, width):
    spacing = ((box[1] - box[0]) / (jnp.array(base.shape) - 1)).max()
    inside = lambda points: fields.interpolate(base[..., None], box, points)[:, 0]  # noqa: E731
    raster = _rasterize(views, inside, box, width)
    step = spacing / jnp.linalg.norm(views.cameras.world_from_cam[:, :3, 3], axis=-1).mean()
    along = jnp.exp(step * jnp.arange(CANDIDATES))
    start = jnp.where(jnp.isfinite(raster.start), raster.start, 1.0)

    def cost(inputs):
        own, rays, start = inputs
        t = start[..., None] * along
        points = (rays.origins[..., None, :] + t[..., None] * rays.directions[..., None, :]).reshape(-1, 3)
        differing = _disagreement(views, own, raster, points, BEHIND * spacing)
        return jnp.where(inside(points) > spacing, OUTSIDE, differing).reshape(t.shape)

    known = jnp.isfinite(raster.start) & ((raster.normals**2).sum(-1) > 0.5)
    costs = jax.lax.map(cost, (jnp.arange(len(views.index)), raster.rays, start))
    costs = jnp.where(known[..., None], costs, 0) + NEARER * jnp.arange(CANDIDATES)
    behind = _match(costs, jnp.log(start) / step, raster, known, step)
    hollow = _opened(behind > HOLLOW)
    found = start * jnp.exp(step * jnp.where(hollow, behind, 0.0))
    found = jnp.where(jnp.isfinite(raster.start), found, jnp.nan)
    return jnp.fmax(
        base, _merge(views, raster, found, hollow, fields.lattice(box, base.shape), spacing) - MARGIN * spacing
    )


def _rasterize(views: _Views, inside, box, width) -> _Raster:
    many, size = views.cameras[views.index], jnp.array([views.cameras.width, views.cameras.height])
    axis = jnp.arange(width) + 0.5
    pixels = jnp.stack(jnp.meshgrid(axis, axis), -1) / width * size
    column, row = jnp.moveaxis(pixels.astype(jnp.int32), -1, 0)
    rays = cameras.pixel_rays(many, jnp.broadcast_to(pixels, (len(views.index), *pixels.shape)))
    enter = jax.lax.map(lambda each: _enter(each, inside, box), rays)
    at = rays.origins + jnp.where(jnp.isfinite(enter), enter, 1.0)[..., None] * rays.directions
    slope = jax.grad(lambda points: inside(points).sum())(at.reshape(-1, 3)).reshape(at.shape)
    normals, colors = views.normals[:, row, column], views.rgba[views.index][:, row, column, :3]
    solid = jnp.isfinite(enter) & ((fields.normalize(slope) * normals).sum(-1) > SOLID)
    return _Raster(rays, normals, colors, enter, solid)


def _enter(rays: structs.Rays, inside, box):
    """Return the distances at which rays enter the hull, infinite where they miss it."""
    flat = structs.Rays(rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3))
    near, far = volume.box_interval(flat, box)
    t = near[:, None] + (far - near)[:, None] * jnp.linspace(0, 1, 2 * CANDIDATES)
    points = flat.origins[:, None] + t[..., None] * flat.directions[:, None]
    distance = inside(points.reshape(-1, 3)).reshape(t.shape)
    after = jnp.argmax(distance < 0, 1)[:, None]
    pair = jnp.concatenate([jnp.maximum(after - 1, 0), after], 1)
    (t0, t1), (d0, d1) = (jnp.take_along_axis(x, pair, 1).T for x in (t, distance))
    crossing = t0 + (t1 - t0) * d0 / jnp.where(d0 > d1, d0 - d1, 1.0)
    return jnp.where((distance < 0).any(1), crossing, jnp.inf).reshape(rays.origins.shape[:-1])


def _disagreement(views: _Views, own, raster: _Raster, points, behind):
    """Return how much other views differ from the view ``own`` at its candidates ``points``, in [0, 2].

    Points that are more than ``behind`` farther from a view than a solid surface are hidden from it.
    """
    spread = lambda x: jnp.repeat(x[own].reshape(-1, 3), CANDIDATES, 0)  # noqa: E731
    normal, color = spread(raster.normals), spread(raster.colors)
    size, width = jnp.array([views.cameras.width, views.cameras.height]), raster.start.shape[1]

    def look(view):
        """Return where a view shows the points, and whether it faces them."""
        pose = views.cameras.world_from_cam[view]
        toward = pose[:3, 3] - points
        faces = (toward * normal).sum(-1) > FACING * jnp.linalg.norm(toward, axis=-1)
        # Elementwise products, because matrix products have reduced precision on accelerators.
        cam = -(toward[:, :, None] * pose[:3, :3]).sum(1)
        pixel = cam[:, :2] / cam[:, 2:] * views.cameras.focal[view] + views.cameras.center[view]
        last = jnp.array([views.cameras.width, views.cameras.height]) - 1
        column, row = jnp.clip(pixel, 0, last).astype(jnp.int32).T
        return row, column, faces & (view != views.index[own])

    def compare_normals(best, index):
        row, column, faces = look(views.index[index])
        error = (1 - (views.normals[index, row, column] * normal).sum(-1)) / NORMAL_SCALE
        cell = (index, row * width // size[1], column * width // size[0])
        far = jnp.linalg.norm(points - views.cameras.world_from_cam[views.index[index], :3, 3], axis=-1)
        hidden = raster.solid[cell] & (far > raster.start[cell] + behind)
        return _smallest(best, error, faces & ~hidden), None

    def compare_colors(best, view):
        row, column, faces = look(view)
        other = views.rgba[view, row, column]
        error = jnp.where(other[:, 3] > 0.5, jnp.abs(other[:, :3] - color).mean(-1) / COLOR_SCALE, 1.0)
        return _smallest(best, error, faces), None

    none = jnp.full((BEST_COLORS, len(points)), jnp.inf)
    every = jnp.arange(0, len(views.rgba), max(1, len(views.rgba) // COLOR_VIEWS))
    normals, _ = jax.lax.scan(compare_normals, none[:1], jnp.arange(len(views.index)))
    colors, _ = jax.lax.scan(compare_colors, none, every)
    return sum(
        jnp.nan_to_num(jnp.nanmean(jnp.where(jnp.isfinite(best), best, jnp.nan), 0), nan=UNKNOWN)
        for best in (normals, colors)
    )


def _smallest(best, error, valid):
    """Insert errors, of at most 1, into sorted lists of the smallest."""
    value, out = jnp.where(valid, jnp.minimum(error, 1.0), jnp.inf), []
    for each in best:
        out.append(jnp.minimum(each, value))
        value = jnp.maximum(each, value)
    return jnp.stack(out)


def _match(costs, start, raster: _Raster, known, step):
    """Return the best candidate of each ray, with a fraction; ``start`` is the first one's logarithm in steps."""
    total = jnp.zeros_like(costs)
    for axis in (1, 2):
        for backward in (False, True):
            turn = lambda x: jnp.moveaxis(jnp.flip(x, axis) if backward else x, axis, 0)  # noqa: B023, E731
            inputs = (start, raster.rays.directions, raster.normals, known)
            summed = jnp.moveaxis(_sweep(turn(costs), jax.tree.map(turn, inputs), step), 0, axis)
            total += jnp.flip(summed, axis) if backward else summed
    best = jnp.clip(jnp.argmin(total, -1), 1, CANDIDATES - 2)[..., None] + jnp.arange(-1, 2)
    low, middle, high = jnp.moveaxis(jnp.take_along_axis(total, best, -1), -1, 0)
    lowest = (low - high) / 2 / jnp.maximum(low - 2 * middle + high, 1e-6)  # of the parabola through the three
    return best[..., 1] + jnp.clip(lowest, -1, 1)


def _sweep(costs, pixels, step):
    """Return the cost of each candidate with the best ones of all pixels before it along the first axis."""

    def advance(previous, inputs):
        (best, before), (cost, here) = previous, inputs
        (start, direction, normal, known), (start_before, direction_before, normal_before, known_before) = here, before
        lowest = best.min(-1, keepdims=True)
        change = jnp.full_like(best, jnp.inf)
        for each in (normal, normal_before):
            along_ray, along_before = (direction * each).sum(-1), (direction_before * each).sum(-1)
            faces = (along_ray < -FACING) & (along_before < -FACING)
            ratio = jnp.where(faces, along_before / jnp.where(faces, along_ray, 1.0), 1.0)
            by = jnp.log(ratio) / step + start_before - start
            for bend in (-1, 0, 1):
                change = jnp.minimum(change, _shift(best, by + bend) + BEND * abs(bend))
        jump = jnp.where((normal * normal_before).sum(-1) > SIMILAR, JUMP, EDGE)[..., None]
        joined = (known & known_before)[..., None]
        out = cost + jnp.where(joined, jnp.minimum(change - lowest, jump), 0.0)
        return (out, here), out

    first, rest = jax.tree.map(lambda x: x[0], (costs, pixels)), jax.tree.map(lambda x: x[1:], (costs, pixels))
    return jnp.concatenate([costs[:1], jax.lax.scan(advance, first, rest)[1]])


def _shift(costs, by):
    """Return costs moved up by a number of candidates; infinite where there were none."""
    at = jnp.arange(CANDIDATES) - by[..., None]
    low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, CANDIDATES - 2)
    fraction = at - low
    below, above = (jnp.take_along_axis(costs, index, -1) for index in (low, low + 1))
    inside = (at >= -0.5) & (at <= CANDIDATES - 0.5)
    return jnp.where(inside, below * (1 - fraction) + above * fraction, jnp.inf)


def _opened(mask: Bool[Array, "a s s"]) -> Bool[Array, "a s s"]:
    """Return the parts of masks that hold a square of three by three."""
    window = functools.partial(jax.lax.reduce_window, window_dimensions=(1, 3, 3), window_strides=(1, 1, 1))
    eroded = window(mask, True, jax.lax.bitwise_and, padding="SAME")
    return window(eroded, False, jax.lax.bitwise_or, padding="SAME")


def _merge(views: _Views, raster: _Raster, found, hollow, points, spacing):
    """Return the median over views of the distance from lattice points to the surfaces behind them.

    It is not a number where no view sees as far as the point.
    """
    width = found.shape[1]
    scale = width / jnp.array([views.cameras.width, views.cameras.height])

    def seen_from(points, index):
        view = views.index[index]
        pose = views.cameras.world_from_cam[view]
        away = points - pose[:3, 3]
        cam = (away[:, :, None] * pose[:3, :3]).sum(1)
        pixel = (cam[:, :2] / cam[:, 2:] * views.cameras.focal[view] + views.cameras.center[view]) * scale
        column, row = jnp.clip(pixel, 0, width - 1).astype(jnp.int32).T
        length = jnp.linalg.norm(away, axis=-1)
        cosine = jnp.abs((raster.normals[index, row, column] * away).sum(-1)) / length
        gap = (found[index, row, column] - length) * jnp.maximum(cosine, 0.2)
        # Within the hull, nothing lies in front of it but errors of the raster.
        most = jnp.where(hollow[index, row, column], 4 * spacing, 0.0)
        return jnp.where(gap > -spacing, jnp.minimum(gap, most), jnp.nan)

    def slab(points):
        flat = points.reshape(-1, 3)
        gaps = jax.vmap(functools.partial(seen_from, flat))(jnp.arange(len(views.index)))
        return jnp.nanmedian(gaps, axis=0).reshape(points.shape[:-1])

    return jax.lax.map(slab, points)
