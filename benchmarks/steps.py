"""How many sampling steps both stages should take, by the figures of `e3d eval` and by looking.

    python benchmarks/steps.py --protocol=synthetic40 --out=DIR [--weights=mini] [--steps=1,2,4,8,20]
    python benchmarks/steps.py --protocol=scans20 --meshes=SCANS --out=DIR

The anchor stage starts from the true front view; its novel anchors are scored. The interpolation starts from the true
anchors; the views between them are scored. ``STAGE.json`` in ``--out`` holds a report for every number of steps, with
paired differences from the smallest; ``STAGE/NAME.png`` shows the true views of an object, and below them the sampled
ones, a row for each number of steps.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from e3d_jax import benchmark, cameras, files, images, structs, system
from e3d_jax.data import assets, synthetic
from e3d_jax.data.assets import reading
from e3d_jax.evaluation import evaluate, protocol, report, statistics

PROTOCOL = flags.DEFINE_enum("protocol", "synthetic40", protocol.names(), "Fixed list of objects.")
MESHES = flags.DEFINE_string("meshes", None, "Folder of the protocol's meshes; synthetic objects need none.")
OUT = flags.DEFINE_string("out", None, "Folder of the scores and images.", required=True)
WEIGHTS = flags.DEFINE_string("weights", "mini", "Bundled weights or a weights folder.")
STEPS = flags.DEFINE_list("steps", ["1", "2", "4", "8", "20"], "Numbers of steps, the smallest first.")
EVERY = flags.DEFINE_integer("every", 1, "Take every n-th object of the protocol.", lower_bound=1)


def true_views(name: str, layout: cameras.ViewLayout, size: int) -> structs.ViewSet:
    """Draw the views of an object of the protocol."""
    if MESHES.value is None:
        number = int(name.removeprefix("object_"))
        params = synthetic.take(synthetic.sample_batch("test", benchmark.TEST_SEED, [number]), 0)
        return benchmark.ground_truth_views(params, layout.cameras(size), layout.anchors)
    mesh = assets.find_assets(MESHES.value)[name]
    return assets.render(reading.read_asset(mesh), layout.cameras(size), layout.anchors).views


def with_steps(model: system.System, stage: str, steps: int) -> system.System:
    """Return the system with another number of sampling steps of a stage."""
    values: dict[str, Any] = model.config.to_dict()
    values[stage]["sampling"]["num_steps"] = steps
    return system.load(WEIGHTS.value, values)


def sample(model: system.System, stage: str, gt: structs.ViewSet) -> np.ndarray:
    """Run one stage on true views; return the views that are scored."""
    if stage == "anchor":
        return model.anchors([[model.prepare(gt.rgba[0])]], jax.random.key(0))[0, 0, 1:]
    return model.interpolate(jnp.asarray(gt.rgba[gt.anchors])[None], jax.random.key(0))[0]


def show(rows: list[np.ndarray]) -> np.ndarray:
    """Return views over white, a row each, at most eight of a row."""
    chosen = [row[np.linspace(0, len(row), min(len(row), 8), endpoint=False).astype(int)] for row in rows]
    return np.concatenate([np.concatenate(list(images.composite(row)), 1) for row in chosen])


def main(argv):
    """Sample, score and print."""
    del argv
    out, model = pathlib.Path(OUT.value), system.load(WEIGHTS.value)
    layout, numbers = model.config.layout, [int(steps) for steps in STEPS.value]
    names = protocol.load(PROTOCOL.value).objects[:: EVERY.value]
    truths = {name: true_views(name, layout, model.size) for name in names}
    for stage, scored in {"anchor": layout.anchors[1:], "interpolation": layout.between}.items():
        (out / stage).mkdir(parents=True, exist_ok=True)
        shown = {name: [truths[name].rgba[scored]] for name in names}
        reports: dict[int, dict[str, Any]] = {}
        for steps in numbers:
            varied, scores = with_steps(model, stage, steps), {}
            for name, gt in truths.items():
                views = sample(varied, stage, gt)
                shown[name].append(views)
                scores[name] = report.score_views(dict(enumerate(views)), dict(enumerate(gt.rgba[scored])))[0]
            reports[steps] = {**evaluate.summarize(scores), "objects": scores}
            first = reports[numbers[0]]["objects"]
            print(f"\n{stage}, {steps} steps, {len(names)} objects of {PROTOCOL.value}", flush=True)
            for figure, mean in reports[steps]["mean"].items():
                if figure in evaluate.BEST:
                    ours, theirs = ({n: each[figure] for n, each in table.items()} for table in (scores, first))
                    pair = statistics.paired(ours, theirs, evaluate.BEST[figure])
                    reports[steps].setdefault("differences", {})[figure] = pair
                    print(
                        f"  {figure:12s} {mean:8.4f}  {pair['difference']:+.4f}  better: {pair['better']}", flush=True
                    )
        files.write_atomically(out / f"{stage}.json", json.dumps(reports, indent=1).encode())
        for name, rows in shown.items():
            images.write_png(out / stage / f"{name}.png", show(rows))


if __name__ == "__main__":
    app.run(main)
