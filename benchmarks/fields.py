"""Whether the meshes of torn fields are fit for use.

    python benchmarks/fields.py [--fields=200] [--kinds=fitted,noise,thick,thin,sheets] [--max_faces=1500]
        [--out=fields.json]

Signed distances on 37 lattice points per side, of five kinds in turn, are made into meshes of at most ``--max_faces``
faces (e3d_jax/mesh/extract.py):

    fitted          fitted for 40 steps to 16 views, at 64 px, of a synthetic object. Each view is shifted by up to
                    six pixels in either direction, and up to six of them show another object
    noise           noise, of random smoothness
    thick, thin     shells with noise
    sheets          thickened gyroids with noise, cut to a ball

The table counts, by kind, meshes that are *closed* (watertight and manifold), those *within* 5 % of the faces asked
for, those with faces that *intersect* others, and those whose gaps were *filled* because too many faces were needed.
Views that share no object are *refused*.
"""

import itertools
import json
import pathlib
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy import ndimage

from e3d_jax import cameras, files, structs
from e3d_jax.data import synthetic
from e3d_jax.evaluation import mesh_quality
from e3d_jax.mesh import extract
from e3d_jax.reconstruction import config, fields, fit, pipeline

KINDS = ["fitted", "noise", "thick", "thin", "sheets"]
FIELDS = flags.DEFINE_integer("fields", 200, "Number of fields.", lower_bound=1)
CHOSEN = flags.DEFINE_list("kinds", KINDS, "Kinds of fields, see above.")
MAX_FACES = flags.DEFINE_integer("max_faces", 1500, "Faces asked for.", lower_bound=4)
OUT = flags.DEFINE_string("out", "fields.json", "File of the rows.")

POINTS = 37
BOX = np.array([[-0.5] * 3, [0.5] * 3])
COUNTED = ("closed", "within", "intersecting", "filled", "refused")
SETTINGS = config.FitSettings(
    steps=40,
    steps_per_chunk=20,
    rays=256,
    random_points=128,
    hull_cells=32,
    cache_cells=24,
    levels=(8, 16, 32),
    color_levels=(16,),
    hidden=16,
)


def spoiled_views(index: int, rng: np.random.Generator) -> structs.ViewSet:
    """Return views of a synthetic object that are shifted, some of them of another object."""
    ring, anchors = cameras.ring(64, 16), np.arange(0, 16, 2)

    def render(index):
        params = synthetic.take(synthetic.sample_batch("test", 0, [index]), 0)
        return synthetic.render(jax.tree.map(lambda x: jnp.asarray(x)[None], params), ring)

    shown, other = render(index), render(index + 1)
    rgba, normals = np.array(shown.rgba[0]), np.array(shown.normals[0])
    swapped = rng.permutation(16)[: rng.integers(7)]
    rgba[swapped], normals[swapped] = other.rgba[0, swapped], other.normals[0, swapped]
    reach = rng.integers(7)
    for view, offset in enumerate(rng.integers(-reach, reach + 1, (16, 2))):
        rgba[view], normals[view] = (np.roll(image[view], offset, (0, 1)) for image in (rgba, normals))
    return structs.ViewSet(rgba, ring, anchors, normals[anchors], anchors)


def fitted(index: int, rng: np.random.Generator) -> tuple[extract.DistanceFn, np.ndarray]:
    """Return a distance fitted to spoiled views, and its box.

    Raises:
      ValueError: the views share no object.
    """
    field = fit.fit(spoiled_views(index, rng), SETTINGS, jax.random.key(index)).field
    return pipeline.surface_functions(field)[0], np.asarray(field.box)


def drawn(kind: str, rng: np.random.Generator) -> tuple[extract.DistanceFn, np.ndarray]:
    """Return a distance between lattice points, and its box."""
    points = np.asarray(fields.lattice(BOX, (POINTS,) * 3), np.float64)
    radius = np.linalg.norm(points, axis=-1)
    noise = ndimage.gaussian_filter(rng.normal(size=radius.shape), rng.uniform(0, 1.5))
    noise *= rng.uniform(0.002, 0.02) / noise.std()
    if kind == "noise":
        values = noise
    elif kind == "sheets":
        waves = rng.uniform(10, 40)
        x, y, z = np.moveaxis(waves * points, -1, 0)
        gyroid = np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)
        values = np.maximum(np.abs(gyroid) / (1.5 * waves) - rng.uniform(0.003, 0.015), radius - 0.45) + noise / 5
    else:
        wall = rng.uniform(0.03, 0.1) if kind == "thick" else rng.uniform(0.003, 0.015)
        values = np.abs(radius - 0.35) - wall + noise

    def distance(points):
        at = (np.asarray(points, np.float64).T + 0.5) * (POINTS - 1)
        return ndimage.map_coordinates(values, at, order=1, mode="nearest")

    return distance, BOX


def measured(kind: str, index: int) -> dict[str, float]:
    """Return what is counted of one field; only ``refused`` if there is no mesh."""
    rng = np.random.default_rng(index)
    try:
        distance, box = fitted(index, rng) if kind == "fitted" else drawn(kind, rng)
    except ValueError:
        return {"refused": 1}
    start = time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        mesh = extract.extract_mesh(distance, np.zeros_like, box, POINTS - 1, max_faces=MAX_FACES.value)
    seconds = time.process_time() - start
    quality = mesh_quality.quality(mesh)
    return {
        "closed": int(quality["watertight"] and not quality["nonmanifold_vertices"]),
        "within": int(len(mesh.faces) <= 1.05 * MAX_FACES.value),
        "intersecting": int(quality["self_intersecting_faces"] > 0),
        "filled": len(warned),
        "refused": 0,
        "faces": len(mesh.faces),
        "intersecting_faces": quality["self_intersecting_faces"],
        "seconds": seconds,
    }


def table(rows: list[dict]) -> str:
    """Format the counts, one line per kind."""
    lines = [f"{'':16s}" + "".join(f"{name:>14s}" for name in ("fields", *COUNTED))]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        counts = "".join(f"{sum(row.get(name, 0) for row in of_kind):14d}" for name in COUNTED)
        lines.append(f"{kind:16s}{len(of_kind):14d}{counts}")
    return "\n".join(lines)


def main(_) -> None:
    """Count fit meshes."""
    if unknown := set(CHOSEN.value) - set(KINDS):
        raise app.UsageError(f"unknown kinds {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    rows = []
    for index, kind in zip(range(FIELDS.value), itertools.cycle(CHOSEN.value), strict=False):
        rows.append({"kind": kind, "index": index, **measured(kind, index)})
        print(" ".join(f"{k}={v:.2f}" if isinstance(v, float) else f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    files.write_atomically(pathlib.Path(OUT.value), json.dumps(rows, indent=1).encode())
    print(table(rows))


if __name__ == "__main__":
    app.run(main)
