"""Which views a mesh should be fitted to when they were generated: the anchors, all from the start, or coarse to fine.

    python -m e3d_jax.evaluation.protocol --out=scores            # leaves the views of the test objects
    python benchmarks/schedules.py --scores=scores [--out=schedules.json]

Every test object whose views are there is rebuilt from them with each schedule, all other settings as they were, and
compared with the true shape: volume IoU (128 cells a side), Chamfer distance, normal consistency.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
from absl import app, flags

from e3d_jax import files, settings, views_io
from e3d_jax.data import synthetic
from e3d_jax.evaluation import report
from e3d_jax.reconstruction import fit, pipeline

SCORES = flags.DEFINE_string("scores", None, "Folder that e3d_jax.evaluation.protocol wrote.", required=True)
OUT = flags.DEFINE_string("out", "schedules.json", "File of the scores; those that it has are not made again.")
NAMES = ("volume_iou", "chamfer", "normal_consistency")


def main(_) -> None:
    """Prints every score, then the means."""
    if not (folders := sorted(pathlib.Path(SCORES.value).glob("object_*/views"))):
        raise app.UsageError(f"--scores={SCORES.value} holds no object_NUMBER/views; run the protocol first")
    out = pathlib.Path(OUT.value)
    rows = json.loads(out.read_text()) if out.exists() else []
    done = {(row["object"], row["schedule"]) for row in rows}
    for folder in folders:
        number = int(folder.parent.name.removeprefix("object_"))
        views = views_io.read_views(folder)
        config = json.loads((folder.parent / "report.json").read_text())["config"]
        fitting, surface = settings.fit_config(config), settings.surface_config(config)
        params = synthetic.take(synthetic.sample_batch("test", 0, [number]), 0)
        true = synthetic.ground_truth_mesh(params)
        for name, switches in fit.VIEW_SCHEDULES.items():
            if (number, name) in done:
                continue
            scheduled = dataclasses.replace(fitting, all_views=switches)
            mesh = pipeline.reconstruct(views, scheduled, jax.random.key(0), surface=surface)
            found = report.mesh_scores(mesh, true)
            rows.append({"object": number, "schedule": name, **{key: float(found[key]) for key in NAMES}})
            print(rows[-1], flush=True)
            files.write_atomically(out, json.dumps(rows, indent=1).encode())
    for name in fit.VIEW_SCHEDULES:
        of = [row for row in rows if row["schedule"] == name]
        means = "".join(f"{np.mean([row[key] for row in of]):20.4f}" for key in NAMES)
        print(f"{name:16s}{means}{len(of):20d} objects")


if __name__ == "__main__":
    app.run(main)
