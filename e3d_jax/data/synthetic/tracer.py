"""Sphere tracing of whole batches of objects on the accelerator.

Cones through tiles of pixels find where each tile's rays may start; then every ray walks a fixed number of steps.
Rays walk toward the surface sunk by half a pixel: where they come closest to it, the distance in pixels is the
coverage, which draws smooth silhouettes with one ray a pixel.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from e3d_jax import cameras as cameras_lib
from e3d_jax import structs
from e3d_jax.data.synthetic import materials, objects, primitives

_TILE = 4
_CONE_STEPS = 16
_RAY_STEPS = 32
# Over-relaxation; rays that overshoot step back, because distances inside are negative.
_RELAXATION = 1.4
# Rays handled at once; bounds memory at about 100 bytes a ray.
_RAYS_AT_ONCE = 2**22
# Radius of the ball that holds every object, with room for the grid's error in normalisation.
_BALL = 0.53


class Images(NamedTuple):
    """Pictures of a batch of objects.

    Attributes:
      rgba: display-encoded colour and coverage, [0, 1], straight alpha; white where coverage is 0.
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
    """Distances along rays at which they enter and leave the ball (nearest point twice for those that miss)."""
    middle = -(rays.origins * rays.directions).sum(-1)
    closest = (rays.origins**2).sum(-1) - middle**2
    half = jnp.sqrt(jnp.maximum(_BALL**2 - closest, 0.0))
    return middle - half, middle + half


def _cone_march(params: objects.ObjectParams, rays: structs.Rays, spread: jax.Array) -> jax.Array:
    """How far cones of ``spread`` (radius over distance) run before they may touch the object."""
    middle = -(rays.origins * rays.directions).sum(-1)
    start, end = middle - _BALL, middle + _BALL

    def step(_: jax.Array, t: jax.Array) -> jax.Array:
        free = objects.field(params, _along(rays, t)) - spread * t
        return jnp.clip(t + jnp.maximum(free, 0.0) / (1 + spread), start, end)

    return jax.lax.fori_loop(0, _CONE_STEPS, step, start)


def _ray_march(
    params: objects.ObjectParams, rays: structs.Rays, start: jax.Array, spread: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where each ray meets the object, or comes closest to it in pixels, and its coverage.

    Args:
      params: one object.
      rays: one ray a pixel.
      start: distance along each ray that is known to be free.
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
    """Unit outward normals by differences over a tetrahedron, and the distance averaged over it."""

    def add(sums: tuple[jax.Array, jax.Array], corner: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        value = objects.field(params, primitives.Point(*(p + step * corner[i] for i, p in enumerate(point))))
        return (sums[0] + value / 4, sums[1] + value[..., None] * corner), None

    corners = jnp.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    start = jnp.zeros_like(point.x), jnp.zeros((*point.x.shape, 3))
    (total, gradient), _ = jax.lax.scan(add, start, corners)
    return gradient / jnp.maximum(jnp.linalg.norm(gradient, axis=-1, keepdims=True), 1e-9), total


def _openness(params: objects.ObjectParams, point: primitives.Point, normal: jax.Array) -> jax.Array:
    """How free the space above the surface is, 0 to 1, from two samples of the field along the normal."""

    def add(blocked: jax.Array, height: jax.Array) -> tuple[jax.Array, None]:
        above = primitives.Point(*(p + height * normal[..., i] for i, p in enumerate(point)))
        return blocked + jnp.clip(1 - objects.field(params, above) / height, 0, 1) / 2, None

    return 1 - jax.lax.scan(add, jnp.zeros_like(point.x), jnp.array([0.03, 0.08]))[0]


def _render_object(params: objects.ObjectParams, cameras: structs.Cameras, rays: structs.Rays) -> Images:
    """Images without the batch axis."""
    focal = jnp.asarray(cameras.focal)[:, 0, None, None]
    forward = jnp.asarray(cameras.world_from_cam)[:, None, None, :3, 2]
    cosine = (rays.directions * forward).sum(-1)
    x, y = (jnp.arange(-(-n // _TILE)) * _TILE + _TILE / 2 for n in (cameras.width, cameras.height))
    tiles = jnp.stack(jnp.meshgrid(x, y), -1)
    cones = cameras_lib.pixel_rays(cameras, jnp.broadcast_to(tiles, (len(cameras), *tiles.shape)))
    start = _cone_march(params, cones, _TILE * 0.7072 / focal)
    start = jnp.repeat(jnp.repeat(start, _TILE, 1), _TILE, 2)[:, : cameras.height, : cameras.width]

    t, alpha = _ray_march(params, rays, start, cosine / focal)
    normal, distance = _normal(params, _along(rays, t), 0.25 / cameras_lib.FOCAL / 128)
    # A ray that only comes close takes the colour of the surface beside it.
    point = primitives.Point(*(p - distance * normal[..., i] for i, p in enumerate(_along(rays, t))))
    color = materials.shade(params.lights, objects.albedo_at(params, point), normal, _openness(params, point, normal))
    seen = alpha > 0
    rgba = jnp.concatenate([jnp.where(seen[..., None], color, 1.0), alpha[..., None]], -1)
    return Images(rgba, jnp.where(seen[..., None], normal, 0.0), jnp.where(seen, t * cosine, 0.0))


@jax.jit
def render(params: objects.ObjectParams, cameras: structs.Cameras) -> Images:
    """Pictures of a batch of normalised objects from the same cameras, objects in chunks that bound memory.

    Args:
      params: b objects.
      cameras: v cameras outside the ball of radius 0.53 around the origin.
    """
    rays = cameras_lib.image_rays(cameras)
    count = max(1, _RAYS_AT_ONCE // (len(cameras) * cameras.width * cameras.height))
    count = min(count, len(params.scale))
    return jax.lax.map(lambda one: _render_object(one, cameras, rays), params, batch_size=count)
