"""NeuS volume rendering (arXiv 2106.10689) with a fixed number of samples per ray.

Symbols: r rays, s samples of a ray, t distance along a ray (object units), *edges* the s + 1 ends of its s intervals.
The renderer accesses the surface through callables only.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from e3d_jax import structs
from e3d_jax.reconstruction import fields

DistanceFn = Callable[[Float[Array, "n 3"]], Float[Array, " n"]]
SampleFn = Callable[[Float[Array, "n 3"]], fields.Samples]
ColorFn = Callable[
    [Float[Array, "n 3"], Float[Array, "n k"], Float[Array, "n 3"], Float[Array, "n 3"]], Float[Array, "n 3"]
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placed:
    """The sampling intervals of rays; batches may be stacked.

    Attributes:
      edges: ends of the intervals, increasing.
      longest: the largest length that an interval counts for, since it may span skipped space.
      occupied: rays that come near the surface; the others are transparent and their samples unused.
    """

    edges: Float[Array, "*b r e"]
    longest: Float[Array, "*b r"]
    occupied: Bool[Array, "*b r"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rendering:
    """The result of rendering rays.

    Attributes:
      color: RGB in [0, 1], premultiplied by opacity.
      opacity: accumulated weight, [0, 1].
      normal: weighted mean of unit normals, not normalized.
      gradient: gradient of the distance at every sample.
    """

    color: Float[Array, "r 3"]
    opacity: Float[Array, " r"]
    normal: Float[Array, "r 3"]
    gradient: Float[Array, "r s 3"]


def neus_alpha(
    distance: Float[Array, "*n"],
    slope: Float[Array, "*n"],
    length: Float[Array, "*n"],
    sharpness: Float[Array, ""],
) -> Float[Array, "*n"]:
    """Return the opacity of intervals from the distance at their midpoints, Eq. 13 of arXiv 2106.10689.

    Args:
      distance: signed distance at the midpoints.
      slope: derivative of the distance along the ray, at most 0 where the ray enters.
      length: lengths of the intervals.
      sharpness: s, the inverse standard deviation of the density.
    """
    entering = jax.nn.sigmoid((distance - slope * length / 2) * sharpness)
    leaving = jax.nn.sigmoid((distance + slope * length / 2) * sharpness)
    return jnp.clip((entering - leaving + 1e-5) / (entering + 1e-5), 0.0, 1.0)


def annealed_slope(cosine: Float[Array, "*n"], ratio: Float[Array, ""]) -> Float[Array, "*n"]:
    """Return the slope of the distance along the ray, never positive; softened at ratio 0 so that normals can turn.

    From the code of NeuS (``cos_anneal_ratio``); the paper does not mention it.
    """
    return -(jax.nn.relu(0.5 - 0.5 * cosine) * (1 - ratio) + jax.nn.relu(-cosine) * ratio)


def transmittance_weights(alpha: Float[Array, "r s"]) -> Float[Array, "r s"]:
    """Return the weights of the samples: alpha times the transmittance before them; their sum is at most 1. Eq. 3."""
    # Products in log space would need log(0) for opaque samples; s is small, so the plain product is exact enough.
    through = jnp.cumprod(1 - alpha[:, :-1], axis=1)
    return alpha * jnp.concatenate([jnp.ones_like(alpha[:, :1]), through], 1)


def box_interval(rays: structs.Rays, box: Float[Array, "2 3"]) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    """Return the distances at which rays enter and leave the box; they are equal if a ray misses it."""
    directions = jnp.where(jnp.abs(rays.directions) < 1e-9, 1e-9, rays.directions)
    crossings = (box[:, None] - rays.origins) / directions
    near = jnp.maximum(crossings.min(0).max(-1), 0.0)
    return near, jnp.maximum(crossings.max(0).min(-1), near)


def place_samples(
    key: jax.Array,
    rays: structs.Rays,
    box: Float[Array, "2 3"],
    cached_distance: DistanceFn,
    *,
    band: Float[Array, ""],
    candidates: int,
    samples: int,
) -> Placed:
    """Return intervals that are concentrated where, by the cached distance, the ray meets the surface.

    Args:
      key: seed of the jitter of the edges.
      rays: the rays.
      box: region of the field.
      cached_distance: cheap approximation of the signed distance.
      band: segments farther than this from the cached surface get no samples.
      candidates: number of segments per ray for the search.
      samples: number of intervals per ray.
    """
    near, far = box_interval(rays, box)
    t = near[:, None] + (far - near)[:, None] * jnp.linspace(0, 1, candidates + 1)
    points = _points_at(rays, t)
    distance = cached_distance(points.reshape(-1, 3)).reshape(t.shape)
    closest = jnp.minimum(jnp.abs(distance[:, 1:]), jnp.abs(distance[:, :-1]))
    occupied = (closest < band) & (far > near)[:, None]
    # Mostly the first surface that the ray meets, softened to the width of the band; some for other close surfaces.
    soft = jax.nn.sigmoid(distance * (4 / band))
    alpha = jnp.clip((soft[:, :-1] - soft[:, 1:]) / (soft[:, :-1] + 1e-5), 0, 1)
    density = jnp.where(occupied, transmittance_weights(alpha) + 0.1 * jnp.exp(-4 * closest / band) + 1e-3, 0.0)
    cumulative = jnp.pad(jnp.cumsum(density, 1), ((0, 0), (1, 0)))
    cumulative = cumulative / jnp.maximum(cumulative[:, -1:], 1e-9)
    jitter = jax.random.uniform(key, (t.shape[0], samples + 1))
    edges = jax.vmap(jnp.interp)((jnp.arange(samples + 1) + jitter) / (samples + 1), cumulative, t)
    return Placed(edges=edges, longest=(far - near) / candidates, occupied=occupied.any(1))


def render(
    rays: structs.Rays,
    placed: Placed,
    sample_fn: SampleFn,
    color_fn: ColorFn,
    *,
    sharpness: Float[Array, ""],
    annealing: Float[Array, ""],
) -> Rendering:
    """Composite the samples of each ray, front to back."""
    start, end = placed.edges[:, :-1], placed.edges[:, 1:]
    middle, length = (start + end) / 2, jnp.minimum(end - start, placed.longest[:, None])
    points = _points_at(rays, middle)
    directions = jnp.broadcast_to(jnp.asarray(rays.directions)[:, None], points.shape)
    samples = sample_fn(points.reshape(-1, 3))
    normals = fields.normalize(samples.gradient)
    color = color_fn(points.reshape(-1, 3), samples.feature, normals, directions.reshape(-1, 3)).reshape(points.shape)
    gradient = samples.gradient.reshape(points.shape)
    slope = annealed_slope((gradient * directions).sum(-1), annealing)
    alpha = neus_alpha(samples.distance.reshape(middle.shape), slope, length, sharpness)
    weights = transmittance_weights(jnp.where(placed.occupied[:, None], alpha, 0.0))
    return Rendering(
        color=(weights[..., None] * color).sum(1),
        opacity=weights.sum(1),
        normal=(weights[..., None] * normals.reshape(points.shape)).sum(1),
        gradient=gradient,
    )


def _points_at(rays, t):
    return jnp.asarray(rays.origins)[:, None] + t[..., None] * jnp.asarray(rays.directions)[:, None]
