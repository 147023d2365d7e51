"""The zero surface of a signed distance as a closed, coloured triangle mesh."""

import itertools
import warnings
from collections.abc import Callable

import fast_simplification
import numpy as np
import trimesh
from jaxtyping import Float, Int
from scipy import ndimage
from skimage import measure

from e3d_jax import structs

DistanceFn = Callable[[Float[structs.ArrayLike, "n 3"]], Float[structs.ArrayLike, " n"]]
ColorFn = Callable[[Float[structs.ArrayLike, "n 3"]], Float[structs.ArrayLike, "n 3"]]
CHUNK = 1 << 16  # points of one call, always padded to this many so that a compiled function compiles once


def extract_mesh(
    distance_fn: DistanceFn,
    color_fn: ColorFn,
    box: Float[structs.ArrayLike, "2 3"],
    resolution: int,
    *,
    max_faces: int | None = None,
    smoothing: float = 0.0,
    floater_fraction: float = 0.02,
) -> structs.Mesh:
    """Marching cubes on the box, closed where the surface leaves it.

    Args:
      distance_fn: signed distance of world points, positive outside.
      color_fn: RGB in [0, 1] of points on the surface.
      box: lower and upper corner of the region, world frame.
      resolution: cells along the longest side of the box.
      max_faces: decimate to at most so many faces.
      smoothing: standard deviation in cells of a Gaussian over the distances, against roughness that views which
        contradict each other leave; it also eats what is thinner.
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
    distance = _one_object(ndimage.gaussian_filter(distance, smoothing), spacing, floater_fraction)
    # One layer of outside around the lattice closes surfaces that touch the box.
    padded = np.pad(distance, 1, constant_values=spacing / 2)
    vertices, faces, _, _ = measure.marching_cubes(padded, 0.0, gradient_direction="descent", allow_degenerate=False)
    vertices = (lower + (vertices - 1) * spacing).astype(np.float32)
    faces = faces.astype(np.int32)
    if max_faces is not None and len(faces) > max_faces:
        vertices, faces = decimate(vertices, faces, max_faces)
    return structs.Mesh(vertices=vertices, faces=faces, colors=in_chunks(color_fn, vertices).clip(0, 1))


def decimate(
    vertices: Float[np.ndarray, "p 3"], faces: Int[np.ndarray, "f 3"], max_faces: int
) -> tuple[Float[np.ndarray, "q 3"], Int[np.ndarray, "g 3"]]:
    """Fewer faces by edge collapses of least quadric error (Garland and Heckbert 1997); a closed mesh stays closed.

    Collapses can glue sheets together along an edge, which then has four faces. Flaps, two faces back to back, are
    taken away; should that not be enough, the collapses are made in other orders, and then to fewer faces. Some orders
    stop early; they go on from where they stopped. A mesh that resists all of them keeps more faces, with a warning.

    Raises:
      ValueError: fewer than 4 faces are asked for.
    """
    if max_faces < 4:
        raise ValueError(f"a closed mesh of {max_faces} faces does not exist; ask for more, such as 1000")
    closed = trimesh.Trimesh(vertices, faces, process=False).is_watertight
    for share, order in itertools.product((1.0, 0.95, 0.9, 0.8), (5, 3, 7, 9)):
        fewer = _collapse(vertices, faces, max(4, int(share * max_faces)), order, closed)
        if fewer is not None and len(fewer[1]) < len(faces):
            vertices, faces = fewer
        if len(faces) <= max_faces:
            break
    else:
        warnings.warn(f"the mesh cannot be reduced to {max_faces} faces; it keeps {len(faces)}", stacklevel=2)
    return vertices, faces


def _collapse(vertices, faces, target: int, order: int, closed: bool):
    """One decimation, without flaps and unused vertices; None if it should be closed and is not."""
    vertices, faces = fast_simplification.simplify(vertices, faces, target_count=target, agg=order)
    _, group, count = np.unique(np.sort(faces, 1), axis=0, return_inverse=True, return_counts=True)
    found = trimesh.Trimesh(vertices, faces[count[group.reshape(-1)] == 1], process=False)
    if len(found.faces) == 0 or (closed and not (found.is_watertight and found.is_winding_consistent)):
        return None
    found.remove_unreferenced_vertices()
    return found.vertices.astype(np.float32), found.faces.astype(np.int32)


def _lattice_distance(distance_fn, lower, spacing, shape) -> Float[np.ndarray, "x y z"]:
    """Distances on the lattice; away from the surface three points of four along an axis are interpolated."""
    stride = 4
    coarse_shape = -(-(shape - 1) // stride) + 1
    coarse_points = lower + np.argwhere(np.ones(coarse_shape)) * (stride * spacing)
    coarse = in_chunks(distance_fn, coarse_points).reshape(coarse_shape)
    fine = ndimage.zoom(coarse, (stride * (coarse_shape - 1) + 1) / coarse_shape, order=1, grid_mode=False)
    fine = fine[: shape[0], : shape[1], : shape[2]]
    # Twice the cell's diagonal, since fitted distances are only nearly distances.
    close = np.abs(fine) < 2 * np.sqrt(3) * stride * spacing
    if close.any():
        fine[close] = in_chunks(distance_fn, lower + np.argwhere(close) * spacing)
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


def in_chunks(function, points: Float[np.ndarray, "n k"]) -> np.ndarray:
    """Values of a function of points, always called with :data:`CHUNK` of them."""
    out = []
    for start in range(0, len(points), CHUNK):
        chunk = points[start : start + CHUNK].astype(np.float32)
        out.append(np.asarray(function(np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0)), mode="edge")))[: len(chunk)])
    return np.concatenate(out)


def vertex_normals(mesh: structs.Mesh) -> Float[np.ndarray, "p 3"]:
    """Unit normals of the vertices, means of those of the faces around them."""
    return np.asarray(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals)
