"""Reconstruct a mesh from a folder of views.

    python -m e3d_jax.reconstruction --views=DIR --out=DIR2 [--quality=fast|standard|best] [--faces=N] [--obj]

Writes ``mesh.glb`` with a texture, ``turntable.gif`` (color and normals) and ``report.json``; with ``--obj`` also
``mesh.obj``, and with ``--preview=SECONDS`` a ``preview.png`` of the current fit at that interval.
"""

import argparse
import logging
import math
import pathlib
import sys
import warnings

from e3d_jax import fitting
from e3d_jax.reconstruction import config


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the options."""

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
    add("--out", type=pathlib.Path, required=True, help="folder for the results")
    add("--quality", choices=list(config.QUALITIES), default="standard", help="speed against detail")
    add("--steps", type=at_least(1), help="optimizer steps (default: set by --quality)")
    add("--resolution", type=at_least(8), help="marching-cubes cells along the longest side")
    add("--faces", type=at_least(100), help="maximum number of faces")
    add("--texture-size", type=at_least(16), help="width and height of the texture in pixels")
    add("--smoothing", type=at_least(0, float), help="blur in cells for views that contradict each other; 1 is plenty")
    add("--no-normals", action="store_true", help="ignore normal maps")
    add("--obj", action="store_true", help="also write mesh.obj (z up)")
    add("--preview", type=at_least(0, float), default=0.0, help="seconds between images of the fit; 0 for none")
    add("--seed", type=at_least(0), default=0, help="seed of the fit")
    return parser.parse_args(arguments)


def settings_of(options: argparse.Namespace) -> config.ReconstructionSettings:
    """Return the settings of the quality, with the changes from the command line."""
    return config.changed(
        config.QUALITIES[options.quality],
        steps=options.steps,
        resolution=options.resolution,
        max_faces=options.faces,
        texture_size=options.texture_size,
        smoothing=options.smoothing,
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command; errors become one sentence."""
    logging.getLogger("jax").setLevel(logging.WARNING)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    options = parse(arguments)
    try:
        fitting.reconstruct_folder(
            options.views,
            options.out,
            settings_of(options),
            seed=options.seed,
            use_normals=not options.no_normals,
            obj=options.obj,
            preview_seconds=options.preview,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"mesh: {options.out / 'mesh.glb'}")


if __name__ == "__main__":
    main()
