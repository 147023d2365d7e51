"""Pictures of a field by volume rendering, to look at a fit while it runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from e3d_jax import cameras, structs
from e3d_jax.reconstruction import fields, occupancy, volume

CHUNK = 1 << 12  # rays of one call


def draw(
    field: fields.Field, camera: structs.Cameras, *, cells: int = 48, candidates: int = 64, samples: int = 24
) -> tuple[Float[np.ndarray, "h w 4"], Float[np.ndarray, "h w 4"]]:
    """Colours and normals (RGB = (n + 1) / 2, world frame) that one camera sees; RGBA in [0, 1], straight alpha.

    Args:
      field: the surface.
      camera: a single one.
      cells: see :func:`occupancy.cache`.
      candidates: see :func:`volume.place_samples`.
      samples: samples a ray.
    """
    rays = cameras.image_rays(camera)
    flat = np.concatenate([np.asarray(rays.origins), np.asarray(rays.directions)], -1).reshape(-1, 6)
    cached, band = _cache(field, cells)
    out = []
    for start in range(0, len(flat), CHUNK):
        chunk = flat[start : start + CHUNK]
        padded = np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0)), mode="edge")
        out.append(np.asarray(_see(field, cached, band, padded, candidates, samples))[: len(chunk)])
    color, alpha, normal = np.split(np.concatenate(out).reshape(camera.height, camera.width, 7), [3, 4], -1)
    opaque = np.maximum(alpha, 1e-3)
    unit = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    shaded = np.concatenate([unit / 2 + 0.5, alpha.clip(0, 1)], -1)
    return np.concatenate([(color / opaque).clip(0, 1), alpha.clip(0, 1)], -1), shaded


@functools.partial(jax.jit, static_argnames="cells")
def _cache(field, cells):
    weights = jnp.ones(len(field.levels))
    cached = occupancy.cache(lambda points: fields.sample(field, points, weights).distance, field.box, cells)
    return cached, occupancy.band(field.box, cells, jnp.exp(field.log_sharpness))


@functools.partial(jax.jit, static_argnames=("candidates", "samples"))
def _see(field, cached, band, flat: Float[Array, "r 6"], candidates, samples) -> Float[Array, "r 7"]:
    """Premultiplied colour, opacity and normal of each ray."""
    rays = structs.Rays(origins=flat[:, :3], directions=flat[:, 3:])
    placed = volume.place_samples(
        jax.random.key(0),
        rays,
        field.box,
        lambda points: fields.interpolate(cached, field.box, points)[:, 0],
        band=band,
        candidates=candidates,
        samples=samples,
    )
    seen = volume.render(
        rays,
        placed,
        lambda points: fields.sample(field, points, jnp.ones(len(field.levels))),
        functools.partial(fields.color, field),
        sharpness=jnp.exp(field.log_sharpness),
        annealing=jnp.float32(1),
    )
    return jnp.concatenate([seen.color, seen.opacity[:, None], seen.normal], -1)
