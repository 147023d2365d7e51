"""Reconstruct a mesh from a folder of views.

    e3d fit --views=DIR --out=DIR2 [--quality=fast|standard|best] [--faces=N] [--formats=obj,stl,ply,usdz]

Writes mesh.glb with a texture, turntable.gif (color and normals) and report.json; with --formats other files of the
mesh, and with --preview=SECONDS a preview.png of the current fit at that interval.
"""

import pathlib

from e3d_jax import stores
from e3d_jax.cli.flags import Flags, no_arguments, show_warnings


def define(flags: Flags) -> None:
    """Define the flags."""
    from e3d_jax.reconstruction import config

    flags.source("views", None, "Folder with transforms.json, RGBA views and optional normal maps.", required=True)
    flags.target("out", "Folder for the results.")
    flags.choice("quality", "standard", list(config.QUALITIES), "Speed against detail.")
    flags.integer("steps", None, "Optimizer steps (default: set by --quality).", at_least=1)
    flags.integer("resolution", None, "Marching-cubes cells along the longest side.", at_least=8)
    flags.integer("faces", None, "Maximum number of faces.", at_least=100)
    flags.integer("texture_size", None, "Width and height of the texture in pixels.", at_least=16)
    flags.number("smoothing", None, "Blur in cells for views that contradict each other; 1 is plenty.")
    flags.switch("normals", True, "Use the normal maps.")
    flags.mesh_files()
    flags.number("preview", 0.0, "Seconds between images of the fit; 0 for none.")
    flags.integer("seed", 0, "Seed of the fit.")


def run(flags: Flags, arguments: list[str]) -> None:
    """Reconstruct the mesh and write its files."""
    from e3d_jax import fitting
    from e3d_jax.reconstruction import config

    no_arguments(arguments)
    show_warnings("fit")
    settings = config.changed(
        config.QUALITIES[flags.quality],
        steps=flags.steps,
        resolution=flags.resolution,
        max_faces=flags.faces,
        texture_size=flags.texture_size,
        smoothing=flags.smoothing,
    )
    fitting.reconstruct_folder(
        flags.views,
        flags.out,
        settings,
        seed=flags.seed,
        use_normals=flags.normals,
        mesh_files=flags.chosen_mesh_files(),
        preview_seconds=flags.preview,
    )
    print(stores.named(f"mesh: {pathlib.Path(flags.out, 'mesh.glb')}"))
