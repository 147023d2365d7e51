"""Time and device memory of the full-size system, from images to 32 views, with random weights.

    python benchmarks/full_size.py [--config=envision3d] [--objects=1] [--json=full_size.json]

Weights are drawn on the device in bfloat16. The first round compiles; every round ends when its result is on the host.
Compiling also tries kernels, which takes memory: with JAX_COMPILATION_CACHE_DIR set, the peak of a second call of this
script is that of the system in use.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import random_weights
from absl import app, flags
from flax import nnx

from e3d_jax import files, images, presets, stages, system

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
CONFIG = flags.DEFINE_string("config", "envision3d", "The system to time: preset or config file.")
IMAGE = flags.DEFINE_string("image", str(REPOSITORY / "examples/cake.png"), "Input image.")
OBJECTS = flags.DEFINE_integer("objects", 1, "How many images at once.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 2, "How often to run; the first round compiles.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File for the same numbers, as JSON.")


def gigabytes(statistic: str) -> float | None:
    """Return a number of the device's allocator, if it keeps any."""
    statistics = jax.local_devices()[0].memory_stats()
    return round(statistics[statistic] / 1e9, 2) if statistics else None


def run(model: system.System, report: Callable[[str], None]) -> None:
    """Run both diffusion stages; ``report(stage)`` is called when one is done."""
    keys = jax.random.split(jax.random.key(0))
    objects = [[model.prepare(IMAGE.value)]] * OBJECTS.value
    report("input")
    # Random weights draw nothing that could be cut out of its background.
    with mock.patch.object(images, "matte", lambda rgba: rgba):
        color = model.anchors(objects, keys[0])[:, 0]
        report("anchors")
        between = model.interpolate(jnp.asarray(color), keys[1])
        report("interpolation")
    if not np.isfinite(between).all():
        raise ValueError("the views are not finite; the times would mean nothing")


def main(_) -> None:
    """Print a line as soon as its stage is done."""
    config = stages.parse_config(presets.load(CONFIG.value).to_dict())
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()

    def report(part: str, stage: str) -> None:
        nonlocal start
        seconds = time.perf_counter() - start
        row: dict[str, Any] = {"part": part, "stage": stage, "seconds": round(seconds, 2)}
        row |= {"in_use_gb": gigabytes("bytes_in_use"), "peak_gb": gigabytes("peak_bytes_in_use")}
        rows.append(row)
        print(f"{part:8s} {stage:26s} {seconds:9.2f} s   {row['in_use_gb']} GB, peak {row['peak_gb']} GB", flush=True)
        start = time.perf_counter()

    modules: dict[str, nnx.Module] = {}
    for name in config.components:
        modules[name] = random_weights.random_component(config, name, jnp.bfloat16)
        report("weights", name)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(modules))
    model = system.System(config, modules)
    for index in range(1, ROUNDS.value + 1):
        run(model, functools.partial(report, f"round {index}"))
    seconds = sum(row["seconds"] for row in rows[-2:])
    print(f"{OBJECTS.value / seconds:.3f} objects per second through both stages")
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}: {parameters / 1e9:.2f} billion parameters, {config.size} px")
    if JSON.value:
        summary = {"device": device, "jax": jax.__version__, "parameters": parameters, "rows": rows}
        files.write_atomically(JSON.value, json.dumps(summary, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
