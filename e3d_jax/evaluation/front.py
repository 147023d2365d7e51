"""The one free number of a single image: the scale of the object.

An object that is twice as large and twice as far away looks the same from the front, so predictions from one image are
compared with the truth at the scale at which the front silhouettes agree.
"""

import numpy as np
from jaxtyping import Float
from scipy import optimize

from e3d_jax import cameras, raycast, structs
from e3d_jax.evaluation import metrics

SCALES = np.geomspace(0.5, 2.0, 33)
SIZE = 128  # of silhouettes of meshes, in pixels


def front_scale(alpha: Float[structs.ArrayLike, "h w"], camera: structs.Cameras, gt: structs.Mesh) -> float:
    """Return the scale about the origin at which the silhouette of the truth agrees best with a predicted one.

    Args:
      alpha: of the predicted front view.
      camera: of that view.
      gt: the truth.

    Raises:
      ValueError: the predicted view shows no object, or the silhouettes never meet.
    """
    if not (np.asarray(alpha) > 0.5).any():
        raise ValueError("the predicted front view shows no object, so no scale makes the truth agree with it")

    def disagreement(scale: float) -> float:
        return -metrics.mask_iou(alpha, silhouette(gt.vertices * np.float32(scale), gt.faces, camera))

    values = [disagreement(scale) for scale in SCALES]
    best = int(np.argmin(values))
    if values[best] == 0:
        raise ValueError("the truth never overlaps with the predicted front view; check their axes")
    bounds = SCALES[max(best - 1, 0)], SCALES[min(best + 1, len(SCALES) - 1)]
    refined = optimize.minimize_scalar(disagreement, bounds=bounds, method="bounded", options={"maxiter": 15})
    return float(refined.x if refined.fun < values[best] else SCALES[best])


def mesh_front_scale(pred: structs.Mesh, gt: structs.Mesh) -> float:
    """Return the same for a predicted mesh, seen by the first camera of the default ring.

    Raises:
      ValueError: see :func:`front_scale`.
    """
    camera = cameras.RELEASED.cameras(SIZE)[[0]]
    return front_scale(silhouette(pred.vertices, pred.faces, camera), camera, gt)


def silhouette(vertices: np.ndarray, faces: np.ndarray, camera: structs.Cameras) -> Float[np.ndarray, "h w"]:
    """Return the coverage of the pixels of one camera by a surface."""
    surface = raycast.Surface(vertices, faces)
    return surface.render(camera, lambda hits: np.zeros((len(hits.face), 1), np.float32), supersampling=2)[1]
