"""A system on scans of real objects, each from its front view: `e3d infer`, then `e3d eval` against the scan.

    python benchmarks/scans.py --meshes=SCANS --out=DIR [--weights=mini] [--protocol=scans20] [--every=4]

``--out`` has the front view of each object (NAME.png), its result (NAME), and its scores (NAME.json) of views,
consistency, and the aligned mesh. Views of a layout other than the protocol's are scored against the scan as it looks
from their own cameras, all of them. Objects with scores are skipped, so a run can be interrupted, and several processes
can divide the objects (``--names``); each call ends with a table of all objects that have scores.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from e3d_jax import files, images, outputs, system
from e3d_jax.data import assets
from e3d_jax.data.assets import reading
from e3d_jax.evaluation import evaluate, protocol

MESHES = flags.DEFINE_string("meshes", None, "Folder of the protocol's meshes.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder of results and scores.", required=True)
PROTOCOL = flags.DEFINE_enum("protocol", "scans20", protocol.names(), "Fixed list of objects.")
WEIGHTS = flags.DEFINE_string("weights", "mini", "Bundled weights or a weights folder.")
NAMES = flags.DEFINE_list("names", None, "Names of objects; those of the protocol by default.")
EVERY = flags.DEFINE_integer("every", 1, "Take every n-th object.", lower_bound=1)


def score(model: system.System, name: str, mesh: pathlib.Path, out: pathlib.Path) -> dict:
    """Make the result of one object, and return its report."""
    rules, front = protocol.load(PROTOCOL.value), out / f"{name}.png"
    camera = rules.cameras(model.size)[[rules.views.index(rules.input_view)]]
    drawn = assets.render(reading.read_asset(mesh), camera, np.arange(0)).views
    images.write_png(front, drawn.rgba[0])
    result = model(front, seed=0)
    outputs.write_result(out / name, result, seed=0, config=model.config)
    layout = model.config.layout
    other = rules.difference(range(layout.num_views), layout.cameras(model.size))
    options = evaluate.Options(align="mesh", consistency=True, protocol=None if other else PROTOCOL.value)
    return evaluate.evaluate(out / name, mesh, options)


def main(_) -> None:
    """Score all objects that have no scores yet, and print the means."""
    out, found = pathlib.Path(OUT.value), assets.find_assets(MESHES.value)
    out.mkdir(parents=True, exist_ok=True)
    model = system.load(WEIGHTS.value)
    for name in (NAMES.value or protocol.load(PROTOCOL.value).objects)[:: EVERY.value]:
        if not (file := out / f"{name}.json").exists():
            report = score(model, name, found[name], out)
            files.write_atomically(file, json.dumps(report, indent=1).encode())
            print(name, {figure: round(value, 3) for figure, value in report["mean"].items()}, flush=True)
    reports = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    objects = {name: row for report in reports for name, row in report["objects"].items()}
    print(f"\nmeans over {len(objects)} objects")
    print(evaluate.markdown(evaluate.summarize(objects) | {"sets": {}, "notes": {}, "errors": {}}))


if __name__ == "__main__":
    app.run(main)
