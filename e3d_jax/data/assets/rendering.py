"""Images, normal maps and depths of assets, by ray casting on the CPU (Embree)."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from e3d_jax import raycast, structs
from e3d_jax.data import lighting, photographs
from e3d_jax.data.assets import reading

SUPERSAMPLING = 3


@dataclasses.dataclass(frozen=True)
class Render:
    """An asset seen from several cameras.

    Attributes:
      views: images, and normal maps of ``views.normal_views``; where a surface lets a part of the light through, the
        image shows what is behind it as well, and alpha is what all surfaces together take.
      depths: distance of the surface along each camera's optical axis, object units; 0 where there is none. Depths and
        normals are of the first surface at which half of the light is taken.
    """

    views: structs.ViewSet
    depths: Float[np.ndarray, "v h w"]


def render(
    asset: reading.Asset,
    cameras: structs.Cameras,
    normal_views: Int[np.ndarray, " a"],
    anchors: Int[np.ndarray, " k"] | None = None,
    lights: Sequence[lighting.Lights] | None = None,
) -> Render:
    """Draw an asset.

    Args:
      asset: what to draw.
      cameras: to draw from.
      normal_views: indices of the views that get a normal map.
      anchors: indices of the anchors; those with a normal map when not given.
      lights: of each view; the usual light of :mod:`e3d_jax.data.lighting` when not given.
    """
    surface = raycast.Surface(asset.vertices, asset.faces)

    def shade(forward, lights, hits):
        normals = asset.normals(hits)
        depth = hits.depth * (hits.directions @ forward)
        color = asset.color(hits, lighting.brightness(normals, lights))
        return np.concatenate([color, normals, depth[:, None]], -1)

    opacity = None if asset.opaque else asset.opacity
    rgba, normals, depths = [], [], []
    for view in range(len(cameras)):
        forward = np.asarray(cameras.world_from_cam)[view, :3, 2]
        shade_view = functools.partial(shade, forward, lights[view] if lights else None)
        values, alpha = surface.render(
            cameras[[view]], shade_view, supersampling=SUPERSAMPLING, opacity=opacity, blended=3
        )
        rgb, normal, depth = np.split(values, [3, 6], -1)
        known = alpha[..., None] > 0
        rgba.append(np.concatenate([np.where(known, rgb, 1.0), alpha[..., None]], -1).clip(0, 1))
        normals.append(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9))
        depths.append(depth[..., 0])
    views = structs.ViewSet(
        rgba=np.stack(rgba),
        cameras=cameras,
        normal_views=normal_views,
        normals=np.stack(normals)[normal_views],
        anchors=normal_views if anchors is None else anchors,
    )
    return Render(views, np.stack(depths))


def photograph(asset: reading.Asset, shots: photographs.Shots, effects: float, *, normals: bool) -> structs.ViewSet:
    """Draw input images of an asset, framed and developed.

    Args:
      asset: what to draw.
      shots: how they are taken.
      effects: strength of what is added to them (:func:`photographs.develop`).
      normals: whether they get normal maps.

    Raises:
      ValueError: the asset cannot be seen in one of them.
    """
    count = len(shots.cameras)
    finder, none = photographs.finder(shots.cameras), np.arange(0)
    boxes = [photographs.bounds(rgba[..., 3]) for rgba in render(asset, finder, none).views.rgba]
    low, high = np.swapaxes(np.array(boxes, np.float32), 0, 1)
    framed = photographs.framed(shots.cameras, low, high, shots.errors)
    lights = [jax.tree.map(lambda x, i=i: x[i, ...], shots.lights) for i in range(count)]
    views = render(asset, framed, np.arange(count) if normals else none, none, lights).views
    developed = [
        photographs.develop(rgba, seed, effects) for rgba, seed in zip(views.rgba, shots.seeds.tolist(), strict=True)
    ]
    return dataclasses.replace(views, rgba=np.stack(developed))
