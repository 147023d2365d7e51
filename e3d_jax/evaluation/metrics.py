"""How close pictures and meshes are. No files are read here.

Pictures are RGB in [0, 1] over white. Meshes are compared in the world frame, in object units (the object fits the unit
cube), and nothing is normalised or aligned behind the caller's back; see :mod:`e3d_jax.evaluation.alignment`.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import spatial
from skimage import metrics as skimage_metrics

from e3d_jax import structs

# Tells for points [n, 3] in the world frame whether they are inside of an object.
Occupancy = Callable[[np.ndarray], np.ndarray]


# -- Pictures ---------------------------------------------------------------------------------------------------------


def psnr(pred: Float[structs.ArrayLike, "h w c"], true: Float[structs.ArrayLike, "h w c"]) -> float:
    """Peak signal-to-noise ratio in dB over the whole picture, 100 at most (equal pictures)."""
    error = float(np.mean((np.asarray(pred, np.float64) - np.asarray(true, np.float64)) ** 2))
    return -10 * math.log10(max(error, 1e-10))


def ssim(pred: Float[structs.ArrayLike, "h w c"], true: Float[structs.ArrayLike, "h w c"]) -> float:
    """Structural similarity with the Gaussian window of Wang et al. 2004 (sigma 1.5), mean over the channels."""
    return float(
        skimage_metrics.structural_similarity(
            np.asarray(pred, np.float64),
            np.asarray(true, np.float64),
            gaussian_weights=True,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
    )


def normal_angle(
    pred: Float[structs.ArrayLike, "*b 3"], true: Float[structs.ArrayLike, "*b 3"], mask: Bool[structs.ArrayLike, "*b"]
) -> float:
    """Mean angle in degrees between two maps of unit normals, over the pixels of a mask.

    A pixel without a predicted normal (a zero vector) counts as 90 degrees, as a random guess would.

    Raises:
      ValueError: the mask is empty.
    """
    mask = np.asarray(mask, bool)
    if not mask.any():
        raise ValueError("the mask of the normal maps is empty; give maps that show the object")
    a, b = np.asarray(pred, np.float64)[mask], np.asarray(true, np.float64)[mask]
    # The arc tangent is exact at small angles, where the arc cosine of float32 normals is not.
    angle = np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1))
    angle = np.where(a.any(-1), angle, np.pi / 2)
    return float(np.degrees(angle).mean())


def mask_iou(pred: Float[structs.ArrayLike, "h w"], true: Float[structs.ArrayLike, "h w"]) -> float:
    """Intersection over union of two silhouettes (alpha above 0.5); 1 where both are empty."""
    return _iou(np.asarray(pred) > 0.5, np.asarray(true) > 0.5)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


# -- Surfaces ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
    """Two meshes seen from points spread evenly over either.

    Attributes:
      pred_to_true: distance of each point of the prediction to the true surface, object units.
      true_to_pred: distance of each point of the truth to the predicted surface.
      pred_cosine: cosine between the face normals at the ends of ``pred_to_true``.
      true_cosine: the same for ``true_to_pred``.
    """

    pred_to_true: Float[np.ndarray, " n"]
    true_to_pred: Float[np.ndarray, " n"]
    pred_cosine: Float[np.ndarray, " n"]
    true_cosine: Float[np.ndarray, " n"]

    def chamfer(self) -> float:
        """Mean of the two directions' mean distances, object units (half of the sum that some report)."""
        return float(self.pred_to_true.mean() + self.true_to_pred.mean()) / 2

    def fscore(self, tau: float) -> float:
        """Harmonic mean of precision and recall at distance ``tau`` (Knapitsch et al. 2017), in [0, 1]."""
        precision, recall = (self.pred_to_true < tau).mean(), (self.true_to_pred < tau).mean()
        return float(2 * precision * recall / max(precision + recall, 1e-12))

    def normal_consistency(self) -> float:
        """Mean absolute cosine of the normals, both directions, in [0, 1]."""
        return float(np.abs(self.pred_cosine).mean() + np.abs(self.true_cosine).mean()) / 2


def surface_distances(pred: structs.Mesh, true: structs.Mesh, samples: int = 50_000, seed: int = 0) -> SurfaceDistances:
    """Distances between two surfaces: ``samples`` points on each against the other's triangles.

    Point to surface rather than point to point, so that a mesh is at distance 0 of itself: the triangles around the
    nearest of many points of the other surface are measured exactly.

    Raises:
      ValueError: a mesh has no face of positive area.
    """
    rng = np.random.default_rng(seed)
    pred_points, pred_faces = sample_surface(pred, samples, rng)
    true_points, true_faces = sample_surface(true, samples, rng)
    pred_normals, true_normals = face_normals(pred), face_normals(true)
    to_true, nearest_true = _nearest_faces(pred_points, true, true_points, true_faces)
    to_pred, nearest_pred = _nearest_faces(true_points, pred, pred_points, pred_faces)
    return SurfaceDistances(
        pred_to_true=to_true,
        true_to_pred=to_pred,
        pred_cosine=(pred_normals[pred_faces] * true_normals[nearest_true]).sum(-1),
        true_cosine=(true_normals[true_faces] * pred_normals[nearest_pred]).sum(-1),
    )


def face_normals(mesh: structs.Mesh) -> Float[np.ndarray, "f 3"]:
    """Unit normals of the faces, zero for a degenerate one."""
    cross = _face_cross(mesh)
    return cross / np.maximum(np.linalg.norm(cross, axis=-1, keepdims=True), 1e-30)


def _face_cross(mesh: structs.Mesh) -> Float[np.ndarray, "f 3"]:
    a, b, c = np.moveaxis(np.asarray(mesh.vertices, np.float64)[mesh.faces], 1, 0)
    return np.cross(b - a, c - a)


def sample_surface(
    mesh: structs.Mesh, samples: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "{samples} 3"], Int[np.ndarray, " {samples}"]]:
    """Points spread evenly over a surface, and the face of each.

    Raises:
      ValueError: the mesh has no face of positive area.
    """
    area = np.linalg.norm(_face_cross(mesh), axis=-1)
    if not area.sum() > 0:
        raise ValueError(f"the mesh has no surface ({len(mesh.faces)} faces of area 0); give one with visible faces")
    # Stratified along the faces: less noise than independent draws.
    strata = (np.arange(samples) + rng.random(samples)) / samples
    face = np.searchsorted(np.cumsum(area) / area.sum(), strata, side="right").clip(0, len(area) - 1)
    root, split = np.sqrt(rng.random((samples, 1))), rng.random((samples, 1))
    a, b, c = np.moveaxis(np.asarray(mesh.vertices, np.float64)[mesh.faces[face]], 1, 0)
    return (1 - root) * a + root * (1 - split) * b + root * split * c, face


def _nearest_faces(
    points: Float[np.ndarray, "n 3"], mesh: structs.Mesh, seeds: Float[np.ndarray, "m 3"], seed_faces: np.ndarray
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Distance to, and index of, the face nearest to each point; ``seeds`` are points on the mesh's faces."""
    triangles = np.asarray(mesh.vertices, np.float64)[mesh.faces]
    # Centroids and corners too: a small or thin face may have no sample of its own. A corner stands for one of its
    # faces, as all of them are equally near where a corner is the nearest point.
    corners, first = np.unique(mesh.faces, return_index=True)
    seeds = np.concatenate([seeds, triangles.mean(1), np.asarray(mesh.vertices, np.float64)[corners]])
    seed_faces = np.concatenate([seed_faces, np.arange(len(triangles)), first // 3])
    _, index = spatial.cKDTree(seeds).query(points, k=min(16, len(seeds)), workers=-1)
    candidates = np.sort(seed_faces[index.reshape(len(points), -1)], axis=1)
    best, face = np.full(len(points), np.inf), np.zeros(len(points), np.int64)
    for column in range(candidates.shape[1]):
        # Sorted, so that a face met already is next to its like.
        fresh = np.flatnonzero(candidates[:, column] != candidates[:, column - 1]) if column else np.arange(len(points))
        found = candidates[fresh, column]
        distance = point_triangle_distance(points[fresh], triangles[found])
        closer = distance < best[fresh]
        best[fresh[closer]], face[fresh[closer]] = distance[closer], found[closer]
    return best, face


def point_triangle_distance(
    points: Float[np.ndarray, "n 3"], triangles: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, " n"]:
    """Distance of each point to its triangle: to the plane where it projects inside, else to the nearest edge."""
    start, edge = triangles, np.roll(triangles, -1, axis=1) - triangles
    offset = points[:, None] - start
    along = (offset * edge).sum(-1) / np.maximum((edge * edge).sum(-1), 1e-30)
    to_edges = np.linalg.norm(offset - along.clip(0, 1)[..., None] * edge, axis=-1).min(1)
    normal = np.cross(edge[:, 0], edge[:, 1])
    length = np.linalg.norm(normal, axis=-1)
    inside = (np.einsum("nkc,nkc->nk", np.cross(edge, offset), normal[:, None] + 0 * edge) >= 0).all(1) & (length > 0)
    to_plane = np.abs((offset[:, 0] * normal).sum(-1)) / np.maximum(length, 1e-30)
    return np.where(inside, to_plane, to_edges)


# -- Volumes ----------------------------------------------------------------------------------------------------------


def volume_iou(pred: structs.Mesh | Occupancy, true: structs.Mesh | Occupancy, resolution: int = 128) -> float:
    """Intersection over union of two solids on a grid of cells of side ``1 / resolution``.

    The grid covers the unit cube around the origin, where occupancy functions are evaluated, and what of a mesh lies
    outside of it. A closed mesh is filled exactly; of an open one the directions in which it looks closed decide.
    """
    meshes = [solid for solid in (pred, true) if isinstance(solid, structs.Mesh)]
    corners = np.concatenate([np.asarray(mesh.vertices, np.float64) for mesh in meshes] + [[[-0.5] * 3, [0.5] * 3]])
    low = np.floor(corners.min(0) * resolution - 1e-6) / resolution
    shape = np.ceil((corners.max(0) - low) * resolution - 1e-6).astype(int)
    return _iou(*(occupancy(solid, low, shape, 1 / resolution) for solid in (pred, true)))


def occupancy(
    solid: structs.Mesh | Occupancy, low: Float[np.ndarray, "3"], shape: Int[np.ndarray, "3"], cell: float
) -> Bool[np.ndarray, "x y z"]:
    """Which cell centres of a grid are inside a solid."""
    if not isinstance(solid, structs.Mesh):
        axes = [low[i] + (np.arange(shape[i]) + 0.5) * cell for i in range(3)]
        return np.asarray(solid(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)), bool).reshape(shape)
    # In cells, centre of the first cell at 0; the shift keeps grid lines off vertices and edges on round numbers.
    triangles = (np.asarray(solid.vertices, np.float64)[solid.faces] - low) / cell - 0.5 + [1.3e-6, 1.7e-6, 1.9e-6]
    votes = np.zeros(shape, np.int8)
    for axis in range(3):
        order = [(axis + 1) % 3, (axis + 2) % 3, axis]
        votes += np.transpose(_column_votes(triangles[..., order], shape[order]), np.argsort(order))
    return votes > 0


def _column_votes(triangles: Float[np.ndarray, "f 3 3"], shape: Int[np.ndarray, "3"]) -> np.ndarray:
    """Inside (1) or outside (-1) of every cell, from the signed crossings of its z column; 0 if it does not close."""
    low = np.ceil(triangles[..., :2].min(1)).astype(int).clip(0)
    high = np.minimum(np.floor(triangles[..., :2].max(1)).astype(int) + 1, shape[:2])
    extent = (high - low).clip(0)
    count = extent.prod(1)
    # One row for each pair of a triangle and a grid line in its bounding box.
    face = np.repeat(np.arange(len(triangles)), count)
    rank = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    line = low[face] + np.stack([rank // extent[face, 1], rank % extent[face, 1]], -1)
    corner = triangles[face, :, :2] - line[:, None]
    following = np.roll(corner, -1, axis=1)
    # Twice the signed areas opposite to the third, first and second corner.
    area = corner[..., 0] * following[..., 1] - corner[..., 1] * following[..., 0]
    hit = (area > 0).all(1) | (area < 0).all(1)
    face, line, area = face[hit], line[hit], area[hit]
    z = (np.roll(triangles[face, :, 2], 1, axis=1) * area).sum(1) / area.sum(1)
    below = np.ceil(z).astype(int).clip(0, shape[2])  # number of cell centres under the crossing
    crossings = np.zeros((shape[0], shape[1], shape[2] + 1), np.int32)
    np.add.at(crossings, (line[:, 0], line[:, 1], below), np.sign(area[:, 0]).astype(np.int32))
    above = np.cumsum(crossings[..., ::-1], -1)[..., ::-1]
    return np.where(above[..., 1:] != 0, 1, -1).astype(np.int8) * (above[..., :1] == 0)
