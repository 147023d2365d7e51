"""The visual hull as a signed distance: where the fit starts.

A point is outside the hull of exact silhouettes if any view sees it on the background. Generated silhouettes disagree
by a few pixels, so a view has a vote, not a veto: the distance of a point is the (votes + 1)-th largest among the views
of its image's distance to the silhouette, carried from pixels to object units at the depth of the point.
"""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from e3d_jax import structs
from e3d_jax.reconstruction import fields


def carve(
    alpha: Float[np.ndarray, "v h w"], cameras: structs.Cameras, *, half_extent: float, cells: int, votes: int
) -> tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "2 3"]]:
    """The hull's signed distance on a lattice of ``cells`` cells a side, and the box around the hull that it spans.

    Args:
      alpha: coverage in [0, 1].
      cameras: their cameras.
      half_extent: the hull is looked for in the cube of twice this side around the origin, object units.
      cells: cells a side.
      votes: how many views may be wrong about a point being outside.

    Raises:
      ValueError: no view shows an object, or the views share none inside the cube.
    """
    if not (alpha > 0.5).any():
        raise ValueError("no view shows an object: alpha is below one half everywhere")
    cube = np.array([[-half_extent] * 3, [half_extent] * 3], np.float32)
    coarse = np.asarray(fields.lattice(cube, (33, 33, 33)))
    spacing = 2 * half_extent / 32
    inside = coarse[hull_distance(alpha, cameras, coarse, votes=votes) < spacing / 2]
    if len(inside) == 0:
        raise ValueError(
            f"the silhouettes of the {len(alpha)} views share no object within {half_extent} of the origin; check the "
            f"poses, their units and the masks"
        )
    box = np.stack([inside.min(0) - 1.5 * spacing, inside.max(0) + 1.5 * spacing]).clip(-half_extent, half_extent)
    points = np.asarray(fields.lattice(box, (cells + 1, cells + 1, cells + 1)))
    return hull_distance(alpha, cameras, points, votes=votes), box


def hull_distance(
    alpha: Float[np.ndarray, "v h w"], cameras: structs.Cameras, points: Float[np.ndarray, "*n 3"], *, votes: int
) -> Float[np.ndarray, "*n"]:
    """Signed distance to the visual hull in object units, positive outside; exact only near the surface.

    Args:
      alpha: coverage in [0, 1]; the silhouette is where it is above one half.
      cameras: their cameras.
      points: world points.
      votes: how many views may be wrong about a point being outside.
    """
    flat = points.reshape(-1, 3)
    distances = np.empty((len(alpha), len(flat)), np.float32)
    for view, (silhouette, pose) in enumerate(zip(alpha > 0.5, np.asarray(cameras.world_from_cam), strict=True)):
        cam = (flat - pose[:3, 3]) @ pose[:3, :3]
        depth = np.maximum(cam[:, 2], 1e-3)
        focal, center = np.asarray(cameras.focal[view]), np.asarray(cameras.center[view])
        pixels = cam[:, :2] / depth[:, None] * focal + center
        seen = ndimage.map_coordinates(silhouette_distance(silhouette), pixels.T[::-1] - 0.5, order=1, mode="nearest")
        distances[view] = seen * depth / focal.mean()
    rank = len(alpha) - 1 - min(votes, len(alpha) - 1)
    return np.partition(distances, rank, axis=0)[rank].reshape(points.shape[:-1])


def silhouette_distance(silhouette: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Signed distance of pixel centres to the outline of a boolean image, in pixels, positive outside."""
    if not silhouette.any():
        # Without a silhouette every pixel is outside; the image's size stands for "far".
        return np.full(silhouette.shape, float(max(silhouette.shape)), np.float32)
    outside = ndimage.distance_transform_edt(~silhouette)
    # The frame of the picture is no outline: an object that leaves the picture goes on behind its edge.
    inside = ndimage.distance_transform_edt(silhouette) if not silhouette.all() else np.full(silhouette.shape, 1e3)
    return (np.maximum(outside - 0.5, 0) - np.maximum(inside - 0.5, 0)).astype(np.float32)
