"""Scores of many objects in one report.

The report has the same keys whatever is scored: ``pred``, ``gt``, ``align``, ``protocol``; ``objects``, the scores of
each object by name; ``mean`` and ``ci95``, their means and bootstrap 95 % intervals; ``sets``, distances between all
predicted and all true views; ``networks``, which network a learned figure comes from; ``notes``, why a figure is
missing; ``errors``, why an object is missing; and ``against``, paired differences from another report.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import numpy as np

from e3d_jax import cameras, images, structs, transforms, views_io
from e3d_jax.data import assets
from e3d_jax.data.assets import reading
from e3d_jax.evaluation import (
    consistency,
    front,
    inputs,
    kid,
    mesh_quality,
    metrics,
    missing,
    perceptual,
    protocol,
    report,
)
from e3d_jax.evaluation import statistics as statistics_lib
from e3d_jax.mesh import export

# Objects scored at once: more would not fit on a device when surfaces are fitted.
THREADS = 4
# What to look at first; other figures follow in the order in which they were made.
HEADLINE = ("st_lpips", "sharpness", "consistency_psnr", "volume_iou", "chamfer")
LAST = ("psnr", "ssim")
# The best value of every figure that has one; counts and sizes have none.
BEST = {
    name: metric.best
    for table in (metrics.VIEW_METRICS, metrics.NORMAL_METRICS, metrics.MESH_METRICS)
    for name, metric in table.items()
} | {
    "lpips": 0.0,
    "consistency_psnr": math.inf,
    "consistency_st_lpips": 0.0,
    "consistency_normal_deg": 0.0,
    "hull_iou": math.inf,
    "watertight": math.inf,
    **dict.fromkeys(("boundary_edges", "nonmanifold_edges", "nonmanifold_vertices"), 0.0),
    **dict.fromkeys(("degenerate_faces", "self_intersecting_faces", "uv_overlap", "texels_wasted"), 0.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to score.

    Attributes:
      align: "none"; "front", the truth at the scale at which the front silhouettes agree; or "mesh", the predicted mesh
        moved by scale, translation and yaw.
      consistency: whether to fit a surface to half of the views; seconds per object.
      trunk: network of the learned distances, "alex" or "vgg".
      protocol: name of a fixed list of objects and views, see :mod:`e3d_jax.evaluation.protocol`; otherwise all objects
        and all views that both have.
      lpips: torchvision's weights of that network; without, LPIPS is not given.
      seed: of sampled points, fits and intervals.
    """

    align: str = "none"
    consistency: bool = False
    trunk: str = "alex"
    protocol: str | None = None
    lpips: str | os.PathLike | None = None
    seed: int = 0


class _Scorer:
    """Scores objects and collects what concerns all of them."""

    def __init__(self, options: Options):
        self.options, self.notes, self.networks = options, {}, {}  # type: ignore[var-annotated]
        # Of the predicted and of the true views of each folder.
        self.features: dict[pathlib.Path, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        self.table = dict(metrics.VIEW_METRICS)
        self.protocol = None if options.protocol is None else protocol.load(options.protocol)
        self.learned: dict[str, metrics.Metric] = {}
        self.unlearned: dict[str, str] = {}  # Notes for whoever has views.
        self.first: perceptual.Network | None = None
        try:
            self.first = perceptual.st_lpips(options.trunk)
            self._add("st_lpips", self.first)
        except missing.NotScored as error:
            del self.table["st_lpips"]
            self.unlearned["st_lpips"] = str(error)
        if options.lpips is not None:
            try:
                self._add("lpips", perceptual.lpips(options.lpips, options.trunk))
            except missing.NotScored as error:
                self.unlearned["lpips"] = str(error)

    def _add(self, name: str, network: perceptual.Network) -> None:
        self.learned[name] = self.table[name] = metrics.learned_metric(lambda: network)
        self.networks[name] = network.name

    def score(self, pred: inputs.Item, gt: inputs.Item | None) -> dict[str, float]:
        """Return the scores of one object.

        Raises:
          OSError, ValueError: its files cannot be used.
        """
        scores: dict[str, float] = {}
        problem = "there is nothing to score"
        if pred.views is not None:
            self.notes |= self.unlearned
        if gt is not None and pred.views is None and (pred.mesh is None or gt.mesh is None):
            raise ValueError("the prediction is a mesh but the truth is views; give a true mesh")
        if pred.views is not None and gt is not None:
            scores |= self._views(pred.views, gt)
        if pred.views is not None and self.options.consistency:
            try:
                scores |= self._consistency(pred.views)
            except (OSError, ValueError) as error:
                self.notes["consistency_psnr"] = problem = str(error)
        if pred.mesh is not None:
            scores |= self._mesh(pred.mesh, None if gt is None else gt)
        if not scores:
            raise ValueError(problem)
        return scores

    def _consistency(self, folder: pathlib.Path) -> dict[str, float]:
        posed = self._posed(folder)
        learned = {name: metric for name, metric in self.learned.items() if name == "st_lpips"}
        try:
            return consistency.consistency(posed, learned, seed=self.options.seed, notes=self.notes)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def _posed(self, folder: pathlib.Path) -> structs.ViewSet:
        """Return views with the poses in their folder or, if it has none, with those of the protocol."""
        try:
            return views_io.read_views(folder)
        except FileNotFoundError:
            if self.protocol is None:
                raise
        views = self.protocol.posed(report.read_numbered(folder), report.read_numbered(folder, "normal"))
        self.notes["consistency"] = (
            f"{folder} has no {views_io.TRANSFORMS}, so its consistency is that of the {len(views.rgba)} views of the "
            f"protocol {self.protocol.name}; compare it only with figures of as many views"
        )
        return views

    def _views(self, folder: pathlib.Path, gt: inputs.Item) -> dict[str, float]:
        pred, pred_normals = report.read_numbered(folder), report.read_numbered(folder, "normal")
        if self.protocol is not None:
            _check_cameras(folder, self.protocol, width=next(iter(pred.values())).shape[1])
        scores: dict[str, float] = {}
        if gt.views is not None:
            if self.options.align == "front":
                raise ValueError("--align=front draws the truth again, so it needs a true mesh, not true views")
            true, normals = report.read_numbered(gt.views), report.read_numbered(gt.views, "normal")
            self._note_other_poses(folder, gt.views)
        else:
            true, normals, scores = self._draw(folder, pred, pred_normals, gt.mesh)
        if self.protocol is not None:
            pred = self.protocol.scored(pred)
        common = len(pred.keys() & true.keys())
        if self.protocol is None and 0 < common < max(len(pred), len(true)):
            self.notes["views"] = (
                f"{folder} has {len(pred)} views, the truth {len(true)}; only the {common} that both have are scored"
            )
        means, pairs = report.score_views(pred, true, table=self.table, notes=self.notes)
        if self.first is not None and "st_lpips" in means:
            compared = [pair.learned(self.first) for pair in pairs]
            self.features[folder] = [each.pred for each in compared], [each.gt for each in compared]
        return scores | means | report.score_normals(pred_normals, normals)

    def _note_other_poses(self, folder: pathlib.Path, gt: pathlib.Path) -> None:
        """Say so if views that are compared by number are from different poses, where both folders give them."""
        try:
            ours, theirs = _frames(folder), _frames(gt)
        except (OSError, ValueError):
            return
        common = sorted(ours.keys() & theirs.keys())
        if other := [view for view in common if np.abs(ours[view].pose - theirs[view].pose).max() > protocol.ROUNDING]:
            self.notes["poses"] = (
                f"view {other[0]} of {folder} is from another pose than that of {gt}, as their {views_io.TRANSFORMS} "
                "say; views are compared by number all the same"
            )

    def _draw(
        self, folder: pathlib.Path, pred: report.Views, pred_normals: report.Views, mesh: Any
    ) -> tuple[report.Views, report.Views, dict[str, float]]:
        """Draw a true mesh as the predicted views show it; return views, encoded normal maps, and the fitted scale."""
        if self.protocol is None:
            seen, numbers = views_io.read_views(folder).cameras, list(_frames(folder))
        else:
            numbers = self.protocol.views
            seen = self.protocol.cameras(len(next(iter(pred.values()))))
        asset, scores = reading.read_asset(mesh), {}
        if self.options.align == "front":
            first = min(numbers)
            if first not in pred:
                raise ValueError(f"view {first} is missing, to which --align=front scales the truth; add it")
            asset, scores["front_scale"] = _scaled(asset, pred[first], seen[[numbers.index(first)]])
        with_normals = [at for at, number in enumerate(numbers) if number in pred_normals]
        drawn = assets.render(asset, seen, np.array(with_normals, int)).views
        encoded = images.encode_normal(drawn.normals, np.asarray(drawn.normals.any(-1), np.float32))
        normals = {numbers[at]: rgba for at, rgba in zip(with_normals, encoded, strict=True)}
        return dict(zip(numbers, drawn.rgba, strict=True)), normals, scores

    def _mesh(self, path: pathlib.Path, gt: inputs.Item | None) -> dict[str, float]:
        pred, scores = _read(path), {}
        if gt is not None and gt.mesh is not None:
            truth = _read(gt.mesh)
            if gt.is_scan:
                truth = dataclasses.replace(truth, vertices=normalized(truth.vertices))
            if self.options.align == "front":
                scores["front_scale"] = front.mesh_front_scale(pred, truth)
                truth = dataclasses.replace(truth, vertices=truth.vertices * np.float32(scores["front_scale"]))
            align, seed = self.options.align == "mesh", self.options.seed
            scores |= report.mesh_scores(pred, truth, align=align, seed=seed, notes=self.notes)
            if not mesh_quality.quality(truth)["watertight"]:
                del scores["volume_iou"]
                self.notes["volume_iou"] = f"{gt.mesh} is not closed, so it has no volume; repair it first"
        return scores | mesh_quality.quality(pred) | {"file_bytes": float(path.stat().st_size)}

    def sets(self) -> dict[str, float]:
        """Return the distances between all predicted and all true views."""
        if not self.features:
            return {}
        name = f"kid_st_lpips_{self.options.trunk}_layer5"
        pred, gt = zip(*(self.features[folder] for folder in sorted(self.features)), strict=True)
        try:
            return {name: kid.kid(np.concatenate(pred), np.concatenate(gt))}
        except missing.NotScored as error:
            self.notes[name] = str(error)
            return {}


def _frames(folder: pathlib.Path) -> dict[int, transforms.Frame]:
    """Return the frames of a folder's file of poses, in its order, by the number of the view.

    Raises:
      OSError, ValueError: there is no such file, it is malformed, or a frame has no number.
    """
    path, listed = transforms.read(folder)
    frames = {}
    for frame in listed:
        number = report.number(str(pathlib.PurePosixPath(frame.name)))
        if number is None:
            raise ValueError(f"{path} lists {frame.name}, which has no number; name views rgb_00.png, rgb_01.png, ...")
        frames[number] = frame
    return frames


def _check_cameras(folder: pathlib.Path, rules: protocol.Protocol, *, width: int) -> None:
    """Refuse views of a width in pixels that are said to be from other cameras than those of the protocol."""
    try:
        frames = _frames(folder)
    except FileNotFoundError:  # The views have the poses of their numbers.
        return
    lenses = np.array([frame.intrinsics(width, width) for frame in frames.values()], np.float32)
    poses = cameras.opengl_from_opencv(np.stack([frame.pose for frame in frames.values()]))
    cams = structs.Cameras(poses, lenses[:, :2], lenses[:, 2:], width, width)
    if what := rules.difference(list(frames), cams):
        raise ValueError(
            f"{folder}: {what} is not that of the protocol {rules.name}; generate its views, or leave out --protocol, "
            "which draws a true mesh from the poses in the folder"
        )


def _read(path: pathlib.Path) -> structs.Mesh:
    """Return a mesh that can be scored.

    Raises:
      OSError, ValueError: it cannot be read, or has no finite surface.
    """
    mesh = export.read_mesh(path)
    if not np.isfinite(mesh.vertices).all():
        raise ValueError(f"{path} has vertices that are not finite; write it again")
    if not metrics.face_normals(mesh).any():
        raise ValueError(f"{path} has no surface ({len(mesh.faces)} faces of area 0); give a mesh with visible faces")
    return mesh


def _scaled(asset: reading.Asset, front_view: np.ndarray, camera: structs.Cameras) -> tuple[reading.Asset, float]:
    """Return an asset at the scale at which its silhouette agrees with a predicted front view, and the scale."""
    vertices = np.asarray(asset.vertices, np.float32)
    truth = structs.Mesh(vertices, asset.faces.astype(np.int32), np.zeros_like(vertices))
    scale = front.front_scale(front_view[..., 3], camera, truth)
    return dataclasses.replace(asset, vertices=asset.vertices * scale), scale


def normalized(vertices: np.ndarray) -> np.ndarray:
    """Return vertices with the bounding box centered at the origin and the farthest one 0.5 from it."""
    centered = vertices - (vertices.min(0) + vertices.max(0)) / 2
    return (centered * (0.5 / np.linalg.norm(centered, axis=-1).max())).astype(np.float32)


def evaluate(
    pred: str | os.PathLike, gt: str | os.PathLike | None = None, options: Options | None = None
) -> dict[str, Any]:
    """Score the objects of a path, see :mod:`e3d_jax.evaluation.inputs`; without ``gt`` only what needs no truth.

    Two paths of one object each are compared whatever their names.

    Raises:
      OSError, ValueError: a path holds no object, no object is in both, or none can be scored.
    """
    options = options or Options()
    found = inputs.find(pred)
    truths = {} if gt is None else inputs.find(gt)
    if len(found) == len(truths) == 1:
        truths = dict(zip(found, truths.values(), strict=True))
    listed = None if options.protocol is None else protocol.load(options.protocol).objects
    if listed is not None:
        found = {name: item for name, item in found.items() if name in listed}
        truths = {name: item for name, item in truths.items() if name in listed}
    names = list(found) if gt is None else [name for name in found if name in truths]
    if not names:
        where = f" in the protocol {options.protocol}" if listed is not None else ""
        raise ValueError(f"{pred} and {gt} have no object in common{where}; name the objects of both alike")
    scorer, objects, errors = _Scorer(options), {}, {}
    with futures.ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        running = {name: pool.submit(scorer.score, found[name], truths.get(name)) for name in names}
    for name, future in running.items():
        try:
            objects[name] = future.result()
        except (OSError, ValueError) as error:
            errors[name] = str(error)
    errors |= {name: "the prediction lacks it" for name in listed or truths if name not in found}
    errors |= {name: "the truth lacks it" for name in found if gt is not None and name not in truths}
    if not objects:
        raise ValueError(next(iter(errors.values())))
    sets = scorer.sets()
    return {
        "pred": os.fspath(pred),
        "gt": None if gt is None else os.fspath(gt),
        "align": options.align,
        "protocol": options.protocol,
        **summarize(objects, options.seed),
        "sets": sets,
        "networks": scorer.networks,
        "notes": scorer.notes,
        "errors": errors,
        "objects": objects,
    }


def summarize(objects: Mapping[str, Mapping[str, float]], seed: int = 0) -> dict[str, Any]:
    """Return ``mean`` and ``ci95`` of every score over the objects that have it, headline figures first."""
    names = dict.fromkeys(name for row in objects.values() for name in row)
    ordered = [name for name in HEADLINE if name in names]
    ordered += [name for name in names if name not in (*HEADLINE, *LAST)] + [name for name in LAST if name in names]
    values = {name: [row[name] for row in objects.values() if name in row] for name in ordered}
    return {
        "mean": {name: statistics_lib.mean(scores) for name, scores in values.items()},
        "ci95": {name: statistics_lib.interval(scores, seed) for name, scores in values.items()},
    }


def against(ours: Mapping[str, Any], path: str | os.PathLike) -> dict[str, Any]:
    """Return the paired differences of a report from one in a file, for every figure that has a best value.

    Raises:
      OSError, ValueError: the file is not a report, or no object is in both.
    """
    try:
        theirs = json.loads(pathlib.Path(path).read_text())["objects"]
        common = ours["objects"].keys() & theirs.keys()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a report of e3d eval; make one with --json={path}") from error
    if not common:
        raise ValueError(f"{path} has no object in common with this report; score the same objects")
    found = {}
    for name in ours["mean"]:
        a, b = ({key: row[name] for key, row in rows.items() if name in row} for rows in (ours["objects"], theirs))
        if name in BEST and a.keys() & b.keys():
            found[name] = statistics_lib.paired(a, b, BEST[name])
    return {"file": os.fspath(path), "differences": found}


def markdown(values: Mapping[str, Any]) -> str:
    """Format a report as a table in Markdown, with what is missing below it."""
    differences = values.get("against", {}).get("differences", {})
    header = ["figure", "mean", "95 % interval", *(["difference", "95 % interval", "better"] if differences else [])]
    lines = [_row(header), _row(["---"] * len(header))]
    for name, mean in values["mean"].items():
        cells = [name, f"{mean:.4g}", _interval(values["ci95"].get(name))]
        if differences:
            pair = differences.get(name)
            cells += (
                [f"{pair['difference']:+.4g}", _interval(pair["ci95"]), f"{pair['better']} of {pair['objects']}"]
                if pair
                else [""] * 3
            )
        lines.append(_row(cells))
    lines += [_row([name, f"{value:.4g}", *[""] * (len(header) - 2)]) for name, value in values["sets"].items()]
    for title in ("notes", "errors"):
        lines += [f"\n{name}: {sentence}" for name, sentence in values[title].items()]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"
