"""The rays and points of each step of a fit: pixels of the views and pictures, sampled on the device."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

from e3d_jax import cameras, structs
from e3d_jax.reconstruction import config, fit_schedules, occupancy, volume

NEAR_OBJECT = 0.9  # fraction of the rays that go through pixels near the object


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pixels:
    """Views on the device, followed by pictures, which have sizes of their own.

    Attributes:
      rgba: every pixel of every view, one view after another.
      normals: unit normals in the world frame; zero where unknown.
      first: index of the first pixel of each view.
      widths: of the views in pixels.
      counts: number of pixels of each view.
      cameras: the camera of each view; those of the pictures are unknown at first.
      anchors: views whose masks and normals are trusted.
      num_views: number of views that rays come from, without the pictures while their cameras are unknown.
      num_anchors: the same of the anchors.
      weights: trust in each view.
      near_object: pixel indices of each view, those near its silhouette first.
      num_near: number of pixels near the silhouette of each view.
    """

    rgba: Float[Array, "n 4"]
    normals: Float[Array, "n 3"]
    first: Int[Array, " v"]
    widths: Int[Array, " v"]
    counts: Int[Array, " v"]
    cameras: structs.Cameras
    anchors: Int[Array, " k"]
    num_views: Int[Array, ""]
    num_anchors: Int[Array, ""]
    weights: Float[Array, " v"]
    near_object: Int[Array, " n"]
    num_near: Int[Array, " v"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The rays and points of one step, or of a stack of steps.

    Attributes:
      rays: rays through pixel centers.
      view: the view of each ray.
      across: change of a ray's direction per pixel to the right, and per pixel down.
      placed: the samples of the rays.
      rgba: colors and coverage that the rays should see.
      normals: world normals that the rays should see; zero where unknown.
      anchor: whether the view of a ray is an anchor.
      weights: trust in the view of each ray.
      background: color behind the object, random so that nothing outside the surface can imitate it.
      points: random points of the box.
      nearby: a random neighbor of each point.
    """

    rays: structs.Rays
    view: Int[Array, "*b r"]
    across: Float[Array, "*b r 2 3"]
    placed: volume.Placed
    rgba: Float[Array, "*b r 4"]
    normals: Float[Array, "*b r 3"]
    anchor: Bool[Array, "*b r"]
    weights: Float[Array, "*b r"]
    background: Float[Array, "*b r 3"]
    points: Float[Array, "*b n 3"]
    nearby: Float[Array, "*b n 3"]


def load(
    views: structs.ViewSet,
    weights: Float[structs.ArrayLike, " v"],
    *,
    contrast: float,
    pictures: Sequence[Float[np.ndarray, "_ _ 4"]] = (),
) -> Pixels:
    """Move views to the device, and pictures that take part once :func:`join` is given their cameras.

    Args:
      views: the views.
      weights: trust in each view.
      contrast: factor that sharpens the coverage of the views around one half.
      pictures: RGBA with straight alpha.
    """
    num_views, height, width = views.rgba.shape[:3]
    alpha = ((views.rgba[..., 3:] - 0.5) * contrast + 0.5).clip(0, 1)
    sharp = [*np.concatenate([views.rgba[..., :3], alpha], -1), *pictures]
    normals = np.zeros((num_views, height, width, 3), np.float32)
    normals[views.normal_views] = views.normals
    near = [_near(image[..., 3]) for image in (*views.rgba, *pictures)]
    counts = [row.size for row in near]
    later, whole = np.arange(num_views, len(counts)), [*range(num_views), *[0] * len(pictures)]
    return Pixels(
        rgba=jnp.asarray(np.concatenate([image.reshape(-1, 4) for image in sharp])),
        normals=jnp.asarray(np.pad(normals.reshape(-1, 3), ((0, sum(counts[num_views:])), (0, 0)))),
        first=jnp.asarray(np.cumsum([0, *counts[:-1]]), jnp.int32),
        widths=jnp.asarray([image.shape[1] for image in sharp], jnp.int32),
        counts=jnp.asarray(counts, jnp.int32),
        cameras=jax.tree.map(jnp.asarray, views.cameras[np.array(whole)]),
        anchors=jnp.asarray([*views.anchors, *later], jnp.int32),
        num_views=jnp.int32(num_views),
        num_anchors=jnp.int32(len(views.anchors)),
        weights=jnp.asarray([*weights, *[0.0] * len(pictures)], jnp.float32),
        near_object=jnp.asarray(np.concatenate([np.argsort(~row, kind="stable") for row in near]), jnp.int32),
        num_near=jnp.asarray([max(1, row.sum()) for row in near], jnp.int32),
    )


def join(pixels: Pixels, found: Sequence[structs.Cameras | None]) -> Pixels:
    """Let pictures take part as anchors of full weight, except those whose camera is None."""
    if not any(found):
        return pixels
    first = len(pixels.widths) - len(found)
    pose, focal, center = (np.array(x) for x in jax.tree.leaves(pixels.cameras))
    for view, camera in enumerate(found, first):
        if camera is not None:
            pose[view], focal[view], center[view] = (np.asarray(x)[0] for x in jax.tree.leaves(camera))
    known = jnp.asarray([camera is not None for camera in found], jnp.float32)
    placed = dataclasses.replace(
        pixels.cameras, world_from_cam=jnp.asarray(pose), focal=jnp.asarray(focal), center=jnp.asarray(center)
    )
    return dataclasses.replace(
        pixels,
        cameras=placed,
        num_views=jnp.int32(len(pixels.widths)),
        num_anchors=jnp.int32(len(pixels.anchors)),
        weights=pixels.weights.at[first:].set(known),
    )


def _near(alpha: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, " hw"]:
    """Return which pixels are near the silhouette of an image."""
    reach = max(2, alpha.shape[1] // 24)
    return ndimage.maximum_filter(alpha, 2 * reach + 1).ravel() > 0


def sample(
    key: jax.Array, pixels: Pixels, progress: Float[Array, ""], cache: occupancy.Cache, settings: config.FitSettings
) -> Batch:
    """Return one batch: rays from the anchors or from all views, depending on the schedule, and random points.

    Args:
      key: used here only.
      pixels: the views.
      progress: progress of the fit, [0, 1].
      cache: says where along the rays the surface can be.
      settings: numbers of rays, samples and points, and the schedule of the views.
    """
    rays, box = settings.rays, cache.box
    choice_key, place_key, background_key, point_key, nearby_key = jax.random.split(key, 5)
    chance = jax.random.uniform(choice_key, (4, rays))
    anchor = pixels.anchors[_pick(chance[0], pixels.num_anchors)]
    all_views = fit_schedules.uses_all_views(progress, settings.all_views)
    view = jnp.where(all_views, _pick(chance[0], pixels.num_views), anchor)
    first, width = pixels.first[view], pixels.widths[view]
    near = pixels.near_object[first + _pick(chance[1], pixels.num_near[view])]
    pixel = jnp.where(chance[3] < NEAR_OBJECT, near, _pick(chance[2], pixels.counts[view]))
    through = cameras.pixel_rays(pixels.cameras[view], jnp.stack([pixel % width, pixel // width], -1) + 0.5)
    axes = jnp.swapaxes(pixels.cameras.world_from_cam[view, :3, :2], 1, 2)
    forward = (through.directions * pixels.cameras.world_from_cam[view, :3, 2]).sum(-1, keepdims=True)
    placed = volume.place_samples(
        place_key,
        through,
        box,
        cache.distance,
        band=cache.band,
        candidates=settings.candidates,
        samples=settings.samples,
    )
    points = jax.random.uniform(point_key, (settings.random_points, 3), minval=box[0], maxval=box[1])
    return Batch(
        rays=through,
        view=view,
        across=axes * (forward / pixels.cameras.focal[view])[..., None],
        placed=placed,
        rgba=pixels.rgba[first + pixel],
        normals=pixels.normals[first + pixel],
        anchor=jnp.isin(view, pixels.anchors),
        weights=pixels.weights[view],
        background=jax.random.uniform(background_key, (rays, 3)),
        points=points,
        nearby=points + settings.smoothness_step * jax.random.normal(nearby_key, points.shape),
    )


def _pick(chance, count):
    """Return an index below ``count`` for a number in [0, 1)."""
    return jnp.minimum((chance * count).astype(jnp.int32), count - 1)
