"""The zero surface of a signed distance as a closed, coloured triangle mesh."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from skimage import measure

from e3d_jax import structs

CHUNK = 1 << 16  # points of one call, always padded to this many so that a compiled function compiles once


def extract_mesh(
    distance_fn: Callable[[Float[structs.ArrayLike, "n 3"]], Float[structs.ArrayLike, " n"]],
    color_fn: Callable[[Float[structs.ArrayLike, "n 3"]], Float[structs.ArrayLike, "n 3"]],
    box: Float[structs.ArrayLike, "2 3"],
    resolution: int,
    *,
    floater_fraction: float = 0.02,
) -> structs.Mesh:
    """Marching cubes on the box, closed where the surface leaves it.

    Args:
      distance_fn: signed distance of world points, positive outside.
      color_fn: RGB in [0, 1] of points on the surface.
      box: lower and upper corner of the region, world frame.
      resolution: cells along the longest side of the box.
      floater_fraction: parts with a smaller share of the largest part's volume are removed.

    Returns:
      A watertight mesh with outward, counter-clockwise faces; cavities that nothing can see are filled.

    Raises:
      ValueError: ``resolution`` below 8, non-finite distances, or no surface inside the box.
    """
    if resolution < 8:
        raise ValueError(f"{resolution=} is too coarse for a mesh; use at least 8 cells along the longest side")
    lower, upper = np.asarray(box, np.float64)
    spacing = (upper - lower).max() / resolution
    shape = np.ceil((upper - lower) / spacing - 1e-6).astype(int) + 1
    distance = _lattice_distance(distance_fn, lower, spacing, shape)
    if not np.isfinite(distance).all():
        raise ValueError("the signed distance has non-finite values; the fit must have diverged")
    distance = _one_object(distance, spacing, floater_fraction)
    # One layer of outside around the lattice closes surfaces that touch the box.
    padded = np.pad(distance, 1, constant_values=spacing / 2)
    vertices, faces, _, _ = measure.marching_cubes(padded, 0.0, gradient_direction="descent", allow_degenerate=False)
    vertices = (lower + (vertices - 1) * spacing).astype(np.float32)
    return structs.Mesh(
        vertices=vertices, faces=faces.astype(np.int32), colors=_in_chunks(color_fn, vertices).clip(0, 1)
    )


def _lattice_distance(distance_fn, lower, spacing, shape) -> Float[np.ndarray, "x y z"]:
    """Distances on the lattice; away from the surface three points of four along an axis are interpolated."""
    stride = 4
    coarse_shape = -(-(shape - 1) // stride) + 1
    coarse_points = lower + np.argwhere(np.ones(coarse_shape)) * (stride * spacing)
    coarse = _in_chunks(distance_fn, coarse_points).reshape(coarse_shape)
    fine = ndimage.zoom(coarse, (stride * (coarse_shape - 1) + 1) / coarse_shape, order=1, grid_mode=False)
    fine = fine[: shape[0], : shape[1], : shape[2]]
    # Twice the cell's diagonal, since fitted distances are only nearly distances.
    close = np.abs(fine) < 2 * np.sqrt(3) * stride * spacing
    if close.any():
        fine[close] = _in_chunks(distance_fn, lower + np.argwhere(close) * spacing)
    # A lattice point exactly on the surface would make faces without area.
    return np.where(np.abs(fine) < 1e-4 * spacing, 1e-4 * spacing, fine)


def _one_object(distance, spacing, floater_fraction):
    """Without floaters and without cavities."""
    parts, count = ndimage.label(distance < 0)
    if count == 0:
        raise ValueError("the field has no surface inside the box: its views agree on no object; try another seed")
    volume = np.bincount(parts.ravel())[1:]
    kept = np.isin(parts, 1 + np.flatnonzero(volume >= floater_fraction * volume.max()))
    distance = np.where((distance < 0) & ~kept, spacing / 2, distance)
    solid = ndimage.binary_fill_holes(kept)
    return np.where(solid & ~kept, -spacing / 2, distance)


def _in_chunks(function, points) -> np.ndarray:
    out = []
    for start in range(0, len(points), CHUNK):
        chunk = points[start : start + CHUNK].astype(np.float32)
        out.append(np.asarray(function(np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0)), mode="edge")))[: len(chunk)])
    return np.concatenate(out)
