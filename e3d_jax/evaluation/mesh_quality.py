"""Whether a mesh is fit for use: closed, manifold, free of fragments, and with a sound texture atlas."""

from typing import Any

import igl
import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse import csgraph

from e3d_jax import raycast, structs

# Faces whose smallest height is below this fraction of their longest edge are degenerate.
THIN = 1e-4


def quality(mesh: structs.Mesh) -> dict[str, float]:
    """Return the qualities of a mesh by name.

    Vertices at the same place count as one, as along the seams of a texture.

      * ``watertight``: 1 if every edge joins two faces of the same orientation, else 0.
      * ``boundary_edges``: edges of a single face.
      * ``nonmanifold_edges``: edges of more than two faces, or of two faces of opposite orientations.
      * ``nonmanifold_vertices``: vertices whose faces are not one fan.
      * ``components``: parts that share no vertex.
      * ``degenerate_faces``: faces without area, or thinner than 1e-4 of their longest edge.
      * ``self_intersecting_faces``: faces that cross others, in single precision; corners that are shared do not count.
      * ``faces``: all of them.
      * ``uv_overlap``: fraction of the used texels that lie in several faces; only with a texture.
      * ``texels_wasted``: fraction of the texels that lie in no face; only with a texture.

    Raises:
      ValueError: the mesh has no faces.
    """
    if not len(mesh.faces):
        raise ValueError("the mesh has no faces")
    corners = np.asarray(mesh.vertices)[mesh.faces].reshape(-1, 3)
    places, welded = np.unique(corners, axis=0, return_inverse=True)
    faces = welded.reshape(-1, 3)
    thin = _thin(np.asarray(mesh.vertices, np.float64)[mesh.faces])
    # Faces that touch themselves join nothing.
    whole = faces[(faces != np.roll(faces, 1, axis=1)).all(1)]
    counts = _edges(whole)
    return {
        "watertight": float(len(whole) > 0 and not counts["boundary_edges"] and not counts["nonmanifold_edges"]),
        **counts,
        "nonmanifold_vertices": float(_nonmanifold_vertices(whole)),
        "components": float(_components(faces)),
        "degenerate_faces": float(np.count_nonzero(thin)),
        "self_intersecting_faces": float(raycast.intersecting(places, faces).sum()),
        "faces": float(len(faces)),
        **({} if mesh.texture is None else _atlas(mesh.texture)),
    }


def _thin(triangles: Float[np.ndarray, "f 3 3"]) -> np.ndarray:
    edge = np.roll(triangles, -1, axis=1) - triangles
    longest = np.linalg.norm(edge, axis=-1).max(1)
    area = np.linalg.norm(np.cross(edge[:, 0], edge[:, 1]), axis=-1)
    return area <= THIN * longest**2  # The height is the doubled area over the longest edge.


def _edges(faces: Int[np.ndarray, "f 3"]) -> dict[str, float]:
    """Return the numbers of edges by the faces that they join."""
    directed = np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2)
    forward = directed[:, 0] < directed[:, 1]
    _, edge = np.unique(np.sort(directed, axis=1), axis=0, return_inverse=True)
    edge = edge.reshape(-1)
    count, ahead = np.bincount(edge), np.bincount(edge, forward)
    return {
        "boundary_edges": float(np.count_nonzero(count == 1)),
        "nonmanifold_edges": float(np.count_nonzero((count > 2) | ((count == 2) & (ahead != 1)))),
    }


def _nonmanifold_vertices(faces: Int[np.ndarray, "f 3"]) -> int:
    """Return the number of vertices whose faces are not connected through edges at the vertex."""
    if not len(faces):
        return 0
    fan = np.asarray(igl.is_vertex_manifold(faces)).reshape(-1)
    return int(np.count_nonzero(~fan[np.unique(faces)]))


def _components(faces: Int[np.ndarray, "f 3"]) -> int:
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    count = faces.max() + 1 if len(faces) else 0
    graph = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(count, count))
    return int(csgraph.connected_components(graph, directed=False)[0])


def _atlas(texture: structs.Texture) -> dict[str, float]:
    """Return how the faces use the texels of a texture."""
    height, width = texture.image.shape[:2]
    uv = np.asarray(texture.corner_uv, np.float64)
    # Positions in texels, with the center of the first at 0; the shift keeps lines of the atlas off texel centers.
    at = np.stack([uv[..., 0] * width, (1 - uv[..., 1]) * height], -1) - 0.5 + [1.3e-6, 1.7e-6]
    counts = _coverage(at, (width, height))
    used = int(np.count_nonzero(counts))
    return {
        "uv_overlap": int(np.count_nonzero(counts > 1)) / max(used, 1),
        "texels_wasted": 1 - used / counts.size,
    }


def _coverage(triangles: Float[np.ndarray, "f 3 2"], shape: tuple[int, int]) -> np.ndarray:
    """Return how many triangles hold each point of a grid."""
    low = np.ceil(triangles.min(1)).astype(int).clip(0)
    high = np.minimum(np.floor(triangles.max(1)).astype(int) + 1, shape)
    extent = (high - low).clip(0)
    counts, cells = np.zeros(shape[0] * shape[1], np.int64), extent.prod(1)
    # In parts of limited memory; each row is a pair of a triangle and a point in its bounding box.
    ends = np.cumsum(cells)
    for part in np.split(np.arange(len(cells)), np.searchsorted(ends, np.arange(1 << 22, int(ends[-1]), 1 << 22))):
        face: Any = np.repeat(part, cells[part])
        rank = np.arange(len(face)) - np.repeat(np.cumsum(cells[part]) - cells[part], cells[part])
        point = low[face] + np.stack([rank // extent[face, 1], rank % extent[face, 1]], -1)
        corner = triangles[face] - point[:, None]
        following = np.roll(corner, -1, axis=1)
        area = corner[..., 0] * following[..., 1] - corner[..., 1] * following[..., 0]
        inside = (area > 0).all(1) | (area < 0).all(1)
        counts += np.bincount(point[inside, 0] * shape[1] + point[inside, 1], minlength=len(counts))
    return counts.reshape(shape)
