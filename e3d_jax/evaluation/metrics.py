"""Metrics of images and meshes; no files are read here.

Images are RGB in [0, 1] over white. Meshes are compared in the world frame, in object units (the object fits the unit
cube), and are never normalized or aligned implicitly; see :mod:`e3d_jax.evaluation.alignment`.

``pred`` is the prediction, ``gt`` the ground truth. To add a metric, write a function and enter it in
:data:`VIEW_METRICS`, :data:`NORMAL_METRICS` or :data:`MESH_METRICS`; reports and benchmarks use its name there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import spatial
from skimage import metrics as skimage_metrics

from e3d_jax import images, structs
from e3d_jax.evaluation import missing, perceptual, sharpness, visible, wasserstein

# Returns for points [n, 3] in the world frame whether they are inside an object.
Occupancy = Callable[[np.ndarray], np.ndarray]


# -- Images -----------------------------------------------------------------------------------------------------------


def psnr(pred: Float[structs.ArrayLike, "h w c"], gt: Float[structs.ArrayLike, "h w c"]) -> float:
    """Return the peak signal-to-noise ratio in dB over the whole image, at most 100 (equal images)."""
    return psnr_of_error(float(np.mean((np.asarray(pred, np.float64) - np.asarray(gt, np.float64)) ** 2)))


def psnr_of_error(squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB that belongs to a mean squared error, at most 100."""
    return -10 * math.log10(max(squared_error, 1e-10))


def ssim(pred: Float[structs.ArrayLike, "h w c"], gt: Float[structs.ArrayLike, "h w c"]) -> float:
    """Return the structural similarity (Wang et al. 2004, Gaussian window, sigma 1.5), mean over the channels."""
    return float(
        skimage_metrics.structural_similarity(
            np.asarray(pred, np.float64),
            np.asarray(gt, np.float64),
            gaussian_weights=True,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
    )


def normal_angle(
    pred: Float[structs.ArrayLike, "*b 3"], gt: Float[structs.ArrayLike, "*b 3"], mask: Bool[structs.ArrayLike, "*b"]
) -> float:
    """Return the mean angle in degrees between two maps of unit normals, over the pixels of a mask.

    A pixel without a predicted normal (a zero vector) counts as 90 degrees, like a random guess.

    Raises:
      ValueError: the mask is empty.
    """
    mask = np.asarray(mask, bool)
    if not mask.any():
        raise ValueError("the mask of the normal maps is empty; give maps that show the object")
    a, b = np.asarray(pred, np.float64)[mask], np.asarray(gt, np.float64)[mask]
    # Unlike the arc cosine, the arc tangent is exact at small angles of float32 normals.
    angle = np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1))
    angle = np.where(a.any(-1), angle, np.pi / 2)
    return float(np.degrees(angle).mean())


def mask_iou(pred: Float[structs.ArrayLike, "h w"], gt: Float[structs.ArrayLike, "h w"]) -> float:
    """Return the intersection over union of two silhouettes (alpha above 0.5); 1 where both are empty."""
    return _iou(np.asarray(pred) > 0.5, np.asarray(gt) > 0.5)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


# -- Surfaces ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two meshes, at points spread evenly over each.

    Attributes:
      pred_to_gt: distance of each point of the prediction to the ground-truth surface, object units.
      gt_to_pred: distance of each point of the ground truth to the predicted surface.
      pred_cosine: cosine between the face normals at the ends of ``pred_to_gt``.
      gt_cosine: cosine between the face normals at the ends of ``gt_to_pred``.
      pred_points: the points of the prediction, if known.
      gt_points: the points of the ground truth, if known.
    """

    pred_to_gt: Float[np.ndarray, " n"]
    gt_to_pred: Float[np.ndarray, " n"]
    pred_cosine: Float[np.ndarray, " n"]
    gt_cosine: Float[np.ndarray, " n"]
    pred_points: Float[np.ndarray, "m 3"] = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))
    gt_points: Float[np.ndarray, "m 3"] = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))

    def chamfer(self) -> float:
        """Return the mean of both directions' mean distances, object units (half of the sum some papers report)."""
        return float(self.pred_to_gt.mean() + self.gt_to_pred.mean()) / 2

    def fscore(self, tau: float) -> float:
        """Return the harmonic mean of precision and recall at distance ``tau`` (Knapitsch et al. 2017), in [0, 1]."""
        precision, recall = (self.pred_to_gt < tau).mean(), (self.gt_to_pred < tau).mean()
        return float(2 * precision * recall / max(precision + recall, 1e-12))

    def normal_consistency(self) -> float:
        """Return the mean absolute cosine of the normals, over both directions, in [0, 1]."""
        return float(np.abs(self.pred_cosine).mean() + np.abs(self.gt_cosine).mean()) / 2


def surface_distances(pred: structs.Mesh, gt: structs.Mesh, samples: int = 50_000, seed: int = 0) -> SurfaceDistances:
    """Measure the distances of ``samples`` points on each surface to the triangles of the other.

    The distances are from point to surface, not from point to point, so that a mesh has distance 0 to itself: the
    distance to the triangles around the nearest of many points of the other surface is exact.

    Raises:
      ValueError: a mesh has no face of positive area.
    """
    rng = np.random.default_rng(seed)
    pred_points, pred_faces = sample_surface(pred, samples, rng)
    gt_points, gt_faces = sample_surface(gt, samples, rng)
    pred_normals, gt_normals = face_normals(pred), face_normals(gt)
    to_gt, nearest_gt = _nearest_faces(pred_points, gt, gt_points, gt_faces)
    to_pred, nearest_pred = _nearest_faces(gt_points, pred, pred_points, pred_faces)
    return SurfaceDistances(
        pred_to_gt=to_gt,
        gt_to_pred=to_pred,
        pred_cosine=(pred_normals[pred_faces] * gt_normals[nearest_gt]).sum(-1),
        gt_cosine=(gt_normals[gt_faces] * pred_normals[nearest_pred]).sum(-1),
        pred_points=pred_points,
        gt_points=gt_points,
    )


def face_normals(mesh: structs.Mesh) -> Float[np.ndarray, "f 3"]:
    """Return unit normals of the faces, zero for degenerate ones."""
    cross = _face_cross(mesh)
    return cross / np.maximum(np.linalg.norm(cross, axis=-1, keepdims=True), 1e-30)


def _face_cross(mesh: structs.Mesh) -> Float[np.ndarray, "f 3"]:
    a, b, c = np.moveaxis(np.asarray(mesh.vertices, np.float64)[mesh.faces], 1, 0)
    return np.cross(b - a, c - a)


def sample_surface(
    mesh: structs.Mesh, samples: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "{samples} 3"], Int[np.ndarray, " {samples}"]]:
    """Return points spread evenly over a surface, and the face of each.

    Raises:
      ValueError: the mesh has no face of positive area.
    """
    area = np.linalg.norm(_face_cross(mesh), axis=-1)
    if not area.sum() > 0:
        raise ValueError(f"the mesh has no surface ({len(mesh.faces)} faces of area 0); give one with visible faces")
    # Stratified over the faces, which has less noise than independent samples.
    strata = (np.arange(samples) + rng.random(samples)) / samples
    face = np.searchsorted(np.cumsum(area) / area.sum(), strata, side="right").clip(0, len(area) - 1)
    root, split = np.sqrt(rng.random((samples, 1))), rng.random((samples, 1))
    a, b, c = np.moveaxis(np.asarray(mesh.vertices, np.float64)[mesh.faces[face]], 1, 0)
    return (1 - root) * a + root * (1 - split) * b + root * split * c, face


def _nearest_faces(
    points: Float[np.ndarray, "n 3"], mesh: structs.Mesh, seeds: Float[np.ndarray, "m 3"], seed_faces: np.ndarray
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return the distance to, and index of, the face nearest to each point; ``seeds`` are points on the faces."""
    triangles = np.asarray(mesh.vertices, np.float64)[mesh.faces]
    # Centroids and corners are included because a small or thin face may have no sample. One face per corner is
    # enough: where a corner is the nearest point, all of its faces are equally near.
    corners, first = np.unique(mesh.faces, return_index=True)
    seeds = np.concatenate([seeds, triangles.mean(1), np.asarray(mesh.vertices, np.float64)[corners]])
    seed_faces = np.concatenate([seed_faces, np.arange(len(triangles)), first // 3])
    _, index = spatial.cKDTree(seeds).query(points, k=min(16, len(seeds)), workers=-1)
    candidates = np.sort(seed_faces[index.reshape(len(points), -1)], axis=1)
    best, face = np.full(len(points), np.inf), np.zeros(len(points), np.int64)
    for column in range(candidates.shape[1]):
        # Candidates are sorted, so repeated faces are adjacent and can be skipped.
        fresh = np.flatnonzero(candidates[:, column] != candidates[:, column - 1]) if column else np.arange(len(points))
        nearby = candidates[fresh, column]
        distance = point_triangle_distance(points[fresh], triangles[nearby])
        closer = distance < best[fresh]
        best[fresh[closer]], face[fresh[closer]] = distance[closer], nearby[closer]
    return best, face


def point_triangle_distance(
    points: Float[np.ndarray, "n 3"], triangles: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, " n"]:
    """Return each point's distance to its triangle: to the plane if it projects inside, else to the nearest edge."""
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


def volume_iou(pred: structs.Mesh | Occupancy, gt: structs.Mesh | Occupancy, resolution: int = 128) -> float:
    """Return the intersection over union of two solids on a grid of cells of side ``1 / resolution``.

    The grid covers the unit cube around the origin, where occupancy functions are evaluated, and any parts of a mesh
    outside it. A closed mesh is filled exactly; an open one along the directions in which it appears closed.
    """
    meshes = [solid for solid in (pred, gt) if isinstance(solid, structs.Mesh)]
    corners = np.concatenate([np.asarray(mesh.vertices, np.float64) for mesh in meshes] + [[[-0.5] * 3, [0.5] * 3]])
    low = np.floor(corners.min(0) * resolution - 1e-6) / resolution
    shape = np.ceil((corners.max(0) - low) * resolution - 1e-6).astype(int)
    return _iou(*(occupancy(solid, low, shape, 1 / resolution) for solid in (pred, gt)))


def occupancy(
    solid: structs.Mesh | Occupancy, low: Float[np.ndarray, "3"], shape: Int[np.ndarray, "3"], cell: float
) -> Bool[np.ndarray, "x y z"]:
    """Return which cell centers of a grid are inside a solid."""
    if not isinstance(solid, structs.Mesh):
        axes = [low[i] + (np.arange(shape[i]) + 0.5) * cell for i in range(3)]
        return np.asarray(solid(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)), bool).reshape(shape)
    # In units of cells, with the center of the first cell at 0; the shift keeps grid lines off vertices and edges that
    # lie on round numbers.
    triangles = (np.asarray(solid.vertices, np.float64)[solid.faces] - low) / cell - 0.5 + [1.3e-6, 1.7e-6, 1.9e-6]
    votes = np.zeros(shape, np.int8)
    for axis in range(3):
        order = [(axis + 1) % 3, (axis + 2) % 3, axis]
        votes += np.transpose(_column_votes(triangles[..., order], shape[order]), np.argsort(order))
    return votes > 0


def _column_votes(triangles: Float[np.ndarray, "f 3 3"], shape: Int[np.ndarray, "3"]) -> np.ndarray:
    """Return 1 (inside) or -1 (outside) per cell from the signed crossings of its z column; 0 if it is not closed."""
    low = np.ceil(triangles[..., :2].min(1)).astype(int).clip(0)
    high = np.minimum(np.floor(triangles[..., :2].max(1)).astype(int) + 1, shape[:2])
    extent = (high - low).clip(0)
    count = extent.prod(1)
    # One row per pair of a triangle and a grid line in its bounding box.
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
    below = np.ceil(z).astype(int).clip(0, shape[2])  # number of cell centers below the crossing
    crossings = np.zeros((shape[0], shape[1], shape[2] + 1), np.int32)
    np.add.at(crossings, (line[:, 0], line[:, 1], below), np.sign(area[:, 0]).astype(np.int32))
    above = np.cumsum(crossings[..., ::-1], -1)[..., ::-1]
    return np.where(above[..., 1:] != 0, 1, -1).astype(np.int8) * (above[..., :1] == 0)


# -- Tables of metrics ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ViewPair:
    """Two RGBA views of one size, in [0, 1] with straight alpha.

    Attributes:
      pred: the prediction.
      gt: the ground truth.
      compared: what networks said about the two, by the name of the network.
    """

    pred: Float[structs.ArrayLike, "h w 4"]
    gt: Float[structs.ArrayLike, "h w 4"]
    compared: dict[str, perceptual.Comparison] = dataclasses.field(default_factory=dict, compare=False)

    @functools.cached_property
    def over_white(self) -> tuple[Float[structs.ArrayLike, "h w 3"], Float[structs.ArrayLike, "h w 3"]]:
        """Both views over white."""
        return images.composite(self.pred), images.composite(self.gt)

    def learned(self, network: perceptual.Network) -> perceptual.Comparison:
        """Compare both views over white by a network, once.

        Raises:
          NotScored: see :class:`perceptual.Network`.
        """
        if network.name not in self.compared:
            self.compared[network.name] = network(*self.over_white)
        return self.compared[network.name]


@dataclasses.dataclass(frozen=True)
class NormalPair:
    """Two maps of unit normals, zero where unknown, and the pixels to compare."""

    pred: Float[structs.ArrayLike, "*b 3"]
    gt: Float[structs.ArrayLike, "*b 3"]
    mask: Bool[structs.ArrayLike, "*b"]


@dataclasses.dataclass(frozen=True)
class MeshPair:
    """Two meshes, and the seed of the points sampled on them."""

    pred: structs.Mesh
    gt: structs.Mesh
    seed: int = 0

    @functools.cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between the surfaces."""
        return surface_distances(self.pred, self.gt, seed=self.seed)

    def chamfer_visible(self) -> float:
        """Return the mean of both directions' mean distances, over the points that are visible from outside.

        Distances are those to the whole other surface.

        Raises:
          NotScored: no point of a mesh is visible.
        """
        ends = (
            (self.distances.pred_to_gt, self.distances.pred_points, self.pred),
            (
                self.distances.gt_to_pred,
                self.distances.gt_points,
                self.gt,
            ),
        )
        kept = [distance[visible.visible(points, mesh)] for distance, points, mesh in ends]
        if not all(len(distance) for distance in kept):
            raise missing.NotScored("no point of a mesh is visible from outside")
        return float(np.mean([distance.mean() for distance in kept]))


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      score: score of a :class:`ViewPair`, :class:`NormalPair` or :class:`MeshPair`.
      missing: score of a prediction that does not exist.
      best: the best score: infinity if more is better.
    """

    score: Callable[[Any], float]
    missing: float = 0.0
    best: float = math.inf


def learned_metric(network: Callable[[], perceptual.Network]) -> Metric:
    """Return the metric of a network, which is loaded when it is needed."""
    # A prediction that does not exist is as far away as images that have nothing in common.
    return Metric(lambda pair: pair.learned(network()).distance, missing=1.0, best=0.0)


# What to look at first comes first: figures that blur cannot win.
VIEW_METRICS = {
    "st_lpips": learned_metric(perceptual.st_lpips),
    "sharpness": Metric(lambda pair: sharpness.sharpness(pair.pred, pair.gt), best=1.0),
    "edge_width": Metric(lambda pair: sharpness.edge_width(pair.pred[..., 3], pair.gt[..., 3]), best=1.0),
    "swd": Metric(lambda pair: wasserstein.sliced_wasserstein(pair.pred, pair.gt), missing=0.8, best=0.0),
    "mask_iou": Metric(lambda pair: mask_iou(pair.pred[..., 3], pair.gt[..., 3])),
    "psnr": Metric(lambda pair: psnr(*pair.over_white)),
    "ssim": Metric(lambda pair: ssim(*pair.over_white)),
}
NORMAL_METRICS = {
    "normal_angle_deg": Metric(lambda pair: normal_angle(pair.pred, pair.gt, pair.mask), missing=90.0, best=0.0),
}
MESH_METRICS = {
    "volume_iou": Metric(lambda pair: volume_iou(pair.pred, pair.gt)),
    # A missing mesh is as far as the center of a ball of radius 0.5 is from its surface.
    "chamfer": Metric(lambda pair: pair.distances.chamfer(), missing=0.5, best=0.0),
    "chamfer_visible": Metric(lambda pair: pair.chamfer_visible(), missing=0.5, best=0.0),
    "fscore_0.01": Metric(lambda pair: pair.distances.fscore(0.01)),
    "fscore_0.02": Metric(lambda pair: pair.distances.fscore(0.02)),
    "fscore_0.05": Metric(lambda pair: pair.distances.fscore(0.05)),
    "normal_consistency": Metric(lambda pair: pair.distances.normal_consistency()),
}


def scores(table: Mapping[str, Metric], pair: Any, notes: dict[str, str] | None = None) -> dict[str, float]:
    """Return the score of every metric of a table by name, without those that cannot be given.

    Args:
      table: of metrics.
      pair: what they score.
      notes: receives, by name, why a metric cannot be given.
    """
    found = {}
    for name, metric in table.items():
        try:
            found[name] = float(metric.score(pair))
        except missing.NotScored as error:
            if notes is not None:
                notes[name] = str(error)
    return found


def missing_scores(table: Mapping[str, Metric]) -> dict[str, float]:
    """Return the scores of a prediction that does not exist."""
    return {name: metric.missing for name, metric in table.items()}
