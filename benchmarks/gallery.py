"""The image of results in README.md: a row for each result folder of `e3d infer` or `e3d benchmark`.

    e3d benchmark --out=scores
    python benchmarks/gallery.py --out=docs/images/mini.png scores/object_000 scores/object_008

A row shows the input image, five generated views from all around, and the mesh from three sides.
"""

import pathlib

import numpy as np
from absl import app, flags

from e3d_jax import cameras, images
from e3d_jax.mesh import export, preview

OUT = flags.DEFINE_string("out", None, "File of the image.", required=True)

VIEWS, LOOKS, GAP = 5, 3, 32  # GAP: white columns between the three parts, in pixels


def row(result: pathlib.Path) -> np.ndarray:
    """Return the row of one result."""
    given, files = images.read_image(result / "input.png"), sorted((result / "views").glob("rgb_*.png"))
    chosen = np.linspace(0, len(files), VIEWS, endpoint=False).astype(int)
    views = [images.read_image(files[number]) for number in chosen]
    looks = preview.render_mesh(export.read_mesh(result / "mesh.glb"), cameras.ring(len(given), LOOKS))
    gap = np.zeros((len(given), GAP, 4), np.float32)
    return np.asarray(images.composite(np.concatenate([given, gap, *views, gap, *looks], 1)))


def main(argv):
    """Write the image."""
    images.write_png(pathlib.Path(OUT.value), np.concatenate([row(pathlib.Path(result)) for result in argv[1:]]))


if __name__ == "__main__":
    app.run(main)
