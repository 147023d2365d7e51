"""Alignment of one mesh to another by scale, translation and yaw.

One image does not determine the depth or the distance of an object, so meshes made from one image are compared after
alignment, and reports say so. Only rotations about the vertical axis are tried, because the up direction is known.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import spatial

from e3d_jax import structs
from e3d_jax.evaluation import metrics

SAMPLES = 12_000  # points on each surface
_YAWS = np.radians(np.arange(0, 360, 10))


@dataclasses.dataclass(frozen=True)
class Similarity:
    """``x -> scale * rotation(yaw about z) @ x + translation``, world frame.

    Attributes:
      scale: positive factor.
      yaw: radians, from +x toward +y.
      translation: object units.
    """

    scale: float
    yaw: float
    translation: Float[np.ndarray, "3"]

    def __call__(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Return the transformed points."""
        cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
        rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        return self.scale * np.asarray(points, np.float64) @ rotation.T + self.translation


def align(pred: structs.Mesh, gt: structs.Mesh, seed: int = 0) -> tuple[structs.Mesh, Similarity]:
    """Align the predicted mesh with the ground truth; return the moved mesh and the transform.

    Iterated closest points (Besl & McKay 1992) with matches in both directions, so that neither shrinking into the
    other surface nor growing over it lowers the error. Starts from 36 yaws and from the given positions, and uses more
    sample points in each round.

    Raises:
      ValueError: a mesh has no surface.
    """
    rng = np.random.default_rng(seed)
    source, target = (metrics.sample_surface(mesh, SAMPLES, rng)[0] for mesh in (pred, gt))
    # Sample points are ordered by face, so a strided subset is spread over the surface.
    coarse, fine = (source[::12], target[::12]), (source[::4], target[::4])
    starts = [Similarity(1.0, 0.0, np.zeros(3))] + [_start(pred, gt, yaw) for yaw in _YAWS]
    ranked = _refine(starts, *coarse, steps=8, keep=8)
    ranked = _refine(ranked, *fine, steps=20, keep=2)
    best = _refine(ranked, source, target, steps=15, keep=1)[0]
    return dataclasses.replace(pred, vertices=best(pred.vertices).astype(np.float32)), best


def _start(pred: structs.Mesh, gt: structs.Mesh, yaw: float) -> Similarity:
    """Return a transform with the given yaw; scale and translation come from the bounding boxes of the two meshes."""
    turned = Similarity(1.0, yaw, np.zeros(3))(pred.vertices[np.unique(pred.faces)])
    target = np.asarray(gt.vertices, np.float64)[np.unique(gt.faces)]
    scale = np.linalg.norm(np.ptp(target, axis=0)) / np.linalg.norm(np.ptp(turned, axis=0))
    middle_pred, middle_gt = ((points.min(0) + points.max(0)) / 2 for points in (turned, target))
    return Similarity(float(scale), float(yaw), middle_gt - scale * middle_pred)


def _refine(
    starts: list[Similarity], source: np.ndarray, target: np.ndarray, steps: int, keep: int
) -> list[Similarity]:
    """Return the ``keep`` transforms of least Chamfer distance after ``steps`` iterations from each start."""
    tree = spatial.cKDTree(target)
    scored = []
    for transform in starts:
        for _ in range(steps):
            _, forward, _, backward = _matches(transform, source, target, tree)
            transform = _fit(np.concatenate([source, source[backward]]), np.concatenate([target[forward], target]))
        to_target, _, to_source, _ = _matches(transform, source, target, tree)
        scored.append((to_target.mean() + to_source.mean(), transform))
    return [transform for _, transform in sorted(scored, key=lambda pair: pair[0])[:keep]]


def _matches(transform: Similarity, source: np.ndarray, target: np.ndarray, tree: spatial.cKDTree):
    """Return distances and indices of the nearest points: moved source to target, and target to moved source."""
    moved = transform(source)
    return *tree.query(moved, workers=-1), *spatial.cKDTree(moved).query(target, workers=-1)


def _fit(source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]) -> Similarity:
    """Fit the transform to matched points by least squares (Umeyama 1991, rotation about z only)."""
    center_source, center_target = source.mean(0), target.mean(0)
    a, b = source - center_source, target - center_target
    yaw = np.arctan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a[:, :2] * b[:, :2]).sum())
    turn = Similarity(1.0, float(yaw), np.zeros(3))
    scale = float((b * turn(a)).sum() / np.maximum((a * a).sum(), 1e-30))
    return Similarity(scale, float(yaw), center_target - scale * turn(center_source[None])[0])
