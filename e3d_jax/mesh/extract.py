"""The zero surface of a signed distance as a closed, colored triangle mesh."""

import sys
import warnings
from collections.abc import Callable

import fast_simplification
import igl
import numpy as np
import trimesh
from jaxtyping import Float, Int
from scipy import ndimage
from skimage import measure

from e3d_jax import raycast, structs

DistanceFn = Callable[[Float[structs.ArrayLike, "n 3"]], Float[structs.ArrayLike, " n"]]
ColorFn = Callable[[Float[structs.ArrayLike, "n 3"]], Float[structs.ArrayLike, "n 3"]]
HANDLE_FACES = 8  # least faces per handle of a closed mesh, which decimation gets close to
CHUNK = 1 << 16  # points per call; calls are padded to this number, so that functions are compiled only once


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
    """Extract a mesh by marching cubes; where the surface leaves the box, it is closed.

    Args:
      distance_fn: signed distance of world points, positive outside.
      color_fn: RGB in [0, 1] of points on the surface.
      box: lower and upper corner of the region, world frame.
      resolution: cells along the longest side of the box.
      max_faces: decimate to at most this many faces. If the surface has too many handles for that, as torn fields do,
        gaps of up to half the longest side are filled first, narrow ones before wide ones, with a warning. If that is
        in vain, the mesh keeps more faces, also with a warning.
      smoothing: standard deviation, in cells, of a Gaussian blur of the distances. It removes roughness caused by
        contradictory views, but also anything thinner.
      floater_fraction: parts whose volume is below this fraction of that of the largest part are removed.

    Returns:
      A watertight mesh with outward, counterclockwise faces; enclosed cavities are filled.

    Raises:
      ValueError: ``resolution`` is below 8, distances are not finite, or there is no surface inside the box.
    """
    if resolution < 8:
        raise ValueError(f"{resolution=} is too coarse for a mesh; use at least 8 cells along the longest side")
    lower, upper = np.asarray(box, np.float64)
    spacing = (upper - lower).max() / resolution
    shape = np.ceil((upper - lower) / spacing - 1e-6).astype(int) + 1
    distance = _lattice_distance(distance_fn, lower, spacing, shape)
    if not np.isfinite(distance).all():
        raise ValueError(
            "the signed distance has non-finite values, so the fit has probably diverged; lower its learning rates"
        )
    distance, gap = ndimage.gaussian_filter(distance, smoothing), 0
    most = sys.maxsize if max_faces is None else max_faces
    while True:
        one = _one_object(_without_gaps(distance, spacing, gap) if gap else distance, spacing, floater_fraction)
        vertices, faces = _surface(one, spacing)
        vertices = (lower + vertices * spacing).astype(np.float32)
        last = 8 * gap >= resolution  # Filling wider ones would take too much memory.
        if len(faces) > most and (last or most >= HANDLE_FACES * _handles(vertices, faces)):
            vertices, faces = decimate(vertices, faces, most)
        if last or len(faces) <= most:
            break
        gap = 2 * gap or 1
    if len(faces) > most:
        warnings.warn(
            f"the mesh keeps {len(faces)} faces, although gaps of up to {2 * gap} cells are filled: no fewer were "
            f"found, so ask for more than {most}",
            stacklevel=2,
        )
    elif gap:
        warnings.warn(
            f"the surface has too many holes for {max_faces} faces, so gaps of up to {2 * gap} cells are filled; ask "
            "for more faces or a coarser mesh to keep them",
            stacklevel=2,
        )
    return structs.Mesh(vertices=vertices, faces=faces, colors=in_chunks(color_fn, vertices).clip(0, 1))


def _without_gaps(distance, spacing, reach):
    """Fill what a ball with a radius of ``reach`` cells cannot get into from outside (a morphological closing)."""
    margin = reach + 1
    away = ndimage.distance_transform_edt(np.pad(distance >= 0, margin, constant_values=True))
    depth = ndimage.distance_transform_edt(away <= reach)[(slice(margin, -margin),) * 3]
    return np.minimum(distance, (reach + 1 - depth) * spacing)


def _surface(distance, spacing):
    """Return the vertices, in units of cells, and faces of a closed surface."""
    # Vertices that are the same in single precision would give degenerate faces, whose removal tears the mesh. So
    # lattice points keep away from the surface, and no value is much larger than those next to it.
    distance = np.copysign(np.abs(distance).clip(1e-3 * spacing, 2 * spacing), distance)
    vertices, faces = _marching_cubes(distance, spacing)
    if is_closed(vertices, faces):
        return vertices, faces
    return _marching_cubes(_without_checkerboards(distance, spacing), spacing)


def _marching_cubes(distance, spacing):
    """Return vertices in units of cells, and faces; a layer of outside points closes surfaces that touch the box."""
    padded = np.pad(distance, 1, constant_values=spacing / 2)
    vertices, faces, _, _ = measure.marching_cubes(padded, 0.0, gradient_direction="descent", allow_degenerate=False)
    return vertices - 1, faces.astype(np.int32)


def _without_checkerboards(distance, spacing):
    """Fill lattice points until no square has its inside corners across from each other.

    Where two such squares meet, marching cubes can make an edge of four faces.
    """
    filled, found = distance.copy(), True
    while found:
        found = False
        for axes in ((0, 1), (0, 2), (1, 2)):
            value = np.moveaxis(filled, axes, (0, 1))  # a view
            corners = value[:-1, :-1], value[1:, :-1], value[:-1, 1:], value[1:, 1:]
            near, right, left, far = (corner < 0 for corner in corners)
            crossed = (near == far) & (left == right) & (near != left)
            corners[0][crossed & left] = corners[1][crossed & near] = -spacing / 2
            found |= crossed.any()
    return filled


def decimate(
    vertices: Float[np.ndarray, "p 3"], faces: Int[np.ndarray, "f 3"], max_faces: int
) -> tuple[Float[np.ndarray, "q 3"], Int[np.ndarray, "g 3"]]:
    """Reduce faces by edge collapses of least quadric error (Garland and Heckbert 1997); closed meshes stay closed.

    Fast collapses can glue two sheets together along an edge, which then has four faces, or push one through another.
    If they do, all are undone and repeated, several times slower, without those that change the topology or make faces
    intersect. If no others are left, the mesh keeps more faces.

    Raises:
      ValueError: ``max_faces`` is below 4.
    """
    if max_faces < 4:
        raise ValueError(f"a closed mesh cannot have only {max_faces} faces; ask for more, such as 1000")
    fewer = _without_flaps(*fast_simplification.simplify(vertices, faces, target_count=max_faces))
    sound = len(fewer[1]) <= max_faces and is_closed(*fewer) and not raycast.intersecting(*fewer).any()
    if not sound and is_closed(vertices, faces):
        corners = np.asarray(vertices, np.float64, order="F"), np.asarray(faces, np.int32, order="F")
        vertices, faces, *_ = igl.qslim(*corners, max_faces, True)  # True: no intersections.
        fewer = vertices.astype(np.float32), faces.astype(np.int32)
    return fewer


def _handles(vertices, faces) -> float:
    """Return the number of handles of a closed mesh, less one for each part after the first."""
    return 1 - (len(vertices) - len(faces) / 2) / 2  # Euler's formula


def is_closed(vertices: Float[np.ndarray, "p 3"], faces: Int[np.ndarray, "f 3"]) -> bool:
    """Return whether faces bound a solid: two meet at each edge, with one orientation, and one fan at each vertex."""
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    if len(faces) == 0 or not (mesh.is_watertight and mesh.is_winding_consistent):
        return False
    return bool(igl.is_vertex_manifold(np.asarray(faces)).all())


def _without_flaps(vertices, faces):
    """Remove pairs of faces back to back, and vertices without faces."""
    _, group, count = np.unique(np.sort(faces, 1), axis=0, return_inverse=True, return_counts=True)
    used, faces = np.unique(faces[count[group.reshape(-1)] == 1], return_inverse=True)
    return vertices[used].astype(np.float32), faces.reshape(-1, 3).astype(np.int32)


def _lattice_distance(distance_fn, lower, spacing, shape) -> Float[np.ndarray, "x y z"]:
    """Return the distances on the lattice; away from the surface, every fourth point per axis is evaluated."""
    stride = 4
    coarse_shape = -(-(shape - 1) // stride) + 1
    coarse_points = lower + np.argwhere(np.ones(coarse_shape)) * (stride * spacing)
    coarse = in_chunks(distance_fn, coarse_points).reshape(coarse_shape)
    fine = ndimage.zoom(coarse, (stride * (coarse_shape - 1) + 1) / coarse_shape, order=1, grid_mode=False)
    fine = fine[: shape[0], : shape[1], : shape[2]]
    # Twice the diagonal of a coarse cell, because fitted distances are only approximate.
    close = np.abs(fine) < 2 * np.sqrt(3) * stride * spacing
    if close.any():
        fine[close] = in_chunks(distance_fn, lower + np.argwhere(close) * spacing)
    return fine


def _one_object(distance, spacing, floater_fraction):
    """Remove floaters and fill cavities."""
    parts, count = ndimage.label(distance < 0)
    if count == 0:
        raise ValueError(
            "the field has no surface inside the box because its views do not agree on an object; try another seed"
        )
    volume = np.bincount(parts.ravel())[1:]
    kept = np.isin(parts, 1 + np.flatnonzero(volume >= floater_fraction * volume.max()))
    distance = np.where((distance < 0) & ~kept, spacing / 2, distance)
    solid = ndimage.binary_fill_holes(kept)
    return np.where(solid & ~kept, -spacing / 2, distance)


def in_chunks(function, points: Float[np.ndarray, "n k"]) -> np.ndarray:
    """Evaluate a function of points, always calling it with :data:`CHUNK` points."""
    out = []
    for start in range(0, len(points), CHUNK):
        chunk = points[start : start + CHUNK].astype(np.float32)
        out.append(np.asarray(function(np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0)), mode="edge")))[: len(chunk)])
    return np.concatenate(out)


def vertex_normals(mesh: structs.Mesh) -> Float[np.ndarray, "p 3"]:
    """Return unit vertex normals, the means of the normals of the surrounding faces."""
    return np.asarray(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals)
