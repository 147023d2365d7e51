"""Scores of one object: two folders of views, or two meshes, as one flat dictionary of numbers."""

import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from e3d_jax import images, structs
from e3d_jax.evaluation import alignment, metrics


def mesh_scores(
    pred: structs.Mesh,
    gt: structs.Mesh,
    *,
    align: bool = False,
    seed: int = 0,
    notes: dict[str, str] | None = None,
) -> dict[str, float]:
    """Return all :data:`metrics.MESH_METRICS` by name; lengths in object units, nothing is normalized.

    With ``align``, the prediction is moved first, and the transform is among the scores. ``notes`` is that of
    :func:`metrics.scores`.
    """
    scores: dict[str, float] = {}
    if align:
        pred, transform = alignment.align(pred, gt, seed)
        scores |= {"align_scale": transform.scale, "align_yaw_deg": float(np.degrees(transform.yaw))}
        scores |= {f"align_{axis}": float(shift) for axis, shift in zip("xyz", transform.translation, strict=True)}
    return scores | metrics.scores(metrics.MESH_METRICS, metrics.MeshPair(pred, gt, seed), notes)


def view_scores(
    pred: Float[structs.ArrayLike, "h w 4"],
    gt: Float[structs.ArrayLike, "h w 4"],
    notes: dict[str, str] | None = None,
) -> dict[str, float]:
    """Return all :data:`metrics.VIEW_METRICS` of one RGBA view in [0, 1], over white."""
    return metrics.scores(metrics.VIEW_METRICS, metrics.ViewPair(pred, gt), notes)


Views = dict[int, np.ndarray]  # RGBA images [h, w, 4] in [0, 1], by number


def score_views(
    pred: Views,
    gt: Views,
    *,
    table: Mapping[str, metrics.Metric] = metrics.VIEW_METRICS,
    notes: dict[str, str] | None = None,
) -> tuple[dict[str, float], list[metrics.ViewPair]]:
    """Return mean scores over the views that both have, by number; and the pairs that were compared.

    Raises:
      ValueError: none is in both, two differ in size, or one holds values that are not finite.
    """
    common = sorted(pred.keys() & gt.keys())
    if not common:
        raise ValueError("the prediction and the truth have no view in common; number both alike, from rgb_00.png on")
    for view in common:
        a, b = pred[view], gt[view]
        if a.shape != b.shape:
            sizes = [f"{image.shape[1]} x {image.shape[0]} px" for image in (a, b)]
            raise ValueError(
                f"view {view} of the prediction is {sizes[0]} but the truth is {sizes[1]}; render both at the same size"
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError(f"view {view} holds values that are not finite; write it again")
    pairs = [metrics.ViewPair(pred[view], gt[view]) for view in common]
    rows = [metrics.scores(table, pair, notes) for pair in pairs]
    return {"views": float(len(common)), "gt_views": float(len(gt)), **mean_scores(rows)}, pairs


def score_normals(pred: Views, gt: Views) -> dict[str, float]:
    """Return mean scores of the normal maps that both have, encoded as images, where both are known."""
    rows = []
    for view in sorted(pred.keys() & gt.keys()):
        if pred[view].shape != gt[view].shape:
            raise ValueError(f"normal map {view} differs in size between the prediction and the truth")
        a, b = (np.asarray(images.decode_normal(rgba[view])) for rgba in (pred, gt))
        known = np.logical_and(a.any(-1), b.any(-1))
        if known.any():
            rows.append(metrics.scores(metrics.NORMAL_METRICS, metrics.NormalPair(a, b, known)))
    return {**mean_scores(rows), "normal_maps": float(len(rows))} if rows else {}


def number(name: str, kind: str = "rgba?") -> int | None:
    """Return the number of an image ``<kind>_<number>.png``, or None; ``kind`` is a regular expression."""
    match = re.fullmatch(rf"{kind}_(\d+)\.png", name)
    return int(match[1]) if match else None


def read_numbered(folder: pathlib.Path, kind: str = "rgba?") -> Views:
    """Return the images ``<kind>_<number>.png`` of a folder by number; ``kind`` is a regular expression."""
    found = {at: path for path in folder.iterdir() if (at := number(path.name, kind)) is not None}
    return {view: images.read_image(path) for view, path in sorted(found.items())}


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the rows that have it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def table(scores: Mapping[str, float]) -> str:
    """Format scores, one per line."""
    width = max(len(name) for name in scores)
    return "\n".join(f"{name:<{width}}  {value:10.4f}" for name, value in scores.items())
