"""Objects to images as bytes, the device drawing one batch while the host samples the next."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from e3d_jax import structs
from e3d_jax.data.synthetic import objects, sample, tracer


@dataclasses.dataclass(frozen=True)
class Example:
    """Images of one object.

    Attributes:
      index: number of the object in the sequence of its seed.
      rgba: the views, straight alpha, white where it is 0.
      normals: one per view with a normal map; (n + 1) / 2 of the world-frame normal, and the coverage; white where that
        is 0.
    """

    index: int
    rgba: UInt8[np.ndarray, "v h w 4"]
    normals: UInt8[np.ndarray, "a h w 4"]


def _bytes(image: jax.Array) -> jax.Array:
    return jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="normal_views")
def _draw(
    batch: objects.ObjectParams, cameras: structs.Cameras, normal_views: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    images = tracer.render(objects.normalize(batch), cameras)
    chosen = np.array(normal_views, int)
    alpha = images.rgba[:, chosen, ..., 3:]
    normals = jnp.where(alpha > 0, (images.normals[:, chosen] + 1) / 2, 1.0)
    return _bytes(images.rgba), _bytes(jnp.concatenate([normals, alpha], -1))


def generate(
    split: str,
    seed: int,
    indices: Iterable[int],
    *,
    cameras: structs.Cameras,
    normal_views: Int[np.ndarray, " a"],
    batch: int = 64,
) -> Iterator[Example]:
    """Draw objects of a seed.

    Args:
      split: "train" or "test"; they share no object.
      seed: which sequence of objects.
      indices: numbers of the objects; read a batch or two ahead.
      cameras: to draw from; see :func:`tracer.render`.
      normal_views: indices of the views that get a normal map.
      batch: objects drawn per call of the device; affects only speed and memory.

    Raises:
      ValueError: images or ``batch`` below 1, or what :func:`sample.sample_object` refuses.
    """
    if min(cameras.width, cameras.height, batch) < 1:
        raise ValueError(f"got images of {cameras.width} x {cameras.height} and {batch=}; expected at least 1")
    indices = iter(indices)
    pending: tuple[list[int], tuple[jax.Array, jax.Array]] | None = None
    while chosen := list(itertools.islice(indices, batch)):
        # The last batch repeats its last object, so that only one shape is ever compiled.
        filled = chosen + chosen[-1:] * (batch - len(chosen))
        sampled = objects.stack([sample.sample_object(split, seed, index) for index in filled])
        images = _draw(sampled, cameras, normal_views=tuple(normal_views.tolist()))
        for image in images:
            image.copy_to_host_async()
        if pending is not None:
            yield from _fetch(*pending)
        pending = chosen, images
    if pending is not None:
        yield from _fetch(*pending)


def _fetch(indices: list[int], images: tuple[jax.Array, jax.Array]) -> Iterator[Example]:
    rgba, normals = (np.asarray(a) for a in images)
    for row, index in enumerate(indices):
        yield Example(index, rgba[row], normals[row])
