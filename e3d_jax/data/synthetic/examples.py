"""Objects to images as bytes, the device drawing one batch while the host samples the next."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from e3d_jax import cameras as cameras_lib
from e3d_jax import structs
from e3d_jax.data import photographs
from e3d_jax.data.synthetic import objects, sample, tracer


@dataclasses.dataclass(frozen=True)
class Example:
    """Images of one object.

    Attributes:
      index: number of the object in the sequence of its seed.
      rgba: the views, straight alpha, white where it is 0.
      normals: one per view with a normal map; (n + 1) / 2 of the world-frame normal, and the coverage; white where that
        is 0.
      inputs: input images from cameras of their own, if any.
    """

    index: int
    rgba: UInt8[np.ndarray, "v h w 4"]
    normals: UInt8[np.ndarray, "a h w 4"]
    inputs: "Inputs | None" = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """Input images, not yet developed (:func:`e3d_jax.data.photographs.develop`).

    Attributes:
      rgba, normals: as in :class:`Example`.
      cameras: of the framed images.
      seeds: see :class:`e3d_jax.data.photographs.Shots`.
    """

    rgba: UInt8[structs.ArrayLike, "*b n h w 4"]
    normals: UInt8[structs.ArrayLike, "*b n h w 4"]
    cameras: structs.Cameras
    seeds: Int[structs.ArrayLike, "*b n"]


def _bytes(image: jax.Array) -> jax.Array:
    return jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="normal_views")
def _draw(
    batch: objects.ObjectParams,
    cameras: structs.Cameras,
    shots: photographs.Shots | None,
    normal_views: tuple[int, ...],
) -> tuple[jax.Array, jax.Array, Inputs | None]:
    normalized = objects.normalize(batch)
    images = tracer.render(normalized, cameras)
    chosen = np.array(normal_views, int)
    normals = _encode(images.normals[:, chosen], images.rgba[:, chosen, ..., 3:])
    return _bytes(images.rgba), normals, None if shots is None else _photograph(normalized, shots)


def _encode(normals: jax.Array, alpha: jax.Array) -> jax.Array:
    return _bytes(jnp.concatenate([jnp.where(alpha > 0, (normals + 1) / 2, 1.0), alpha], -1))


def _photograph(normalized: objects.ObjectParams, shots: photographs.Shots) -> Inputs:
    """Draw the input images of a batch: each is an object of its own, with one camera and its own lights."""
    size, count = shots.errors.shape[:2]
    flat = jax.tree.map(lambda x: jnp.asarray(x).reshape(size * count, 1, *x.shape[2:]), shots)
    lights = jax.tree.map(lambda x: x[:, 0], flat.lights)
    copies = dataclasses.replace(jax.tree.map(lambda x: jnp.repeat(x, count, 0), normalized), lights=lights)
    alpha = tracer.render(copies, photographs.finder(flat.cameras)).rgba[..., 3]
    low, high = _extent(alpha > photographs.COVERED * alpha.max((-2, -1), keepdims=True))
    cameras = photographs.framed(flat.cameras, low, high, flat.errors)
    images = tracer.render(copies, cameras)
    drawn = Inputs(_bytes(images.rgba), _encode(images.normals, images.rgba[..., 3:]), cameras, flat.seeds)
    return jax.tree.map(lambda x: x.reshape(size, count, *x.shape[2:]), drawn)


def _extent(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the least and the greatest (x, y) of silhouettes ``[*b h w]`` in widths; all of an empty image."""
    lines = jnp.stack([mask.any(-2), mask.any(-1)], -2)  # [*b, 2, side]: columns, rows
    lines = lines | ~lines.any(-1, keepdims=True)
    side = mask.shape[-1]
    return jnp.argmax(lines, -1) / side, 1 - jnp.argmax(lines[..., ::-1], -1) / side


def generate(
    split: str,
    seed: int,
    indices: Iterable[int],
    *,
    cameras: structs.Cameras,
    normal_views: Int[np.ndarray, " a"],
    inputs: cameras_lib.InputCameras | None = None,
    batch: int = 64,
) -> Iterator[Example]:
    """Draw objects of a seed.

    Args:
      split: "train" or "test"; they share no object.
      seed: which sequence of objects.
      indices: numbers of the objects; read a batch or two ahead.
      cameras: to draw from; see :func:`tracer.render`.
      normal_views: indices of the views that get a normal map.
      inputs: input images to draw beside these views; none when not given.
      batch: objects drawn per call of the device; affects only speed and memory.

    Raises:
      ValueError: images or ``batch`` below 1, or what :func:`sample.sample_object` refuses.
    """
    if min(cameras.width, cameras.height, batch) < 1:
        raise ValueError(f"got images of {cameras.width} x {cameras.height} and {batch=}; expected at least 1")
    indices = iter(indices)
    pending: tuple[list[int], Any] | None = None
    while chosen := list(itertools.islice(indices, batch)):
        # The last batch repeats its last object, so that only one shape is ever compiled.
        filled = chosen + chosen[-1:] * (batch - len(chosen))
        sampled = objects.stack([sample.sample_object(split, seed, index) for index in filled])
        shots = None
        if inputs is not None and inputs.count:
            planned = [photographs.plan(inputs, name_of(split, seed, index), cameras.width) for index in filled]
            shots = jax.tree.map(lambda *rows: np.stack(rows), *planned)
        drawn = _draw(sampled, cameras, shots, normal_views=tuple(normal_views.tolist()))
        for array in jax.tree.leaves(drawn):
            array.copy_to_host_async()
        if pending is not None:
            yield from _fetch(*pending)
        pending = chosen, drawn
    if pending is not None:
        yield from _fetch(*pending)


def name_of(split: str, seed: int, index: int) -> str:
    """Return the name of an object."""
    return f"{split}-{seed}-{index}"


def _fetch(indices: list[int], drawn: Any) -> Iterator[Example]:
    rgba, normals, inputs = jax.tree.map(np.asarray, drawn)
    for row, index in enumerate(indices):
        yield Example(index, rgba[row], normals[row], jax.tree.map(lambda x, row=row: x[row, ...], inputs))
