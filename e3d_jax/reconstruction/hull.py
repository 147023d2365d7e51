"""The visual hull as a signed distance, which the fit starts from.

A point is outside the hull of exact silhouettes if any view sees it on the background. Generated silhouettes disagree
by a few pixels, so a view has a vote, not a veto. In each view, the projection of a point has a distance to the
silhouette, converted from pixels to object units at the depth of the point; the distance of the point is the
(votes + 1)-th largest of these.
"""

import functools
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import ndimage

from e3d_jax import structs
from e3d_jax.reconstruction import fields


def carve(
    alpha: Float[np.ndarray, "v h w"], cameras: structs.Cameras, *, half_extent: float, cells: int, votes: int
) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "2 3"]]:
    """Return the signed distance of the hull on a lattice, and the box around the hull that the lattice spans.

    Args:
      alpha: coverage in [0, 1].
      cameras: one camera per view.
      half_extent: the hull is searched for in the cube from ``-half_extent`` to ``half_extent``, object units.
      cells: cells per side of the lattice.
      votes: number of views that may be wrong about a point being outside.

    Raises:
      ValueError: no view shows an object, a camera does not look at the cube, or the views share no object inside it.
    """
    if not (alpha > 0.5).any():
        raise ValueError("no view shows an object: alpha is below one half everywhere")
    _check_cameras(cameras, half_extent)
    with futures.ThreadPoolExecutor() as pool:
        maps = np.stack(list(pool.map(silhouette_distance, alpha > 0.5)))
    rank = min(votes, len(alpha) - 1)
    cube = np.array([[-half_extent] * 3, [half_extent] * 3], np.float32)
    coarse = fields.lattice(cube, (33, 33, 33))
    spacing = 2 * half_extent / 32
    inside = np.asarray(coarse)[np.asarray(_ranked_distance(maps, cameras, coarse, rank)) < spacing / 2]
    if len(inside) == 0:
        raise ValueError(
            f"the silhouettes of the {len(alpha)} views share no object within {half_extent} of the origin; check the "
            f"poses, their units and the masks"
        )
    box = np.stack([inside.min(0) - 1.5 * spacing, inside.max(0) + 1.5 * spacing]).clip(-half_extent, half_extent)
    points = fields.lattice(box, (cells + 1, cells + 1, cells + 1))
    return np.asarray(_ranked_distance(maps, cameras, points, rank)), box


def _check_cameras(cameras: structs.Cameras, half_extent: float) -> None:
    """Refuse cameras that see no part of the ball inscribed in the cube."""
    pose = np.asarray(cameras.world_from_cam)
    if broken := np.flatnonzero(~np.isfinite(pose).all((1, 2))).tolist():
        raise ValueError(f"the poses of views {', '.join(map(str, broken))} are not finite; leave these views out")
    middle = -np.einsum("vji,vj->vi", pose[:, :3, :3], pose[:, :3, 3])
    depth = np.maximum(middle[:, 2:], 1e-6)
    pixel, reach = (
        middle[:, :2] / depth * np.asarray(cameras.focal) + np.asarray(cameras.center),
        half_extent / depth * np.asarray(cameras.focal),
    )
    size = np.array([cameras.width, cameras.height])
    away = (middle[:, 2] < -half_extent) | ((pixel + reach < 0) | (pixel - reach > size)).any(-1)
    if away.any():
        raise ValueError(
            f"the cameras of views {', '.join(map(str, np.flatnonzero(away)))} do not look at the object, which must "
            f"lie within {half_extent} of the origin; check the poses, their units and their axes"
        )


def agreement(
    alpha: Float[np.ndarray, "v h w"],
    cameras: structs.Cameras,
    base: Float[np.ndarray, "x y z"],
    box: Float[np.ndarray, "2 3"],
    cells: int = 48,
) -> Float[np.ndarray, " v"]:
    """Return how well each silhouette matches that of the hull: their intersection over union on a raster.

    Args:
      alpha: coverage in [0, 1].
      cameras: one camera per view.
      base: signed distance of the hull, see :func:`carve`.
      box: the region that ``base`` spans.
      cells: raster cells along the longer side of an image.
    """
    # Coordinates come first, so that each is contiguous.
    solid = np.ascontiguousarray(np.asarray(fields.lattice(box, base.shape))[base < 0].T)
    size = np.array([cameras.width, cameras.height])
    cell = max(size.max() / cells, 1.0)
    shape = np.ceil(size / cell).astype(int)
    focal, center = (np.asarray(x)[..., None] for x in (cameras.focal, cameras.center))
    scores = np.empty(len(alpha))
    for view, pose in enumerate(np.asarray(cameras.world_from_cam)):
        cam = pose[:3, :3].T @ (solid - pose[:3, 3:])
        pixel = cam[:2] / np.maximum(cam[2], 1e-3) * focal[view] + center[view]
        row, column = np.nonzero(alpha[view] > 0.5)
        hull, silhouette = (_raster(at, cell, shape) for at in (pixel, np.stack([column, row]) + 0.5))
        scores[view] = (hull & silhouette).sum() / max((hull | silhouette).sum(), 1)
    return scores


def _raster(points, cell, shape):
    """Return a mask of the cells that hold at least one of the points, ``[2, n]``."""
    # Points outside fall into a border, which is faster than filtering them out.
    column, row = np.clip(points / cell + 1, 0, shape[:, None] + 1).astype(np.int32)
    out = np.zeros(shape + 2, bool)
    out[column, row] = True
    return out[1:-1, 1:-1]


@functools.partial(jax.jit, static_argnames="rank")
def _ranked_distance(
    maps: Float[structs.ArrayLike, "v h w"], cameras: structs.Cameras, points: Float[Array, "x y z 3"], rank: int
) -> Float[Array, "x y z"]:
    """Return the ``rank``-th largest (from 0) of the views' distances, in object units, slab by slab."""

    def seen_from(points, outline, pose, focal, center):
        cam = ((points - pose[:3, 3])[:, :, None] * pose[:3, :3]).sum(1)
        depth = jnp.maximum(cam[:, 2], 1e-3)
        pixel = cam[:, :2] / depth[:, None] * focal + center - 0.5
        value = jax.scipy.ndimage.map_coordinates(outline, [pixel[:, 1], pixel[:, 0]], order=1, mode="nearest")
        return value * depth / focal.mean()

    def slab(points):
        flat = points.reshape(-1, 3)
        views = jnp.asarray(maps), *(jnp.asarray(x) for x in (cameras.world_from_cam, cameras.focal, cameras.center))
        distances = jax.vmap(functools.partial(seen_from, flat))(*views)
        return jax.lax.top_k(distances.T, rank + 1)[0][:, -1].reshape(points.shape[:-1])

    return jax.lax.map(slab, points)


def silhouette_distance(silhouette: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Return the signed distance of pixel centers to the outline of a boolean image, in pixels, positive outside."""
    if not silhouette.any():
        # Without a silhouette, every pixel is outside; the image size stands for "far".
        return np.full(silhouette.shape, float(max(silhouette.shape)), np.float32)
    outside = ndimage.distance_transform_edt(~silhouette)
    # The image border is not an outline: an object that leaves the image continues beyond its border.
    inside = ndimage.distance_transform_edt(silhouette) if not silhouette.all() else np.full(silhouette.shape, 1e3)
    return (np.maximum(outside - 0.5, 0) - np.maximum(inside - 0.5, 0)).astype(np.float32)
