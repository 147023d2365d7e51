"""Scores of two folders of views or of two mesh files, as one flat dictionary of numbers."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from e3d_jax import images, structs
from e3d_jax.evaluation import alignment, metrics
from e3d_jax.mesh import export


def compare(pred: str | os.PathLike, gt: str | os.PathLike, *, align: bool = False) -> dict[str, float]:
    """Score a prediction against the ground truth: two folders of views, or two mesh files.

    Args:
      pred: the prediction; a folder with ``rgb_00.png`` ... (and ``normal_00.png`` ...), or a mesh file.
      gt: the ground truth, of the same kind.
      align: align the predicted mesh with the ground truth first (scale, translation, yaw).

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: the two are of different kinds, or do not match.
    """
    pred, gt = pathlib.Path(pred), pathlib.Path(gt)
    for path in (pred, gt):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a folder of views or a mesh file")
    if pred.is_dir() and gt.is_dir():
        if align:
            raise ValueError(f"{pred} is a folder of views, and only meshes can be aligned; remove --align")
        return compare_views(pred, gt)
    for path in (pred, gt):
        if path.suffix.lower() not in export.SUFFIXES:
            raise ValueError(
                f"{path} is not a mesh file; give two folders of views, or two files of type "
                f"{', '.join(export.SUFFIXES)}"
            )
    return mesh_scores(export.read_mesh(pred), export.read_mesh(gt), align=align)


def mesh_scores(pred: structs.Mesh, gt: structs.Mesh, *, align: bool = False, seed: int = 0) -> dict[str, float]:
    """Return all :data:`metrics.MESH_METRICS` by name; lengths in object units, nothing is normalized.

    With ``align``, the prediction is moved first, and the transform is among the scores.
    """
    scores: dict[str, float] = {}
    if align:
        pred, transform = alignment.align(pred, gt, seed)
        scores |= {"align_scale": transform.scale, "align_yaw_deg": float(np.degrees(transform.yaw))}
        scores |= {f"align_{axis}": float(shift) for axis, shift in zip("xyz", transform.translation, strict=True)}
    return scores | metrics.scores(metrics.MESH_METRICS, metrics.MeshPair(pred, gt, seed))


def view_scores(pred: Float[structs.ArrayLike, "h w 4"], gt: Float[structs.ArrayLike, "h w 4"]) -> dict[str, float]:
    """Return all :data:`metrics.VIEW_METRICS` of one RGBA view in [0, 1], over white."""
    return metrics.scores(metrics.VIEW_METRICS, metrics.ViewPair(pred, gt))


def compare_views(pred: pathlib.Path, gt: pathlib.Path) -> dict[str, float]:
    """Return mean scores over the views in both folders; normal maps are compared where both are known.

    Raises:
      ValueError: a folder has no views, none is in both, or two differ in size.
    """
    pred_views, gt_views = _numbered(pred, "rgba?"), _numbered(gt, "rgba?")
    common = sorted(pred_views.keys() & gt_views.keys())
    if not common:
        raise ValueError(f"{pred} and {gt} have no rgb_00.png, rgb_01.png ... in common; give two folders of views")
    rows = [view_scores(*_read_pair(pred_views[view], gt_views[view])) for view in common]
    scores = {"views": float(len(common)), "gt_views": float(len(gt_views)), **mean_scores(rows)}

    pred_maps, gt_maps = _numbered(pred, "normal"), _numbered(gt, "normal")
    rows = []
    for view in sorted(pred_maps.keys() & gt_maps.keys()):
        a, b = (np.asarray(images.decode_normal(rgba)) for rgba in _read_pair(pred_maps[view], gt_maps[view]))
        known = np.logical_and(a.any(-1), b.any(-1))
        if known.any():
            rows.append(metrics.scores(metrics.NORMAL_METRICS, metrics.NormalPair(a, b, known)))
    if rows:
        scores |= {**mean_scores(rows), "normal_maps": float(len(rows))}
    return scores


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over rows with the same names."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _numbered(folder: pathlib.Path, name: str) -> dict[int, pathlib.Path]:
    """Return the files ``<name>_<number>.png`` of a folder by number; ``name`` is a regular expression."""
    pattern = re.compile(rf"{name}_(\d+)\.png")
    return {int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}


def _read_pair(pred: pathlib.Path, gt: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    a, b = images.read_image(pred), images.read_image(gt)
    if a.shape != b.shape:
        sizes = [f"{image.shape[1]} x {image.shape[0]} px" for image in (a, b)]
        raise ValueError(f"{pred} is {sizes[0]} but {gt} is {sizes[1]}; render both at the same size")
    return a, b


def table(scores: Mapping[str, float]) -> str:
    """Format scores, one per line."""
    width = max(len(name) for name in scores)
    return "\n".join(f"{name:<{width}}  {value:10.4f}" for name, value in scores.items())
