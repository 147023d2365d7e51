"""Sphere tracing of whole batches of objects on the accelerator.

Cones through tiles of pixels find where each tile's rays may start, and which tiles are empty; then every ray of the
others takes a fixed number of steps. Rays walk toward the surface sunk by half a pixel: where they come closest to it,
the distance in pixels is the coverage, which draws smooth silhouettes with one ray per pixel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from e3d_jax import cameras as cameras_lib
from e3d_jax import structs
from e3d_jax.data.synthetic import materials, objects, primitives

_TILE = 4
_CONE_STEPS = 16
_RAY_STEPS = 32
# Over-relaxation; rays that overshoot step back, because distances inside are negative.
_RELAXATION = 1.4
# Rays that are traced at once; bounds memory at about 100 bytes per ray.
_RAYS_AT_ONCE = 2**22
# Tiles are traced in this many portions, the ones that show something first, until only empty ones are left.
_PORTIONS = 12
# Radius of the ball that holds every object, with room for the grid's error in normalization.
_BALL = 0.53


class Images(NamedTuple):
    """Images of a batch of objects.

    Attributes:
      rgba: display-encoded color and coverage, [0, 1], straight alpha; white where coverage is 0.
      normals: unit normals in the world frame, outward; zero where coverage is 0.
      depth: distance along the camera's z axis, object units; 0 where coverage is 0.
    """

    rgba: Float[jax.Array, "b v h w 4"]
    normals: Float[jax.Array, "b v h w 3"]
    depth: Float[jax.Array, "b v h w"]


def _along(rays: structs.Rays, t: jax.Array) -> primitives.Point:
    origins, directions = jnp.asarray(rays.origins), jnp.asarray(rays.directions)
    return primitives.Point(*(origins[..., i] + t * directions[..., i] for i in range(3)))


def _ball(rays: structs.Rays) -> tuple[jax.Array, jax.Array]:
    """Return the distances along rays at which they enter and leave the ball (the nearest point twice if they miss)."""
    middle = -(rays.origins * rays.directions).sum(-1)
    closest = (rays.origins**2).sum(-1) - middle**2
    half = jnp.sqrt(jnp.maximum(_BALL**2 - closest, 0.0))
    return middle - half, middle + half


def _cone_march(
    params: objects.ObjectParams, rays: structs.Rays, spread: jax.Array
) -> tuple[jax.Array, Bool[jax.Array, "..."]]:
    """Return how far cones of ``spread`` (radius over distance) run before they may touch the object, and which do."""
    middle = -(rays.origins * rays.directions).sum(-1)
    start, end = middle - _BALL, middle + _BALL

    def step(_: jax.Array, t: jax.Array) -> jax.Array:
        free = objects.field(params, _along(rays, t)) - spread * t
        return jnp.clip(t + jnp.maximum(free, 0.0) / (1 + spread), start, end)

    t = jax.lax.fori_loop(0, _CONE_STEPS, step, start)
    return t, t < end


def _ray_march(
    params: objects.ObjectParams, rays: structs.Rays, start: jax.Array, spread: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return where each ray meets the object, or comes closest to it in pixels, and its coverage.

    Args:
      params: one object.
      rays: one ray per pixel.
      start: distance along each ray that is known to be empty.
      spread: width of a pixel over distance.
    """
    enter, leave = _ball(rays)
    start = jnp.maximum(start, enter)

    def step(_: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        t, last_t, last, nearest, nearest_t, entry = carry
        distance, pixel = objects.field(params, _along(rays, t)), spread * t
        gap = distance / pixel
        nearest, nearest_t = jnp.where(gap < nearest, gap, nearest), jnp.where(gap < nearest, t, nearest_t)
        crossing = last_t + (t - last_t) * last / jnp.maximum(last - distance, 1e-9)
        entry = jnp.where((entry == jnp.inf) & (distance < 0), crossing, entry)
        free = distance + 0.5 * pixel
        # A floor on the step carries rays past the edges that they graze.
        free = jnp.where(free > 0, jnp.maximum(_RELAXATION * free, 0.5 * pixel), free)
        return jnp.clip(t + free, start, jnp.maximum(leave, start)), t, distance, nearest, nearest_t, entry

    far = jnp.full_like(start, jnp.inf)
    carry = (start, start, jnp.zeros_like(start), far, start, far)
    _, _, _, nearest, nearest_t, entry = jax.lax.fori_loop(0, _RAY_STEPS, step, carry)
    return jnp.where(entry < jnp.inf, entry, nearest_t), jnp.clip(1.04 * (0.5 - nearest), 0, 1)


def _normal(params: objects.ObjectParams, point: primitives.Point, step: float) -> tuple[jax.Array, jax.Array]:
    """Return unit outward normals by differences over a tetrahedron, and the distance averaged over it."""

    def add(sums: tuple[jax.Array, jax.Array], corner: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        value = objects.field(params, primitives.Point(*(p + step * corner[i] for i, p in enumerate(point))))
        return (sums[0] + value / 4, sums[1] + value[..., None] * corner), None

    corners = jnp.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    start = jnp.zeros_like(point.x), jnp.zeros((*point.x.shape, 3))
    (total, gradient), _ = jax.lax.scan(add, start, corners)
    return gradient / jnp.maximum(jnp.linalg.norm(gradient, axis=-1, keepdims=True), 1e-9), total


def _openness(params: objects.ObjectParams, point: primitives.Point, normal: jax.Array) -> jax.Array:
    """Return how open the space above the surface is, 0 to 1, from two samples of the field along the normal."""

    def add(blocked: jax.Array, height: jax.Array) -> tuple[jax.Array, None]:
        above = primitives.Point(*(p + height * normal[..., i] for i, p in enumerate(point)))
        return blocked + jnp.clip(1 - objects.field(params, above) / height, 0, 1) / 2, None

    return 1 - jax.lax.scan(add, jnp.zeros_like(point.x), jnp.array([0.03, 0.08]))[0]


def _trace(
    params: objects.ObjectParams, rays: structs.Rays, start: jax.Array, spread: jax.Array, cosine: jax.Array
) -> Images:
    """Return what rays see of one object; ``cosine`` is that of their angle to the camera's z axis, others as above."""
    t, alpha = _ray_march(params, rays, start, spread)
    normal, distance = _normal(params, _along(rays, t), 0.25 / cameras_lib.RELEASED.focal / 128)
    # A ray that only comes close takes the color of the surface beside it.
    point = primitives.Point(*(p - distance * normal[..., i] for i, p in enumerate(_along(rays, t))))
    color = materials.shade(params.lights, objects.albedo_at(params, point), normal, _openness(params, point, normal))
    seen = alpha > 0
    rgba = jnp.concatenate([jnp.where(seen[..., None], color, 1.0), alpha[..., None]], -1)
    return Images(rgba, jnp.where(seen[..., None], normal, 0.0), jnp.where(seen, t * cosine, 0.0))


class _Grid(NamedTuple):
    """The rays of some cameras by tile; they do not depend on the object.

    Attributes:
      cones: through the centers of the tiles.
      cone_spread: radius over distance that covers a tile.
      rays: of the pixels of each tile; tiles that reach over the edge repeat it.
      spread: width of a pixel over distance.
      cosine: of the rays' angles to the camera's z axis.
    """

    cones: structs.Rays
    cone_spread: Float[jax.Array, "v 1 1"]
    rays: structs.Rays
    spread: Float[jax.Array, "t p"]
    cosine: Float[jax.Array, "t p"]


def _grid(cameras: structs.Cameras) -> _Grid:
    rays = cameras_lib.image_rays(cameras)
    forward = jnp.asarray(cameras.world_from_cam)[:, None, None, :3, 2]
    cosine = (rays.directions * forward).sum(-1)
    focal = jnp.asarray(cameras.focal)[:, 0, None, None]
    x, y = (jnp.arange(-(-n // _TILE)) * _TILE + _TILE / 2 for n in (cameras.width, cameras.height))
    middles = jnp.stack(jnp.meshgrid(x, y), -1)
    cones = cameras_lib.pixel_rays(cameras, jnp.broadcast_to(middles, (len(cameras), *middles.shape)))
    return _Grid(cones, _TILE * 0.7072 / focal, *jax.tree.map(_tiles, (rays, cosine / focal, cosine)))


def _tiles(image: Float[jax.Array, "v h w *c"]) -> Float[jax.Array, "t p *c"]:
    """Return pixels by tile."""
    v, h, w, *c = image.shape
    rows, columns = -(-h // _TILE), -(-w // _TILE)
    beyond = [(0, 0), (0, rows * _TILE - h), (0, columns * _TILE - w), *[(0, 0)] * len(c)]
    parts = jnp.pad(image, beyond, mode="edge").reshape(v, rows, _TILE, columns, _TILE, *c)
    return parts.swapaxes(2, 3).reshape(v * rows * columns, _TILE**2, *c)


def _untile(tiles: Float[jax.Array, "b t p *c"], views: int, height: int, width: int) -> jax.Array:
    """Return images ``[b, v, h, w, *c]`` of tiles; the inverse of :func:`_tiles`."""
    b, _, _, *c = tiles.shape
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    parts = tiles.reshape(b, views, rows, columns, _TILE, _TILE, *c).swapaxes(3, 4)
    return parts.reshape(b, views, rows * _TILE, columns * _TILE, *c)[:, :, :height, :width]


def _trace_tiles(params: objects.ObjectParams, grid: _Grid, axis: int | None) -> Images:
    """Return images by tile of a batch that is traced at once; ``axis`` of the grid is that of the objects, if any."""
    start, touched = jax.vmap(lambda one, grid: _cone_march(one, grid.cones, grid.cone_spread), (0, axis))(params, grid)
    start, touched = (x.reshape(len(x), -1) for x in (start, touched))
    number = start.shape[1]
    portion = -(-number // _PORTIONS)
    # Portions may reach past the last tile: such indices read that tile and write nothing.
    beyond = jnp.broadcast_to(jnp.arange(number, portion * _PORTIONS), (len(start), portion * _PORTIONS - number))
    order = jnp.concatenate([jnp.argsort(~touched, axis=1), beyond], 1)
    most = touched.sum(1).max()

    def trace(one: objects.ObjectParams, start: jax.Array, chosen: jax.Array, grid: _Grid) -> Images:
        rays, spread, cosine, first = jax.tree.map(
            lambda x: jnp.take(x, chosen, 0, mode="clip"), (grid.rays, grid.spread, grid.cosine, start)
        )
        return _trace(one, rays, jnp.broadcast_to(first[:, None], cosine.shape), spread, cosine)

    def step(carry: tuple[jax.Array, Images]) -> tuple[jax.Array, Images]:
        first, images = carry
        chosen = jax.lax.dynamic_slice_in_dim(order, first, portion, 1)
        found = jax.vmap(trace, (0, 0, 0, axis))(params, start, chosen, grid)
        put = jax.vmap(lambda image, index, values: image.at[index].set(values, mode="drop", unique_indices=True))
        return first + portion, jax.tree.map(lambda image, values: put(image, chosen, values), images, found)

    shape = (*start.shape, _TILE**2)
    nothing = Images(jnp.broadcast_to(jnp.array([1.0, 1, 1, 0]), (*shape, 4)), jnp.zeros((*shape, 3)), jnp.zeros(shape))
    return jax.lax.while_loop(lambda carry: carry[0] < most, step, (jnp.int32(0), nothing))[1]


@jax.jit
def render(params: objects.ObjectParams, cameras: structs.Cameras) -> Images:
    """Draw a batch of normalized objects, in chunks that bound memory.

    Args:
      params: b objects.
      cameras: v cameras for all objects, or ``[b v]`` for v cameras of each, outside the ball of radius 0.53 around the
        origin.
    """
    number, (*own, views, _, _) = len(params.scale), cameras.world_from_cam.shape
    count = max(1, _RAYS_AT_ONCE // (views * cameras.width * cameras.height))
    count = min(count, number)
    # The last chunk repeats the last object.
    chunks = jnp.minimum(jnp.arange(-(-number // count) * count), number - 1).reshape(-1, count)
    chunked = jax.tree.map(lambda x: jnp.asarray(x)[chunks], (params, cameras) if own else params)
    if own:
        tiles = jax.lax.map(lambda some: _trace_tiles(some[0], jax.vmap(_grid)(some[1]), 0), chunked)
    else:
        grid = _grid(cameras)
        tiles = jax.lax.map(lambda some: _trace_tiles(some, grid, None), chunked)
    tiles = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:number], tiles)
    return jax.tree.map(lambda x: _untile(x, views, cameras.height, cameras.width), tiles)
