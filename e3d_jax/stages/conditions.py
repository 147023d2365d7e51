"""The conditions of the diffusion stages, for training on images and on cached latents, caching, and sampling alike."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from e3d_jax import cameras
from e3d_jax.models import denoisers, latents

# The maps that the anchor stage generates, in the order of the domain axis.
DOMAINS = ("color", "normal")


def view_labels(
    views: Float[Any, "b v 4 4"],
    inputs: Float[Any, "b n 4 4"],
    fov: Float[Any, "b n"] | None = None,
    known: Bool[Any, "b n 2"] | None = None,
) -> Float[Any, "b d v+n 12"]:
    """Return the camera and domain of each view, then of each input image, azimuths relative to the first input.

    A label is the sine, then the cosine, of [field of view, elevation, azimuth, one-hot domain of 3]; color is
    (1, 0, 0), normal (0, 1, 0). The released weights know elevation 0 and no field of view. NumPy in, NumPy out.

    Args:
      views: ``world_from_cam`` of the views.
      inputs: ``world_from_cam`` of the input images.
      fov: angles that the framed input images span (:func:`e3d_jax.cameras.fov_of`); that of views, and of inputs when
        not given, is 0 in the label.
      known: whether field of view and elevation of each input are known, all when not given. Sine and cosine of
        what is not are both 0, as of no angle.
    """
    lib = np if isinstance(views, np.ndarray) else jnp
    poses = lib.concatenate([views, inputs], 1)
    azimuth = cameras.relative_azimuth(poses, inputs[:, :1])
    spans = lib.zeros_like(azimuth)
    if fov is not None:
        spans = lib.concatenate([spans[:, : views.shape[1]], fov], 1)
    camera = lib.stack([spans, cameras.elevation_of(poses), azimuth], -1)
    shape = (camera.shape[0], len(DOMAINS), *camera.shape[1:])
    camera = lib.broadcast_to(camera[:, None], shape)
    domain = lib.broadcast_to(np.eye(3, dtype=np.float32)[: len(DOMAINS), None], shape)
    label = lib.concatenate([camera, domain], -1).astype(np.float32)
    circle = [lib.sin(label), lib.cos(label)]
    if known is not None:
        shown = lib.pad(known, ((0, 0), (views.shape[1], 0), (0, 4)), constant_values=True)[:, None]
        circle = [lib.where(shown, part, np.float32(0)) for part in circle]
    return lib.concatenate(circle, -1)


def anchor_condition(
    model: denoisers.AnchorDenoiser,
    inputs: Float[Array, "b d n h w 4"],
    encoded: Float[Array, "b d n hl wl c"],
    labels: Float[Array, "b d views 12"],
    count: Int[Array, " b"] | None = None,
) -> denoisers.AnchorCondition:
    """Make the condition of input images.

    Args:
      model: the stage's module.
      inputs: input images, and encoded normal maps in the frame of the first input; framed
        (:func:`e3d_jax.images.object_box`).
      encoded: their scaled latents.
      labels: of :func:`view_labels`.
      count: how many inputs exist, from the first one on; all if None.
    """
    return denoisers.AnchorCondition(encoded, model.tokens(latents.network_image(inputs)), labels, count)


def frame_labels(frames: Float[Any, "b t 4 4"]) -> Float[Any, "b t 6"]:
    """Return the cameras of windows: sine, then cosine, of [0, elevation, azimuth relative to the first frame].

    The released weights know elevation 0 only. NumPy in, NumPy out.
    """
    lib = np if isinstance(frames, np.ndarray) else jnp
    azimuth = cameras.relative_azimuth(frames, frames[:, :1])
    label = lib.stack([lib.zeros_like(azimuth), cameras.elevation_of(frames), azimuth], -1).astype(np.float32)
    return lib.concatenate([lib.sin(label), lib.cos(label)], -1)


def window_condition(
    model: denoisers.InterpolationDenoiser,
    first: Float[Array, "b h w 3"],
    anchors: Float[Array, "b 3 hl wl c"],
    noise: Float[Array, " b"],
    labels: Float[Array, "b t 6"],
    layout: cameras.ViewLayout,
) -> denoisers.WindowCondition:
    """Make the condition of windows.

    Args:
      model: the stage's module.
      first: the first anchor of each window over white, in [-1, 1], without noise.
      anchors: posterior modes of the first, middle and last anchor with noise, not scaled.
      noise: standard deviation of that noise, as the network is given it; 0.02 as released.
      labels: of :func:`frame_labels`.
      layout: which of the anchors each frame takes as its condition.
    """
    return denoisers.WindowCondition(anchors[:, layout.frame_anchor], model.token(first), noise, labels)


def without_anchors(condition: denoisers.WindowCondition, dropped: Bool[Array, " b"]) -> denoisers.WindowCondition:
    """Return a condition whose anchors are hidden from some windows: zeros, as in Stable Video Diffusion.

    Args:
      condition: of windows.
      dropped: which of them.
    """

    def hide(x: Array) -> Array:
        return jnp.where(dropped.reshape(-1, *(1,) * (x.ndim - 1)), 0.0, x)

    return dataclasses.replace(condition, latents=hide(condition.latents), token=hide(condition.token))
