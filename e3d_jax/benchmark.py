"""The benchmark of a system: held-out synthetic objects, and optionally real meshes, each from one image.

Every object has one JSON file in ``out`` and is skipped if it exists, so several processes can divide the objects by
ranges (``start``), and the last call prints a table of all. Synthetic objects come from the test split, which
training never sees. ``real`` is a folder with ``meshes/NAME.glb`` and front images ``views/NAME/rgba_00.png``;
because one image does not determine depth, meshes made from those are aligned first (scale, translation, yaw), and the
best sphere and the extruded silhouette are scored as well.

Scores have the names of :mod:`e3d_jax.evaluation.metrics`, with a prefix that says what is scored.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3d_jax import events, files, images, outputs, structs, system
from e3d_jax.data import synthetic
from e3d_jax.evaluation import baselines, consistency, metrics, report
from e3d_jax.mesh import export

TEST_SEED = 0
# Printed first, in this order; PSNR and SSIM come last.
HEADLINE = (
    "novel_anchors_st_lpips",
    "novel_anchors_sharpness",
    "consistency_psnr",
    "mesh_volume_iou",
    "mesh_chamfer",
)
LAST = ("_psnr", "_ssim")


def run(
    weights: str,
    out: str | os.PathLike,
    *,
    objects: int = 40,
    start: int = 0,
    meshes: bool = True,
    real: str | os.PathLike | None = None,
    seed: int = 0,
) -> None:
    """Score all objects that have no scores yet, then print the means over all objects.

    Args:
      weights: bundled weights or a weights folder.
      out: folder for the scores; created if necessary.
      objects: number of synthetic test objects.
      start: index of the first of them.
      meshes: whether to reconstruct and score meshes of synthetic objects.
      real: folder of real meshes and front images.
      seed: seed of the generated views.

    Raises:
      OSError, ValueError: the weights, a mesh or an image cannot be used, or ``out`` cannot be written.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = system.load(weights)
    for index in range(start, start + objects):
        if not (file := out / f"{'object' if meshes else 'views'}_{index:03d}.json").exists():
            scores = score_object(model, index, seed, out, meshes)
            files.write_atomically(file, json.dumps(scores).encode())
            print(index, {k: round(v, 3) if isinstance(v, float) else v for k, v in scores.items()}, flush=True)
    if real is not None:
        for mesh in sorted(pathlib.Path(real, "meshes").glob("*.glb")):
            if not (file := out / f"real_{mesh.stem}.json").exists():
                scores = score_real(model, pathlib.Path(real), mesh.stem, seed, out)
                files.write_atomically(file, json.dumps(scores).encode())
    for kind in ("object", "views", "real"):
        if found := rows(out, kind):
            print(f"\nmean over {len(found)} ({kind})\n{summary(found)}")


def rows(out: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    """Return the scores of all objects in a folder; the kind is "object", "views" (without meshes) or "real"."""
    return [json.loads(file.read_text()) for file in sorted(out.glob(f"{kind}_*.json"))]


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the means of all numeric scores."""
    return report.mean_scores([{name: x for name, x in row.items() if isinstance(x, float)} for row in rows])


def score_object(model: system.System, index: int, seed: int, out: pathlib.Path, meshes: bool) -> dict[str, Any]:
    """Score one synthetic test object, from its front view alone and from its ground-truth views.

    ``novel_anchors_`` are scores of generated anchors other than the input view, ``interpolated_`` those of views
    interpolated from ground-truth anchors, ``mesh_`` those of the mesh from the front view, ``gt_views_mesh_`` those of
    the mesh from ground-truth views. Normals of the anchors are compared inside the ground-truth silhouettes, where a
    missing normal has the score of a missing prediction (``anchors_``), and where both are known (``shared_``).
    ``consistency_`` and ``hull_iou`` are those of :mod:`e3d_jax.evaluation.consistency`, for all generated views.

    Without ``meshes``, only views are scored, and no files of the object are written to ``out``.
    """
    layout = model.config.layout
    params = synthetic.take(synthetic.sample_batch("test", TEST_SEED, [index]), 0)
    gt = ground_truth_views(params, layout.cameras(model.size), layout.anchors)
    clock = events.Clock()
    inputs: tuple[system.Input, ...] = (model.prepare(gt.rgba[0]),)
    views = model.generate(inputs, seed, clock)
    scores: dict[str, Any] = {"family": synthetic.family_of("test", TEST_SEED, index)}
    scores |= score_views(views, gt) | score_consistency(views, seed)
    if "interpolation" in model.modules:
        between = model.interpolate(jnp.asarray(gt.rgba[layout.anchors])[None], jax.random.key(seed))[0]
        pairs = zip(between, layout.between, strict=True)
        rows = [report.view_scores(view, gt.rgba[v]) for view, v in pairs]
        scores |= prefixed("interpolated", report.mean_scores(rows))
    if not meshes:
        return scores

    gt_mesh = synthetic.ground_truth_mesh(params)
    try:
        mesh, inputs = model.reconstruct(views, inputs, seed, clock)
    except ValueError:  # The views do not agree on an object.
        mesh_scores = metrics.missing_scores(metrics.MESH_METRICS)
    else:
        mesh_scores = report.mesh_scores(mesh, gt_mesh)
        result = system.Result(inputs, views, mesh, clock.seconds, clock.peak_memory)
        outputs.write_result(out / f"object_{index:03d}", result, seed=seed, config=model.config)
    rebuilt, _ = model.reconstruct(gt, (), seed, events.Clock())
    scores |= prefixed("mesh", mesh_scores) | prefixed("gt_views_mesh", report.mesh_scores(rebuilt, gt_mesh))
    return scores | {"seconds": sum(clock.seconds.values())}


def ground_truth_views(params: synthetic.ObjectParams, views: structs.Cameras, anchors: np.ndarray) -> structs.ViewSet:
    """Render one normalized object, with normal maps of the anchors."""
    rendered = synthetic.render(jax.tree.map(lambda x: jnp.asarray(x)[None], params), views)
    return structs.ViewSet(
        rgba=np.asarray(rendered.rgba[0]),
        cameras=views,
        normal_views=anchors,
        normals=np.asarray(rendered.normals[0, anchors]),
        anchors=anchors,
    )


def score_views(views: structs.ViewSet, gt: structs.ViewSet) -> dict[str, float]:
    """Score the generated anchors and their normal maps, see :func:`score_object`."""
    pairs = list(zip(views.anchors, gt.anchors, strict=True))[1:]
    rows = [report.view_scores(views.rgba[view], gt.rgba[gt_view]) for view, gt_view in pairs]
    silhouettes = gt.rgba[gt.anchors, ..., 3] > 0.5
    shared = silhouettes & views.normals.any(-1)
    scores = prefixed("novel_anchors", report.mean_scores(rows))
    for prefix, mask in {"anchors": silhouettes, "shared": shared}.items():
        pair = metrics.NormalPair(views.normals, gt.normals, mask)
        table = metrics.NORMAL_METRICS
        scores |= prefixed(prefix, metrics.scores(table, pair) if mask.any() else metrics.missing_scores(table))
    return scores


def score_consistency(views: structs.ViewSet, seed: int) -> dict[str, float]:
    """Score whether generated views agree with each other; no scores if they share no object."""
    learned = {"st_lpips": metrics.VIEW_METRICS["st_lpips"]}
    try:
        return consistency.consistency(views, learned, seed=seed)
    except ValueError:
        return {}


def score_real(model: system.System, real: pathlib.Path, name: str, seed: int, out: pathlib.Path) -> dict[str, Any]:
    """Score the mesh made from one front image of a real object, and two baselines that need no model."""
    gt = export.read_mesh(real / "meshes" / f"{name}.glb")
    image = images.read_image(real / "views" / name / "rgba_00.png")
    result = model(image, seed=seed)
    outputs.write_result(out / name, result, seed=seed, config=model.config)
    candidates = {
        "mesh": result.mesh,
        "sphere": baselines.fitted_sphere(gt),
        "silhouette": baselines.extruded_silhouette(image),
    }
    scores: dict[str, Any] = {"name": name}
    for label, mesh in candidates.items():
        scores |= prefixed(label, report.mesh_scores(mesh, gt, align=True))
    return scores


def prefixed(prefix: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores under the names ``<prefix>_<name>``."""
    return {f"{prefix}_{name}": score for name, score in scores.items()}


def summary(rows: list[dict[str, Any]]) -> str:
    """Format the means of all numeric scores, headline figures first."""
    scores = means(rows)

    def place(name: str) -> tuple[bool, int]:
        first = HEADLINE.index(name) if name in HEADLINE else len(HEADLINE)
        return name.endswith(LAST) and name not in HEADLINE, first

    return report.table({name: scores[name] for name in sorted(scores, key=place)})
