"""Scores of two folders of views or of two mesh files, as one flat dictionary of numbers."""

import os
import pathlib
import re

import numpy as np
from jaxtyping import Float

from e3d_jax import images, structs
from e3d_jax.evaluation import alignment, metrics
from e3d_jax.mesh import export


def compare(pred: str | os.PathLike, true: str | os.PathLike, *, align: bool = False) -> dict[str, float]:
    """Scores of a prediction against the truth: two folders of views, or two mesh files.

    Args:
      pred: the prediction; a folder with ``rgb_00.png`` ... (and ``normal_00.png`` ...), or a mesh file.
      true: the truth, of the same kind.
      align: bring the predicted mesh onto the true one first (scale, translation, yaw).

    Raises:
      FileNotFoundError: a path does not exist.
      ValueError: the two are not of one kind, or do not fit together.
    """
    pred, true = pathlib.Path(pred), pathlib.Path(true)
    for path in (pred, true):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a folder of views or a mesh file")
    if pred.is_dir() and true.is_dir():
        if align:
            raise ValueError(f"{pred} is a folder of views, and only meshes can be aligned; leave out --align")
        return compare_views(pred, true)
    for path in (pred, true):
        if path.suffix.lower() not in export.SUFFIXES:
            raise ValueError(
                f"{path} is no mesh file; give two folders of views, or two files of {', '.join(export.SUFFIXES)}"
            )
    return mesh_scores(export.read_mesh(pred), export.read_mesh(true), align=align)


def mesh_scores(pred: structs.Mesh, true: structs.Mesh, *, align: bool = False, seed: int = 0) -> dict[str, float]:
    """Every mesh metric by name; lengths in object units, nothing normalised.

    With ``align`` the prediction is moved first, and the transform is among the scores.
    """
    scores: dict[str, float] = {}
    if align:
        pred, transform = alignment.align(pred, true, seed)
        scores |= {"align_scale": transform.scale, "align_yaw_deg": float(np.degrees(transform.yaw))}
        scores |= {f"align_{axis}": float(shift) for axis, shift in zip("xyz", transform.translation, strict=True)}
    distances = metrics.surface_distances(pred, true, seed=seed)
    return scores | {
        "chamfer": distances.chamfer(),
        "fscore_0.01": distances.fscore(0.01),
        "fscore_0.02": distances.fscore(0.02),
        "volume_iou": metrics.volume_iou(pred, true),
        "normal_consistency": distances.normal_consistency(),
    }


def view_scores(pred: Float[structs.ArrayLike, "h w 4"], true: Float[structs.ArrayLike, "h w 4"]) -> dict[str, float]:
    """Scores of one view, RGBA in [0, 1], over white."""
    pred_rgb, true_rgb = images.composite(pred), images.composite(true)
    return {
        "psnr": metrics.psnr(pred_rgb, true_rgb),
        "ssim": metrics.ssim(pred_rgb, true_rgb),
        "mask_iou": metrics.mask_iou(pred[..., 3], true[..., 3]),
    }


def compare_views(pred: pathlib.Path, true: pathlib.Path) -> dict[str, float]:
    """Mean scores over the views that both folders hold; normal maps are compared inside of both silhouettes.

    Raises:
      ValueError: a folder holds no view, none is common, or two differ in size.
    """
    pred_views, true_views = _numbered(pred, "rgba?"), _numbered(true, "rgba?")
    common = sorted(pred_views.keys() & true_views.keys())
    if not common:
        raise ValueError(f"{pred} and {true} have no rgb_00.png, rgb_01.png ... in common; give two folders of views")
    rows = [view_scores(*_read_pair(pred_views[view], true_views[view])) for view in common]
    scores = {"views": float(len(common)), "views_of_truth": float(len(true_views))}
    scores |= {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    pred_normals, true_normals = _numbered(pred, "normal"), _numbered(true, "normal")
    angles = []
    for view in sorted(pred_normals.keys() & true_normals.keys()):
        a, b = _read_pair(pred_normals[view], true_normals[view])
        mask = (a[..., 3] > 0.5) & (b[..., 3] > 0.5)
        if mask.any():
            pred_normal, true_normal = images.decode_normal(a[..., :3]), images.decode_normal(b[..., :3])
            angles.append(metrics.normal_angle(pred_normal, true_normal, mask))
    if angles:
        scores |= {"normal_angle_deg": float(np.mean(angles)), "normal_maps": float(len(angles))}
    return scores


def _numbered(folder: pathlib.Path, name: str) -> dict[int, pathlib.Path]:
    """The files ``<name>_<number>.png`` of a folder by their number; ``name`` is a regular expression."""
    pattern = re.compile(rf"{name}_(\d+)\.png")
    return {int(match[1]): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}


def _read_pair(pred: pathlib.Path, true: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    a, b = images.read_image(pred), images.read_image(true)
    if a.shape != b.shape:
        sizes = [f"{image.shape[1]} x {image.shape[0]} px" for image in (a, b)]
        raise ValueError(f"{pred} is {sizes[0]} but {true} is {sizes[1]}; render both at one size")
    return a, b


def table(scores: dict[str, float]) -> str:
    """The scores, one a line."""
    width = max(len(name) for name in scores)
    return "\n".join(f"{name:<{width}}  {value:10.4f}" for name, value in scores.items())
