"""A system on held-out objects, each from one picture of its front, compared with the objects.

    python benchmarks/held_out.py --out=DIR [--weights=mini] [--scans=DIR] [--assets=DIR] [--synthetic=40]
        [--elevations=0,30] [--every=4] [--against=OTHER/report.json]

``--scans`` and ``--assets`` are folders of meshes; synthetic objects are those of `e3d benchmark`. Pictures are 512 px
large; their elevation is not given to the system. The seven other anchors, enlarged to 256 px where they are smaller,
are compared with the object at the scale at which the silhouettes of the first anchor agree; ``front_psnr`` is that of
the first anchor, ``silhouette_normal_angle_deg`` that over the whole true silhouette, where no normal counts as 90, and
``picture_psnr`` that of the mesh, seen from the camera found for the picture, against the picture. Meshes are aligned
(scale, translation, yaw) before they are compared.

``--out`` has a result, as of `e3d infer`, and scores for each object and elevation. Objects with scores are skipped, so
a run can be interrupted, and several processes can divide the objects (``--shard=0/4`` to ``3/4``). Each writes
``report.json``, a report as of `e3d eval`, of all objects that have scores.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from e3d_jax import benchmark, cameras, files, images, outputs, structs, system
from e3d_jax.data import assets, engine, synthetic
from e3d_jax.data.assets import reading
from e3d_jax.evaluation import evaluate, front, mesh_quality, metrics, report
from e3d_jax.mesh import preview

OUT = flags.DEFINE_string("out", None, "Folder of results and scores.", required=True)
WEIGHTS = flags.DEFINE_string("weights", "mini", "Bundled weights or a weights folder.")
SCANS = flags.DEFINE_string("scans", None, "Folder of scans.")
ASSETS = flags.DEFINE_string("assets", None, "Folder of held-out assets.")
SYNTHETIC = flags.DEFINE_integer("synthetic", 0, "Number of synthetic test objects.", lower_bound=0)
ELEVATIONS = flags.DEFINE_list("elevations", ["0"], "Elevations of the pictures in degrees.")
EVERY = flags.DEFINE_integer("every", 1, "Take every n-th object of each set.", lower_bound=1)
SHARD = flags.DEFINE_string("shard", "0/1", "I/N: do every N-th of the work from the I-th on.")
AGAINST = flags.DEFINE_string("against", None, "Report of another system.")

PICTURE, SIZE = 512, 256  # pixels


@dataclasses.dataclass(frozen=True)
class Subject:
    """An object.

    Attributes:
      draw: renders it, with all normal maps, from cameras and at a scale about the origin.
      mesh: of its surface.
    """

    draw: Callable[[structs.Cameras, float], structs.ViewSet]
    mesh: structs.Mesh


def of_file(path: pathlib.Path) -> Subject:
    """Read a mesh file."""
    asset = reading.read_asset(path)

    def draw(cams, scale):
        scaled = dataclasses.replace(asset, vertices=asset.vertices * np.float32(scale))
        return assets.render(scaled, cams, np.arange(len(cams))).views

    vertices = np.asarray(asset.vertices, np.float32)
    return Subject(draw, structs.Mesh(vertices, asset.faces.astype(np.int32), np.ones_like(vertices)))


def of_synthetic(index: int) -> Subject:
    """Sample a synthetic test object."""
    params = synthetic.take(synthetic.sample_batch("test", benchmark.TEST_SEED, [index]), 0)

    def draw(cams, scale):
        # An object that is larger by a factor looks like the object from cameras that are closer by that factor.
        poses = np.array(cams.world_from_cam)
        poses[:, :3, 3] /= scale
        near = dataclasses.replace(cams, world_from_cam=poses)
        return benchmark.ground_truth_views(params, near, np.arange(len(cams)))

    return Subject(draw, synthetic.ground_truth_mesh(params))


def subjects() -> Iterator[tuple[str, Callable[[], Subject]]]:
    """Yield the name of every object that was asked for, and what makes it."""
    for kind, folder in (("scans", SCANS.value), ("assets", ASSETS.value)):
        if folder is not None:
            for name, path in sorted(assets.find_assets(folder).items())[:: EVERY.value]:
                yield f"{kind}/{name}", functools.partial(of_file, path)
    for index in range(0, SYNTHETIC.value, EVERY.value):
        yield f"synthetic/{index:03d}", functools.partial(of_synthetic, index)


def score(model: system.System, subject: Subject, elevation: float, folder: pathlib.Path) -> dict[str, float]:
    """Write the result of one object, and return its scores."""
    seen = subject.draw(cameras.ViewLayout(elevation=elevation).cameras(PICTURE)[[0]], 1.0)
    result = model(seen.rgba[0], seed=0)
    folder.parent.mkdir(parents=True, exist_ok=True)
    outputs.write_result(folder, result, seed=0, config=model.config)
    return view_scores(result.views, model.config.layout, subject) | mesh_scores(result, subject)


def view_scores(views: structs.ViewSet, layout: cameras.ViewLayout, subject: Subject) -> dict[str, float]:
    """Score the anchors, their normals, and whether all views agree."""
    ring = layout.cameras(SIZE)[layout.anchors]
    pred = {at: _enlarged(views.rgba[view]) for at, view in enumerate(views.anchors)}
    scale = front.front_scale(pred[0][..., 3], ring[[0]], subject.mesh)
    true = subject.draw(ring, scale)
    gt = dict(enumerate(true.rgba))
    scores = {"front_scale": scale, "front_psnr": report.view_scores(pred.pop(0), gt.pop(0))["psnr"]}
    scores |= report.score_views(pred, gt)[0]
    normals = np.asarray(jax.image.resize(views.normals[1:], true.normals[1:].shape, "nearest"))
    inside = true.rgba[1:, ..., 3] > 0.5
    for name, mask in {"": inside & normals.any(-1), "silhouette_": inside}.items():
        if mask.any():
            pair = metrics.NormalPair(normals, true.normals[1:], mask)
            scores |= {f"{name}{key}": value for key, value in metrics.scores(metrics.NORMAL_METRICS, pair).items()}
    return scores | benchmark.score_consistency(views, 0)


def _enlarged(rgba: np.ndarray) -> np.ndarray:
    return rgba if len(rgba) == SIZE else images.crop(rgba, (0.0, 0.0, float(len(rgba))), SIZE)


def mesh_scores(result: system.Result, subject: Subject) -> dict[str, float]:
    """Score the mesh against that of the object and against the picture."""
    scores = report.mesh_scores(result.mesh, subject.mesh, align=True)
    if not mesh_quality.quality(subject.mesh)["watertight"]:
        del scores["volume_iou"]
    (given,) = result.inputs
    if given.camera is not None and given.picture is not None:
        shown = preview.render_mesh(result.mesh, given.camera.camera, supersampling=3)[0]
        scores["picture_psnr"] = report.view_scores(shown, given.picture.rgba)["psnr"]
    return scores | {f"{stage}_s": seconds for stage, seconds in result.seconds.items()}


def finished(out: pathlib.Path) -> dict[str, Any]:
    """Return a report of all objects that have scores."""
    scored = sorted(out.rglob("*.scores.json"))
    objects = {str(file.relative_to(out)).removesuffix(".scores.json"): json.loads(file.read_text()) for file in scored}
    values = {"objects": objects, **evaluate.summarize(objects), "sets": {}, "notes": {}, "errors": {}}
    return values | ({"against": evaluate.against(values, AGAINST.value)} if AGAINST.value else {})


def main(_) -> None:
    """Score all objects that have no scores yet, and print the means."""
    out, model = pathlib.Path(OUT.value), system.load(WEIGHTS.value)
    index, count = engine.parse_shard(SHARD.value)
    for elevation, (name, make) in list(itertools.product(ELEVATIONS.value, subjects()))[index::count]:
        folder = out / elevation / name
        if (file := folder.with_name(f"{folder.name}.scores.json")).exists():
            continue
        try:
            scores = score(model, make(), float(elevation), folder)
        except ValueError as error:  # The views do not agree on an object, say.
            logging.error("%s is not scored: %s", folder, error)
            continue
        files.write_atomically(file, json.dumps(scores).encode())
        print(elevation, name, {figure: round(value, 3) for figure, value in scores.items()}, flush=True)
    values = finished(out)
    files.write_atomically(out / "report.json", json.dumps(values, indent=1).encode())
    print(evaluate.markdown(values))


if __name__ == "__main__":
    app.run(main)
