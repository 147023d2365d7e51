"""Images, normal maps and depths of assets, by ray casting on the CPU (Embree)."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int

from e3d_jax import raycast, structs
from e3d_jax.data import lighting
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
) -> Render:
    """Draw an asset, lit as most synthetic objects are (:mod:`e3d_jax.data.lighting`).

    Args:
      asset: what to draw.
      cameras: to draw from.
      normal_views: indices of the views that get a normal map.
      anchors: indices of the anchors; those with a normal map when not given.
    """
    surface = raycast.Surface(asset.vertices, asset.faces)

    def shade(forward, hits):
        normals = asset.normals(hits)
        depth = hits.depth * (hits.directions @ forward)
        color = asset.color(hits, lighting.brightness(normals))
        return np.concatenate([color, normals, depth[:, None]], -1)

    opacity = None if asset.opaque else asset.opacity
    rgba, normals, depths = [], [], []
    for view in range(len(cameras)):
        forward = np.asarray(cameras.world_from_cam)[view, :3, 2]
        values, alpha = surface.render(
            cameras[[view]], functools.partial(shade, forward), supersampling=SUPERSAMPLING, opacity=opacity, blended=3
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
