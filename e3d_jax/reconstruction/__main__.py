"""A mesh from a folder of views.

    python -m e3d_jax.reconstruction --views=DIR --out=DIR2 [--quality=fast|standard|best] [--faces=N] [--obj]

Writes ``mesh.glb`` with a texture, ``turntable.gif`` (in colour and as normals) and ``report.json``; with ``--obj``
also ``mesh.obj``, and with ``--preview=SECONDS`` a ``preview.png`` of the fit so far, in such intervals.
"""

import argparse
import dataclasses
import json
import logging
import math
import pathlib
import resource
import sys
import time
import warnings

import jax
import numpy as np
import tqdm

from e3d_jax import cameras, files, images, views_io
from e3d_jax.mesh import export, preview
from e3d_jax.reconstruction import draw, fit, pipeline

PREVIEW_SIZE = 128


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""

    def at_least(low, kind=int):
        def convert(text):
            value = kind(text)
            if not low <= value < math.inf:
                raise argparse.ArgumentTypeError(f"{text} is below {low}, or not finite")
            return value

        return convert

    parser = argparse.ArgumentParser(
        "python -m e3d_jax.reconstruction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--views", type=pathlib.Path, required=True, help="folder: transforms.json, RGBA views, optional normal maps")
    add("--out", type=pathlib.Path, required=True, help="folder of the results")
    add("--quality", choices=list(pipeline.QUALITIES), default="standard", help="speed against detail")
    add("--steps", type=at_least(1), help="optimiser steps, if not those of the quality")
    add("--resolution", type=at_least(8), help="marching-cubes cells along the longest side")
    add("--faces", type=at_least(100), help="at most so many faces")
    add("--texture-size", type=at_least(16), help="width and height of the texture")
    add("--smoothing", type=at_least(0, float), help="in cells, for views that contradict each other; 1 is plenty")
    add("--no-normals", action="store_true", help="leave normal maps out")
    add("--obj", action="store_true", help="write mesh.obj too (z up)")
    add("--preview", type=at_least(0, float), default=0.0, help="seconds between pictures of the fit; 0 for none")
    add("--seed", type=at_least(0), default=0, help="of the fit")
    return parser.parse_args(arguments)


class Watch:
    """A bar with loss and PSNR, and pictures of the fit on request."""

    def __init__(self, bar: tqdm.tqdm, folder: pathlib.Path, interval: float):
        self._bar, self._folder, self._interval, self._last = bar, folder, interval, time.perf_counter()
        self.losses: dict[str, float] = {}

    def __call__(self, done, losses, field) -> None:
        """Called after every chunk of the fit."""
        self.losses = {**losses, "psnr_db": -10 * math.log10(max(losses["squared_error"], 1e-10))}
        self._bar.set_postfix(loss=f"{losses['loss']:.3f}", psnr=f"{self.losses['psnr_db']:.1f} dB")
        self._bar.update(done - self._bar.n)
        if self._interval and time.perf_counter() - self._last > self._interval:
            pictures = draw.draw(field, cameras.ring(PREVIEW_SIZE, 1))
            row = np.concatenate([np.asarray(images.composite(picture)) for picture in pictures], 1)
            images.write_png(self._folder / "preview.png", row)
            self._last = time.perf_counter()


def settings(options: argparse.Namespace) -> tuple[fit.FitConfig, pipeline.SurfaceConfig]:
    """The fit and the surface of the quality, with what the command line changes."""
    fitting, surface = pipeline.QUALITIES[options.quality]
    if options.steps:
        chunk = math.gcd(options.steps, fitting.steps_per_chunk)
        fitting = dataclasses.replace(fitting, steps=options.steps, steps_per_chunk=chunk)
    given = {
        "resolution": options.resolution,
        "max_faces": options.faces,
        "texture_size": options.texture_size,
        "smoothing": options.smoothing,
    }
    return fitting, dataclasses.replace(surface, **{name: value for name, value in given.items() if value is not None})


def reconstruct(options: argparse.Namespace) -> None:
    """Fit, extract, paint, write."""
    fitting, surface = settings(options)
    views, out = views_io.read_views(options.views), options.out
    if options.no_normals:
        views = dataclasses.replace(views, normal_views=views.normal_views[:0], normals=views.normals[:0])
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tqdm.tqdm(total=fitting.steps, desc="reconstruction", unit="step") as bar:
        watch = Watch(bar, out, options.preview)
        mesh = pipeline.reconstruct(views, fitting, jax.random.key(options.seed), watch, surface=surface)
    seconds = time.perf_counter() - start
    export.write_glb(out / "mesh.glb", mesh)
    if options.obj:
        export.write_obj(out / "mesh.obj", mesh)
    preview.write_turntable(out / "turntable.gif", mesh)
    report = {
        "seed": options.seed,
        "quality": options.quality,
        "fit": dataclasses.asdict(fitting),
        "surface": dataclasses.asdict(surface),
        "views": len(views.rgba),
        "normal_maps": len(views.normal_views),
        "faces": len(mesh.faces),
        "final_losses": watch.losses,
        "seconds": seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    files.write_atomically(out / "report.json", json.dumps(report, indent=1).encode())
    print(f"mesh: {out / 'mesh.glb'}")


def main(arguments: list[str] | None = None) -> None:
    """One clear sentence instead of a traceback."""
    logging.getLogger("jax").setLevel(logging.WARNING)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        reconstruct(parse(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
