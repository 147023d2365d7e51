"""Which points of a surface can be seen from outside of an object."""

import itertools

import numpy as np
from jaxtyping import Bool, Float

from e3d_jax import raycast, structs

# The directions from the center of a cube to the centers of its faces, edges, and corners.
DIRECTIONS = np.array([d for d in itertools.product((-1, 0, 1), repeat=3) if any(d)], np.float32)
_TOLERANCE = 2e-3  # of the extent of the mesh


def visible(points: Float[np.ndarray, "n 3"], mesh: structs.Mesh) -> Bool[np.ndarray, " n"]:
    """Return which points on a mesh are seen by at least one of 26 distant viewers around it.

    Scans and generated meshes may have inner walls that no image shows.
    """
    corners = np.asarray(mesh.vertices, np.float32)[np.unique(mesh.faces)]
    extent = float(np.linalg.norm(np.ptp(corners, axis=0)))
    surface = raycast.Surface(mesh.vertices, mesh.faces)
    seen = np.zeros(len(points), bool)
    for direction in DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True):
        hidden = np.flatnonzero(~seen)
        # Parallel rays toward the points, from one extent away.
        starts = np.asarray(points[hidden], np.float32) + extent * direction
        ray, hits = surface.cast(starts, np.broadcast_to(-direction, starts.shape))
        seen[hidden] = True  # Rounding may let a ray slip through at an edge; nothing is in its way.
        seen[hidden[ray]] = hits.depth >= extent * (1 - _TOLERANCE)
    return seen
