"""What each step of a fit looks at: pixels of the views, drawn on the device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

from e3d_jax import cameras, structs
from e3d_jax.reconstruction import fields, schedule, volume

NEAR_OBJECT = 0.9  # share of the rays that go through pixels near the object


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pixels:
    """Views on the device.

    Attributes:
      rgba: every pixel of every view.
      normals: unit normals in the world frame; zero where unknown.
      cameras: of the views.
      anchors: views that are trusted for masks and normals.
      weights: trust in the colours of each view.
      near_object: pixels of each view, those near its silhouette first.
      num_near: how many those are.
    """

    rgba: Float[Array, "v hw 4"]
    normals: Float[Array, "v hw 3"]
    cameras: structs.Cameras
    anchors: Int[Array, " k"]
    weights: Float[Array, " v"]
    near_object: Int[Array, "v hw"]
    num_near: Int[Array, " v"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One step, or a stack of steps.

    Attributes:
      rays: rays through pixel centres.
      view: the view of each.
      across: how a ray's direction changes a pixel to the right, and a pixel down.
      placed: their samples.
      rgba: what they should see.
      normals: world normals that they should see; zero where unknown.
      anchor: whether their view is an anchor.
      weights: trust in their view.
      background: the colour behind the object, random so that nothing outside the surface can pass for it.
      points: random points of the box.
      nearby: a random neighbour of each.
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


def load(views: structs.ViewSet, weights: Float[structs.ArrayLike, " v"], *, contrast: float) -> Pixels:
    """Views on the device, each with the weight of its errors; coverage is sharpened ``contrast`` times around 0.5."""
    num_views, height, width = views.rgba.shape[:3]
    alpha = ((views.rgba[..., 3:] - 0.5) * contrast + 0.5).clip(0, 1)
    rgba = np.concatenate([views.rgba[..., :3], alpha], -1)
    normals = np.zeros((num_views, height * width, 3), np.float32)
    normals[views.normal_views] = views.normals.reshape(-1, height * width, 3)
    reach = max(2, width // 24)
    near = [ndimage.maximum_filter(alpha, 2 * reach + 1).ravel() > 0 for alpha in views.rgba[..., 3]]
    return Pixels(
        rgba=jnp.asarray(rgba.reshape(num_views, -1, 4)),
        normals=jnp.asarray(normals),
        cameras=jax.tree.map(jnp.asarray, views.cameras),
        anchors=jnp.asarray(views.anchors, jnp.int32),
        weights=jnp.asarray(weights, jnp.float32),
        near_object=jnp.asarray(np.stack([np.argsort(~row, kind="stable") for row in near]), jnp.int32),
        num_near=jnp.asarray([max(1, row.sum()) for row in near], jnp.int32),
    )


def draw(
    key: jax.Array,
    pixels: Pixels,
    progress: Float[Array, ""],
    cached: Float[Array, "x y z 1"],
    box: Float[Array, "2 3"],
    *,
    band: Float[Array, ""],
    rays: int,
    candidates: int,
    samples: int,
    random_points: int,
    spread: float,
    all_views: tuple[float, ...],
) -> Batch:
    """One batch: rays from the anchors or from all views by the schedule, and random points.

    Args:
      key: spent here.
      pixels: the views.
      progress: of the fit, [0, 1].
      cached: occupancy cache, see :mod:`e3d_jax.reconstruction.occupancy`.
      box: region that the cache spans.
      band: see :func:`occupancy.band`.
      rays: number of rays.
      candidates: see :func:`volume.place_samples`.
      samples: samples a ray.
      random_points: number of random points.
      spread: standard deviation of the way from a point to its neighbour, object units.
      all_views: see :func:`schedule.uses_all_views`.
    """
    num_views, num_pixels = pixels.rgba.shape[:2]
    choice_key, place_key, background_key, point_key, nearby_key = jax.random.split(key, 5)
    chance = jax.random.uniform(choice_key, (4, rays))
    anchor = pixels.anchors[_pick(chance[0], len(pixels.anchors))]
    view = jnp.where(schedule.uses_all_views(progress, all_views), _pick(chance[0], num_views), anchor)
    near = pixels.near_object[view, _pick(chance[1], pixels.num_near[view])]
    pixel = jnp.where(chance[3] < NEAR_OBJECT, near, _pick(chance[2], num_pixels))
    width = pixels.cameras.width
    through = cameras.pixel_rays(pixels.cameras[view], jnp.stack([pixel % width, pixel // width], -1) + 0.5)
    axes = jnp.swapaxes(pixels.cameras.world_from_cam[view, :3, :2], 1, 2)
    forward = (through.directions * pixels.cameras.world_from_cam[view, :3, 2]).sum(-1, keepdims=True)
    placed = volume.place_samples(
        place_key,
        through,
        box,
        lambda points: fields.interpolate(cached, box, points)[:, 0],
        band=band,
        candidates=candidates,
        samples=samples,
    )
    points = jax.random.uniform(point_key, (random_points, 3), minval=box[0], maxval=box[1])
    return Batch(
        rays=through,
        view=view,
        across=axes * (forward / pixels.cameras.focal[view])[..., None],
        placed=placed,
        rgba=pixels.rgba[view, pixel],
        normals=pixels.normals[view, pixel],
        anchor=jnp.isin(view, pixels.anchors),
        weights=pixels.weights[view],
        background=jax.random.uniform(background_key, (rays, 3)),
        points=points,
        nearby=points + spread * jax.random.normal(nearby_key, points.shape),
    )


def _pick(chance, count):
    """Index below ``count`` from a number in [0, 1)."""
    return jnp.minimum((chance * count).astype(jnp.int32), count - 1)
