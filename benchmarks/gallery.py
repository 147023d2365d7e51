"""The images of results in README.md and MODEL_CARD.md, a row for each object.

    e3d benchmark --out=scores
    python benchmarks/gallery.py --results=scores --names=object_000,object_008 --out=docs/images/mini.png

A row shows the input image, five generated views from all around, and the mesh from three sides.
"""

import pathlib

import numpy as np
from absl import app, flags

from e3d_jax import cameras, images
from e3d_jax.mesh import export, preview

RESULTS = flags.DEFINE_string("results", None, "Folder of results of `e3d infer` or `e3d benchmark`.", required=True)
NAMES = flags.DEFINE_list("names", None, "Names of the results, from top to bottom.", required=True)
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
    del argv
    rows = [row(pathlib.Path(RESULTS.value, name)) for name in NAMES.value]
    images.write_png(pathlib.Path(OUT.value), np.concatenate(rows))


if __name__ == "__main__":
    app.run(main)
