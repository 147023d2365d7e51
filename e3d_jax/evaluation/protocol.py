"""The project's test: unseen synthetic objects, and optionally real meshes, from one picture each.

    python -m e3d_jax.evaluation.protocol --out=DIR [--weights=mini] [--objects=40] [--nomeshes] [--real=DIR2]

Every object leaves one JSON file in ``--out`` and is skipped when that exists, so several processes may share the work
by ranges (``--start``), and the last call prints the table of all. Synthetic objects are of the test split, which no
training object meets. ``--real`` names a folder with ``meshes/NAME.glb`` and front pictures ``views/NAME/rgba_00.png``;
as one picture tells no depth, meshes made from those are aligned first (scale, translation, yaw), and the best sphere
and the extruded silhouette are scored beside them.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from e3d_jax import cameras, commands, files, images, outputs, structs, system
from e3d_jax.data import synthetic
from e3d_jax.evaluation import baselines, metrics, report
from e3d_jax.mesh import export

OUT = flags.DEFINE_string("out", None, "Folder of the scores.", required=True)
WEIGHTS = flags.DEFINE_string("weights", "mini", "Bundled weights or a weights folder.")
OBJECTS = flags.DEFINE_integer("objects", 40, "How many synthetic test objects.", lower_bound=0)
MESHES = flags.DEFINE_bool("meshes", True, "Of synthetic objects, too: most of the time goes there.")
START = flags.DEFINE_integer("start", 0, "Number of the first one.", lower_bound=0)
REAL = flags.DEFINE_string("real", None, "Folder of real meshes and front pictures.")
SEED = flags.DEFINE_integer("seed", 0, "Of the sampled views.", lower_bound=0)
TEST_SEED = 0
# Views that agree on no object leave no mesh: no overlap, and the distance from the ball's middle to its surface.
NO_MESH = {"volume_iou": 0.0, "chamfer": 0.5, "normal_consistency": 0.0}
CACHE = flags.DEFINE_string("cache", None, "Folder of JAX's compilation cache.")


def true_views(params: synthetic.ObjectParams, size: int) -> structs.ViewSet:
    """The ring of one normalised object, with the anchors' normal maps."""
    ring = cameras.ring(size)
    drawn = synthetic.render(jax.tree.map(lambda x: jnp.asarray(x)[None], params), ring)
    return structs.ViewSet(
        rgba=np.asarray(drawn.rgba[0]),
        cameras=ring,
        normal_views=cameras.ANCHORS,
        normals=np.asarray(drawn.normals[0, cameras.ANCHORS]),
        anchors=cameras.ANCHORS,
    )


def score_object(model: system.System, index: int, seed: int, out: pathlib.Path, meshes: bool) -> dict[str, Any]:
    """The scores of one synthetic test object, from its front view alone and from its true views.

    Angles of normals are means over the true silhouettes, where a missing normal counts as 90 degrees, and over the
    pixels where there is a normal ("shared"). Without ``meshes`` only views are scored, and ``out`` gets no files of
    the object.
    """
    params = synthetic.take(synthetic.sample_batch("test", TEST_SEED, [index]), 0)
    true = true_views(params, model.size)
    clock = system.Clock(progress=False)
    picture, encoded = model.prepare(true.rgba[0])
    views = model.generate(picture, encoded, seed, clock)
    unseen = [report.view_scores(views.rgba[v], true.rgba[v]) for v in cameras.ANCHORS[1:]]
    silhouettes = true.rgba[cameras.ANCHORS, ..., 3] > 0.5
    shared = silhouettes & views.normals.any(-1)
    new = np.setdiff1d(np.arange(cameras.NUM_VIEWS), cameras.ANCHORS)
    between = model.interpolate(jnp.asarray(true.rgba[cameras.ANCHORS])[None], jax.random.key(seed))[0]
    psnr = [report.view_scores(view, true.rgba[v])["psnr"] for view, v in zip(between, new, strict=True)]
    scores = {
        "family": synthetic.family_of("test", TEST_SEED, index),
        "anchor_psnr": float(np.mean([s["psnr"] for s in unseen])),
        "anchor_ssim": float(np.mean([s["ssim"] for s in unseen])),
        "normal_angle_deg": metrics.normal_angle(views.normals, true.normals, silhouettes),
        "normal_angle_shared_deg": metrics.normal_angle(views.normals, true.normals, shared) if shared.any() else 90.0,
        "interpolated_psnr": float(np.mean(psnr)),
    }
    if not meshes:
        return scores

    shape = synthetic.ground_truth_mesh(params)
    try:
        mesh = model.reconstruct(views, seed, clock)
    except ValueError:
        from_picture = NO_MESH
    else:
        from_picture = report.mesh_scores(mesh, shape)
        result = system.Result(picture, encoded, views, mesh, clock.seconds, clock.peak_memory)
        outputs.write_result(out / f"object_{index:03d}", result, seed=seed, config=model.config)
    rebuilt = model.reconstruct(true, seed, system.Clock(progress=False))
    return scores | {
        "mesh_iou": float(from_picture["volume_iou"]),
        "mesh_chamfer": from_picture["chamfer"],
        "mesh_normal_consistency": from_picture["normal_consistency"],
        "true_views_mesh_iou": float(metrics.volume_iou(rebuilt, shape)),
        "seconds": sum(clock.seconds.values()),
    }


def score_real(model: system.System, real: pathlib.Path, name: str, seed: int, out: pathlib.Path) -> dict[str, Any]:
    """Scores of the mesh made from one front picture of a real object, beside two that need no model."""
    true = export.read_mesh(real / "meshes" / f"{name}.glb")
    picture = images.read_image(real / "views" / name / "rgba_00.png")
    result = model(picture, seed=seed)
    outputs.write_result(out / name, result, seed=seed, config=model.config)
    rivals = {
        "mesh": result.mesh,
        "sphere": baselines.fitted_sphere(true),
        "silhouette": baselines.extruded_silhouette(picture),
    }
    scores: dict[str, Any] = {"name": name}
    for label, mesh in rivals.items():
        found = report.mesh_scores(mesh, true, align=True)
        scores |= {f"{label}_iou": found["volume_iou"], f"{label}_chamfer": found["chamfer"]}
    return scores


def summary(rows: list[dict[str, Any]]) -> str:
    """Means of every numeric score."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    return report.table(means)


def main(_) -> None:
    """Scores what has no score yet, then prints the means."""
    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", CACHE.value)
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    model = system.load(WEIGHTS.value)
    for index in range(START.value, START.value + OBJECTS.value):
        if not (file := out / f"{'object' if MESHES.value else 'views'}_{index:03d}.json").exists():
            scores = score_object(model, index, SEED.value, out, MESHES.value)
            files.write_atomically(file, json.dumps(scores).encode())
            print(index, {k: round(v, 3) if isinstance(v, float) else v for k, v in scores.items()}, flush=True)
    if REAL.value:
        real = pathlib.Path(REAL.value)
        for mesh in sorted((real / "meshes").glob("*.glb")):
            if not (file := out / f"real_{mesh.stem}.json").exists():
                scores = score_real(model, real, mesh.stem, SEED.value, out)
                files.write_atomically(file, json.dumps(scores).encode())
    for kind in ("object", "views", "real"):
        if rows := [json.loads(file.read_text()) for file in sorted(out.glob(f"{kind}_*.json"))]:
            print(f"\nmean over {len(rows)} ({kind})\n{summary(rows)}")


if __name__ == "__main__":
    app.run(commands.told(main, "e3d_jax.evaluation.protocol"))
