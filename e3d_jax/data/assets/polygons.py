"""Polygons of any number of corners as triangles."""

import mapbox_earcut
import numpy as np
from jaxtyping import Float, Int


def triangulate(
    points: Float[np.ndarray, "p 3"], corners: Int[np.ndarray, " c"], counts: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, "f 3"], Int[np.ndarray, " f"]]:
    """Split polygons into triangles: convex ones into a fan, others by ear clipping.

    Args:
      points: positions.
      corners: indices of the points of all polygons, one polygon after the other.
      counts: number of corners of each polygon; fewer than three are not drawn.

    Returns:
      The triangles as places in ``corners``, in the order of the polygons, and the polygon of each.
    """
    counts = np.asarray(counts, np.int64)
    starts = np.cumsum(counts) - counts
    triangles, polygons = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for size in np.unique(counts[counts >= 3]).tolist():
        which = np.flatnonzero(counts == size)
        fan = np.stack([np.zeros(size - 2, np.int64), np.arange(1, size - 1), np.arange(2, size)], -1)
        split = np.broadcast_to(fan, (len(which), size - 2, 3)).copy()
        if size > 3:
            shapes = points[corners[starts[which, None] + np.arange(size)]]
            flat = _flatten(shapes)
            for index in np.flatnonzero(~_convex(flat)):
                split[index] = _clip_ears(flat[index], fan)
        triangles.append((starts[which, None, None] + split).reshape(-1, 3))
        polygons.append(np.repeat(which, size - 2))
    order = np.argsort(np.concatenate(polygons), kind="stable")
    return np.concatenate(triangles)[order], np.concatenate(polygons)[order]


def _flatten(shapes: Float[np.ndarray, "n k 3"]) -> Float[np.ndarray, "n k 2"]:
    """Return polygons in the plane of their (Newell) normals, counterclockwise."""
    shapes = np.asarray(shapes, np.float64)
    shapes = shapes - shapes.mean(1, keepdims=True)
    normal = np.cross(shapes, np.roll(shapes, -1, 1)).sum(1)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal = np.where(length > 0, normal / np.where(length > 0, length, 1), [0.0, 0.0, 1.0])
    helper = np.eye(3)[np.abs(normal).argmin(-1)]
    right = np.cross(helper, normal)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    up = np.cross(normal, right)
    return np.stack([(shapes * right[:, None]).sum(-1), (shapes * up[:, None]).sum(-1)], -1)


def _convex(flat: Float[np.ndarray, "n k 2"]) -> np.ndarray:
    """Return which counterclockwise polygons never turn right, but for rounding errors."""
    edges = np.roll(flat, -1, 1) - flat
    later = np.roll(edges, -1, 1)
    turns = edges[..., 0] * later[..., 1] - edges[..., 1] * later[..., 0]
    lengths = np.linalg.norm(edges, axis=-1) * np.linalg.norm(later, axis=-1)
    return ~(turns < -1e-5 * lengths).any(-1)


def _clip_ears(flat: Float[np.ndarray, "k 2"], fan: Int[np.ndarray, "t 3"]) -> Int[np.ndarray, "t 3"]:
    """Return the triangles of a polygon, filled up with empty ones; the fan if it is too broken to be clipped."""
    ears = mapbox_earcut.triangulate_float64(np.ascontiguousarray(flat), np.array([len(flat)], np.uint32))
    ears = ears.reshape(-1, 3).astype(np.int64)
    if not len(ears):
        return fan
    a, b, c = np.moveaxis(flat[ears], 1, 0)
    clockwise = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0] < 0
    ears[clockwise] = ears[clockwise][:, ::-1]
    out = np.zeros_like(fan)
    out[: len(ears)] = ears[: len(fan)]
    return out
