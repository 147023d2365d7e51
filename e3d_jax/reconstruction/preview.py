"""Images of a field by volume rendering, to watch a fit while it runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from e3d_jax import cameras, images, structs
from e3d_jax.reconstruction import fields, occupancy, volume

CHUNK = 1 << 12  # rays per call


def render_field(
    field: fields.Field, camera: structs.Cameras, *, cells: int = 48, candidates: int = 64, samples: int = 24
) -> tuple[Float[np.ndarray, "h w 4"], Float[np.ndarray, "h w 4"]]:
    """Render the colors and the encoded normals (:func:`images.encode_normal`) that one camera sees.

    Args:
      field: the surface.
      camera: a single camera.
      cells: see :func:`occupancy.cache`.
      candidates: see :func:`volume.place_samples`.
      samples: samples per ray.

    Returns:
      Two RGBA images in [0, 1], straight alpha.
    """
    rays = cameras.image_rays(camera)
    flat = np.concatenate([np.asarray(rays.origins), np.asarray(rays.directions)], -1).reshape(-1, 6)
    cache = _cache(field, cells)
    out = []
    for start in range(0, len(flat), CHUNK):
        chunk = flat[start : start + CHUNK]
        padded = np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0)), mode="edge")
        out.append(np.asarray(_render(field, cache, padded, candidates, samples))[: len(chunk)])
    color, alpha, normal = np.split(np.concatenate(out).reshape(camera.height, camera.width, 7), [3, 4], -1)
    opaque = np.maximum(alpha, 1e-3)
    unit = normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    alpha = alpha.clip(0, 1)
    shaded = np.asarray(images.encode_normal(unit, alpha[..., 0]))
    return np.concatenate([(color / opaque).clip(0, 1), alpha], -1), shaded


@functools.partial(jax.jit, static_argnames="cells")
def _cache(field, cells) -> occupancy.Cache:
    return occupancy.cache_field(field, jnp.ones(len(field.levels)), cells)


@functools.partial(jax.jit, static_argnames=("candidates", "samples"))
def _render(field, cache, flat: Float[Array, "r 6"], candidates, samples) -> Float[Array, "r 7"]:
    """Return premultiplied color, opacity and normal of each ray."""
    rays = structs.Rays(origins=flat[:, :3], directions=flat[:, 3:])
    placed = volume.place_samples(
        jax.random.key(0),
        rays,
        field.box,
        cache.distance,
        band=cache.band,
        candidates=candidates,
        samples=samples,
    )
    rendering = volume.render(
        rays,
        placed,
        lambda points: fields.sample(field, points, jnp.ones(len(field.levels))),
        functools.partial(fields.color, field),
        sharpness=jnp.exp(field.log_sharpness),
        annealing=jnp.float32(1),
    )
    return jnp.concatenate([rendering.color, rendering.opacity[:, None], rendering.normal], -1)
