"""Objects to pictures as bytes, the device drawing one batch while the host samples the next."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from e3d_jax import cameras as cameras_lib
from e3d_jax import structs
from e3d_jax.data.synthetic import objects, sample, tracer


@dataclasses.dataclass(frozen=True)
class Example:
    """Pictures of one object on the ring.

    Attributes:
      index: which object of its seed.
      rgba: the views, straight alpha, white where it is 0.
      normals: the 8 anchors; (n + 1) / 2 of the world-frame normal, and the coverage; white where that is 0.
    """

    index: int
    rgba: UInt8[np.ndarray, "v h w 4"]
    normals: UInt8[np.ndarray, "8 h w 4"]


def _bytes(image: jax.Array) -> jax.Array:
    return jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)


@jax.jit
def _draw(batch: objects.ObjectParams, cameras: structs.Cameras) -> tuple[jax.Array, jax.Array]:
    images = tracer.render(objects.normalize(batch), cameras)
    anchors = cameras_lib.anchors_of(len(cameras))
    alpha = images.rgba[:, anchors, ..., 3:]
    normals = jnp.where(alpha > 0, (images.normals[:, anchors] + 1) / 2, 1.0)
    return _bytes(images.rgba), _bytes(jnp.concatenate([normals, alpha], -1))


def generate(
    split: str,
    seed: int,
    start: int,
    count: int,
    *,
    size: int = 128,
    num_views: int = cameras_lib.NUM_VIEWS,
    batch: int = 64,
) -> Iterator[Example]:
    """Draws objects ``start`` to ``start + count`` of a seed.

    Args:
      split: "train" or "test"; they share no object.
      seed: which sequence of objects.
      start: index of the first object.
      count: number of objects.
      size: width and height of the pictures in pixels.
      num_views: views on the ring.
      batch: objects drawn per call of the device; changes nothing but speed and memory.

    Raises:
      ValueError: ``size`` or ``batch`` below 1, or what :func:`sample.sample_object` refuses.
    """
    if size < 1 or batch < 1:
        raise ValueError(f"got {size=} and {batch=}; expected both to be at least 1")
    cameras = cameras_lib.ring(size, num_views)
    last = start + count - 1
    pending: tuple[range, tuple[jax.Array, jax.Array]] | None = None
    for first in range(start, start + count, batch):
        # The last batch repeats its last object, so that only one shape is ever compiled.
        drawn = [sample.sample_object(split, seed, min(i, last)) for i in range(first, first + batch)]
        images = _draw(objects.stack(drawn), cameras)
        for image in images:
            image.copy_to_host_async()
        ahead = range(first, min(first + batch, last + 1)), images
        if pending is not None:
            yield from _fetch(*pending)
        pending = ahead
    if pending is not None:
        yield from _fetch(*pending)


def _fetch(indices: range, images: tuple[jax.Array, jax.Array]) -> Iterator[Example]:
    rgba, normals = (np.asarray(a) for a in images)
    for row, index in enumerate(indices):
        yield Example(index, rgba[row], normals[row])
