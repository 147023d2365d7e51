"""How a mesh should be fitted to generated views: which views, and whether to trust all of their pixels.

    e3d benchmark --out=scores            # leaves the views of the test objects
    python benchmarks/schedules.py --scores=scores [--out=schedules.json]

Every test object with views is reconstructed from them with each variant of the settings that it was made with, and
compared with the ground truth by all mesh metrics (e3d_jax/evaluation/metrics.py). Variants:

    anchors_only, all_views, coarse_to_fine    view schedules
    favor_front       views weighted by their azimuth, as in the release
    kept_fractions    the largest errors left out, as in the release
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import app, flags

from e3d_jax import files, reports, settings, views_io
from e3d_jax.data import synthetic
from e3d_jax.evaluation import metrics, report
from e3d_jax.reconstruction import config, pipeline

SCORES = flags.DEFINE_string("scores", None, "Folder that e3d benchmark wrote.", required=True)
OUT = flags.DEFINE_string("out", "schedules.json", "File for the scores; those already there are not computed again.")
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"all_views": switches} for name, switches in config.VIEW_SCHEDULES.items()},
    "favor_front": {"favor_front": True},
    "kept_fractions": {"color_kept": 0.8, "mask_kept": 0.9, "normal_kept": 0.8},
}


def main(_) -> None:
    """Print every score, then the means."""
    if not (folders := sorted(pathlib.Path(SCORES.value).glob("object_*/views"))):
        raise app.UsageError(f"--scores={SCORES.value} has no object_NUMBER/views; run e3d benchmark first")
    out = pathlib.Path(OUT.value)
    rows = json.loads(out.read_text()) if out.exists() else []
    done = {(row["object"], row["variant"]) for row in rows}
    for folder in folders:
        index = int(folder.parent.name.removeprefix("object_"))
        views = views_io.read_views(folder)
        stored = json.loads((folder.parent / reports.REPORT).read_text())["settings"]["reconstruction"]
        chosen = settings.parse(config.ReconstructionSettings, stored)
        gt = synthetic.ground_truth_mesh(synthetic.take(synthetic.sample_batch("test", 0, [index]), 0))
        for name, changes in VARIANTS.items():
            if (index, name) in done:
                continue
            varied = dataclasses.replace(chosen, fit=dataclasses.replace(chosen.fit, **changes))
            mesh = pipeline.reconstruct(views, varied, jax.random.key(0))
            rows.append({"object": index, "variant": name, **report.mesh_scores(mesh, gt)})
            print(rows[-1], flush=True)
            files.write_atomically(out, json.dumps(rows, indent=1).encode())
    print(f"{'':16s}" + "".join(f"{name:>20s}" for name in metrics.MESH_METRICS))
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        means = "".join(f"{np.mean([row[key] for row in own]):20.4f}" for key in metrics.MESH_METRICS)
        print(f"{name:16s}{means}{len(own):20d} objects")


if __name__ == "__main__":
    app.run(main)
