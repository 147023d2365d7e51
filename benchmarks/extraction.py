"""Where the time of a reconstruction goes on this device, and how far each part is from the memory bandwidth.

    python benchmarks/extraction.py [--quality=standard] [--size=256] [--bandwidth=4.3e12] [--out=extraction.json]

A synthetic object is rendered and reconstructed. The parts of an optimizer step are timed separately, in loops on the
device as in the fit, without compilation: *sampling* (rays, samples, targets), *field* (distance, gradient and color at
the samples, forward and backward), *compositing* (the additional time of the losses) and *optimizer*. Bytes are the
least that a part must move between memory and processor without caches: every grid corner and every parameter once per
use. The floor is those bytes divided by ``--bandwidth`` (bytes per second).
"""

import functools
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from e3d_jax import cameras, files, structs
from e3d_jax.data import synthetic
from e3d_jax.mesh import export, extract, texture
from e3d_jax.reconstruction import batches, config, fields, fit, hull, pipeline

QUALITY = flags.DEFINE_enum("quality", "standard", list(config.QUALITIES), "Speed against detail.")
SIZE = flags.DEFINE_integer("size", 256, "Width and height of the views in pixels.", lower_bound=32)
OBJECT = flags.DEFINE_integer("object", 0, "Index of the synthetic test object.", lower_bound=0)
BANDWIDTH = flags.DEFINE_float(
    "bandwidth", 4.3e12, "Memory bandwidth of the device in bytes per second.", lower_bound=1
)
OUT = flags.DEFINE_string("out", None, "File for the results.")


def ground_truth_views(size: int) -> structs.ViewSet:
    """Render a synthetic object from all sides."""
    ring = cameras.ring(size)
    params = synthetic.take(synthetic.sample_batch("test", 0, [OBJECT.value]), 0)
    rendered = synthetic.render(jax.tree.map(lambda x: jnp.asarray(x)[None], params), ring)
    anchors = cameras.RELEASED.anchors
    normals = np.asarray(rendered.normals[0, anchors])
    return structs.ViewSet(np.asarray(rendered.rgba[0]), ring, anchors, normals, anchors)


def seconds(function, *arguments) -> float:
    """Return the seconds of one call after compilation; the best of three, because other work can only add time."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def step_seconds(settings: config.FitSettings, field: fields.Field, pixels: batches.Pixels) -> dict[str, float]:
    """Return the seconds of one optimizer step and of its parts."""
    key, start = jax.random.key(0), jnp.int32(settings.steps // 2)
    state = fit.optimizer().init(field)
    count = settings.steps_per_chunk
    sample_chunk = jax.jit(functools.partial(fit.sample_chunk, settings=settings))
    stacked = sample_chunk(field, pixels, key, start)

    def loop(body):
        """Return a function that takes the gradient of ``body`` for every batch of a chunk."""

        def run(field, stacked):
            # The carry depends on every iteration, so that none can be optimized away.
            def step(field, batch):
                gradient = jax.grad(body)(field, batch)
                return jax.tree.map(lambda value, change: value - 1e-12 * change, field, gradient), None

            return jax.lax.scan(step, field, stacked)[0]

        return jax.jit(run)

    def field_only(field, batch):
        weights = jnp.ones(len(field.levels))
        middle = (batch.placed.edges[:, 1:] + batch.placed.edges[:, :-1]) / 2
        points = (batch.rays.origins[:, None] + middle[..., None] * batch.rays.directions[:, None]).reshape(-1, 3)
        samples = fields.sample(field, jnp.concatenate([points, batch.points, batch.nearby]), weights)
        normals = fields.normalize(samples.gradient)[: len(points)]
        color = fields.color(field, points, samples.feature[: len(points)], normals, normals)
        return color.sum() + samples.distance.sum() + samples.gradient.sum()

    def losses(field, batch):
        return fit.total_loss(field, batch, jnp.float32(0.5), settings)[0]

    def optimize(field, state):
        def step(carry, _):
            field, state = carry
            return fit.update(field, state, field, jnp.float32(0.5), settings), None

        return jax.lax.scan(step, (field, state), length=count)[0]

    sampling = seconds(sample_chunk, field, pixels, key, start)
    nothing = seconds(loop(lambda field, batch: 0.0 * batch.rgba.sum() + 0.0 * field.log_sharpness), field, stacked)
    field_time, all_losses = seconds(loop(field_only), field, stacked), seconds(loop(losses), field, stacked)
    parts = {
        "sampling": sampling,
        "field": field_time - nothing,
        "compositing": max(all_losses - field_time, 0.0),
        "optimizer": seconds(jax.jit(optimize), field, state),
        "whole step": seconds(functools.partial(fit.run_chunk, settings=settings), field, state, pixels, key, start),
    }
    return {name: value / count for name, value in parts.items()}


def step_bytes(settings: config.FitSettings, field: fields.Field) -> dict[str, float]:
    """Return the least number of bytes that the parts of a step move, see the top of this file."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(field))
    points, corners = settings.rays * settings.samples + 2 * settings.random_points, 8 * 4
    shape = points * corners * (1 + settings.features * len(settings.levels))
    color = settings.rays * settings.samples * corners * settings.features * len(settings.color_levels)
    cache = (
        (settings.cache_cells + 1) ** 3
        * corners
        * (1 + settings.features * len(settings.levels))
        / settings.steps_per_chunk
    )
    return {
        "sampling": settings.rays * (settings.candidates + 1) * corners + cache,
        # Corners are read once; their gradients are zeroed, read, added to and written.
        "field": 3 * (shape + color) + 4 * parameters,
        "compositing": settings.rays * settings.samples * 4 * 2 * 20,
        # Parameters, optimizer state (two arrays) and gradient are read; all but the gradient are written.
        "optimizer": 7 * 4 * parameters,
    }


def whole_seconds(views: structs.ViewSet, settings: config.ReconstructionSettings) -> dict[str, float]:
    """Return the seconds of the phases from images to a GLB file."""
    times, last = {}, time.perf_counter()

    def lap(name):
        nonlocal last
        times[name], last = time.perf_counter() - last, time.perf_counter()

    votes = int(settings.fit.hull_votes * len(views.rgba))
    half_extent, cells = settings.fit.half_extent, settings.fit.hull_cells
    hull.carve(views.rgba[..., 3], views.cameras, half_extent=half_extent, cells=cells, votes=votes)
    lap("hull (part of fit)")
    field = jax.block_until_ready(fit.fit(views, settings.fit, jax.random.key(0)).field)
    lap("fit")
    distance_fn, color_fn = pipeline.surface_functions(field)
    mesh = extract.extract_mesh(distance_fn, color_fn, field.box, settings.resolution, max_faces=settings.max_faces)
    lap("meshing")
    texture.unwrap(mesh, settings.texture_size)
    lap("unwrap (part of texture)")
    mesh = texture.paint(mesh, color_fn, views, settings.texture_size)
    lap("texture")
    with tempfile.TemporaryDirectory() as scratch:
        export.write_glb(pathlib.Path(scratch, "mesh.glb"), mesh)
    lap("write")
    return times


def main(_) -> None:
    """Print a table of times."""
    settings = config.QUALITIES[QUALITY.value]
    views = ground_truth_views(SIZE.value)
    field, pixels = fit.start(views, settings.fit, jax.random.key(0))
    parts, moved = step_seconds(settings.fit, field, pixels), step_bytes(settings.fit, field)
    print(f"{jax.devices()[0].device_kind}, {QUALITY.value}, {SIZE.value} px, one step:")
    for name, value in parts.items():
        floor = sum(moved.values()) if name == "whole step" else moved[name]
        times = value * BANDWIDTH.value / floor
        print(f"{name:12s} {1e3 * value:9.3f} ms {floor / 1e6:9.2f} MB {times:9.0f} times the floor")
    whole_seconds(views, settings)  # Compiles the programs.
    phases = whole_seconds(views, settings)
    total = sum(value for name, value in phases.items() if "part of" not in name)
    for name, value in {**phases, "images to GLB": total}.items():
        print(f"{name:26s} {value:8.2f} s")
    if OUT.value:
        about = {"device": jax.devices()[0].device_kind, "quality": QUALITY.value, "size": SIZE.value}
        result = {**about, "step_seconds": parts, "step_bytes": moved, "seconds": phases}
        files.write_atomically(OUT.value, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    app.run(main)
