"""A mesh from a folder of views: ``python -m e3d_jax.reconstruction --views=DIR --out=DIR``."""

import dataclasses
import json
import pathlib
import resource
import sys
import time

import jax
import tqdm
from absl import app, flags, logging

from e3d_jax import files
from e3d_jax.mesh import export
from e3d_jax.reconstruction import fit, pipeline, views_io

VIEWS = flags.DEFINE_string("views", None, "folder with transforms.json, RGBA views and optional normal maps")
OUT = flags.DEFINE_string("out", None, "folder for mesh.glb and report.json")
STEPS = flags.DEFINE_integer("steps", fit.FitConfig.steps, "optimiser steps", lower_bound=1)
RESOLUTION = flags.DEFINE_integer("resolution", 128, "marching-cubes cells along the longest side", lower_bound=8)
SEED = flags.DEFINE_integer("seed", 0, "seed of the fit", lower_bound=0)


def main(argv):
    """Fit, extract, write."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    try:
        _reconstruct(pathlib.Path(VIEWS.value), pathlib.Path(OUT.value))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _reconstruct(folder: pathlib.Path, out: pathlib.Path):
    config = fit.FitConfig(steps=STEPS.value, steps_per_chunk=min(STEPS.value, fit.FitConfig.steps_per_chunk))
    views = views_io.read_views(folder)
    out.mkdir(parents=True, exist_ok=True)
    start, losses = time.perf_counter(), {}
    with tqdm.tqdm(total=config.steps, desc="reconstruction", unit="step") as bar:

        def progress(done, metrics):
            losses.update(metrics)
            bar.set_postfix(loss=f"{metrics['loss']:.3f}")
            bar.update(done - bar.n)

        mesh = pipeline.reconstruct(views, config, jax.random.key(SEED.value), progress, resolution=RESOLUTION.value)
    export.write_glb(out / "mesh.glb", mesh)
    report = {
        "seed": SEED.value,
        "config": dataclasses.asdict(config),
        "views": len(views.rgba),
        "normal_maps": len(views.normal_views),
        "faces": len(mesh.faces),
        "final_losses": losses,
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    files.write_atomically(out / "report.json", json.dumps(report, indent=1).encode())
    print(f"mesh: {out / 'mesh.glb'}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["views", "out"])
    app.run(main)
