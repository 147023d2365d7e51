"""Where the time of a mesh extraction goes on this device, and how far each part is from the memory's bandwidth.

    python benchmarks/extraction.py [--quality=standard] [--size=256] [--bandwidth=4.3e12] [--out=extraction.json]

A synthetic object is drawn and rebuilt. The parts of an optimiser step are timed on their own, in loops on the device
as in the fit, compilation excluded: *sampling* (rays, samples, targets), *field* (distance, gradient and colour at the
samples, forwards and backwards), *compositing* (what the losses add to that) and *optimiser*. Bytes are the least that
a part must move between memory and processor if nothing is kept in caches: every grid corner and every parameter once
for each use. The floor is those bytes over ``--bandwidth`` (bytes a second).
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
from e3d_jax.reconstruction import batches, fields, fit, hull, pipeline

QUALITY = flags.DEFINE_enum("quality", "standard", list(pipeline.QUALITIES), "See e3d_jax.reconstruction.")
SIZE = flags.DEFINE_integer("size", 256, "Width and height of the views in pixels.", lower_bound=32)
OBJECT = flags.DEFINE_integer("object", 0, "Number of the synthetic test object.", lower_bound=0)
BANDWIDTH = flags.DEFINE_float("bandwidth", 4.3e12, "Of the device's memory, bytes a second.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "File of the results.")


def true_views(size: int) -> structs.ViewSet:
    """A synthetic object from all sides."""
    ring = cameras.ring(size)
    params = synthetic.take(synthetic.sample_batch("test", 0, [OBJECT.value]), 0)
    drawn = synthetic.render(jax.tree.map(lambda x: jnp.asarray(x)[None], params), ring)
    anchors = cameras.ANCHORS
    return structs.ViewSet(np.asarray(drawn.rgba[0]), ring, anchors, np.asarray(drawn.normals[0, anchors]), anchors)


def seconds(function, *arguments) -> float:
    """Of one call, compiled before; the best of three, as other work on the machine only adds."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def step_seconds(config: fit.FitConfig, field: fields.Field, pixels: batches.Pixels) -> dict[str, float]:
    """Seconds of one optimiser step and of its parts."""
    key, start = jax.random.key(0), jnp.int32(config.steps // 2)
    state = fit.optimizer().init(field)
    count = config.steps_per_chunk
    drawn = jax.jit(functools.partial(fit.draw_chunk, config=config))(field, pixels, key, start)

    def loop(body):
        """The sum of a function of the field's gradient over a chunk's batches."""

        def run(field, drawn):
            # The carry is fed back, so that no iteration can be left out.
            def step(field, batch):
                gradient = jax.grad(body)(field, batch)
                return jax.tree.map(lambda value, change: value - 1e-12 * change, field, gradient), None

            return jax.lax.scan(step, field, drawn)[0]

        return jax.jit(run)

    def field_only(field, batch):
        weights = jnp.ones(len(field.levels))
        middle = (batch.placed.edges[:, 1:] + batch.placed.edges[:, :-1]) / 2
        points = (batch.rays.origins[:, None] + middle[..., None] * batch.rays.directions[:, None]).reshape(-1, 3)
        found = fields.sample(field, jnp.concatenate([points, batch.points, batch.nearby]), weights)
        normals = fields.normalize(found.gradient)[: len(points)]
        color = fields.color(field, points, found.feature[: len(points)], normals, normals)
        return color.sum() + found.distance.sum() + found.gradient.sum()

    def losses(field, batch):
        return fit.total_loss(field, batch, jnp.float32(0.5), config)[0]

    def optimise(field, state):
        def step(carry, _):
            field, state = carry
            return fit.update(field, state, field, jnp.float32(0.5), config), None

        return jax.lax.scan(step, (field, state), length=count)[0]

    sampling = seconds(jax.jit(functools.partial(fit.draw_chunk, config=config)), field, pixels, key, start)
    nothing = seconds(loop(lambda field, batch: 0.0 * batch.rgba.sum() + 0.0 * field.log_sharpness), field, drawn)
    field_time, all_losses = seconds(loop(field_only), field, drawn), seconds(loop(losses), field, drawn)
    parts = {
        "sampling": sampling,
        "field": field_time - nothing,
        "compositing": max(all_losses - field_time, 0.0),
        "optimiser": seconds(jax.jit(optimise), field, state),
        "whole step": seconds(functools.partial(fit.run_chunk, config=config), field, state, pixels, key, start),
    }
    return {name: value / count for name, value in parts.items()}


def step_bytes(config: fit.FitConfig, field: fields.Field) -> dict[str, float]:
    """Least bytes that the parts of a step move, see the top of this file."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(field))
    points, corners = config.rays * config.samples + 2 * config.random_points, 8 * 4
    shape = points * corners * (1 + config.features * len(config.levels))
    color = config.rays * config.samples * corners * config.features * len(config.color_levels)
    cache = (
        (config.cache_cells + 1) ** 3 * corners * (1 + config.features * len(config.levels)) / config.steps_per_chunk
    )
    return {
        "sampling": config.rays * (config.candidates + 1) * corners + cache,
        # Corners read once; their gradients read, added to and written; and the gradient's zeros.
        "field": 3 * (shape + color) + 4 * parameters,
        "compositing": config.rays * config.samples * 4 * 2 * 20,
        # Parameters, two moments and the gradient are read, all but the gradient written.
        "optimiser": 7 * 4 * parameters,
    }


def whole_seconds(views: structs.ViewSet, fitting: fit.FitConfig, surface: pipeline.SurfaceConfig) -> dict[str, float]:
    """Seconds of the phases from images to a GLB file."""
    times, last = {}, time.perf_counter()

    def lap(name):
        nonlocal last
        times[name], last = time.perf_counter() - last, time.perf_counter()

    votes = int(fitting.hull_votes * len(views.rgba))
    hull.carve(
        views.rgba[..., 3], views.cameras, half_extent=fitting.half_extent, cells=fitting.hull_cells, votes=votes
    )
    lap("hull (part of fit)")
    field = jax.block_until_ready(fit.fit(views, fitting, jax.random.key(0)))
    lap("fit")
    distance_fn, color_fn = pipeline.surface_functions(field)
    mesh = extract.extract_mesh(distance_fn, color_fn, field.box, surface.resolution, max_faces=surface.max_faces)
    lap("meshing")
    texture.unwrap(mesh, surface.texture_size)
    lap("unwrap (part of texture)")
    mesh = texture.paint(mesh, color_fn, views, surface.texture_size)
    lap("texture")
    with tempfile.TemporaryDirectory() as scratch:
        export.write_glb(pathlib.Path(scratch, "mesh.glb"), mesh)
    lap("write")
    return times


def main(_) -> None:
    """Times, prints a table."""
    fitting, surface = pipeline.QUALITIES[QUALITY.value]
    views = true_views(SIZE.value)
    field, pixels = fit.start(views, fitting, jax.random.key(0))
    parts, moved = step_seconds(fitting, field, pixels), step_bytes(fitting, field)
    print(f"{jax.devices()[0].device_kind}, {QUALITY.value}, {SIZE.value} px, one step:")
    for name, value in parts.items():
        floor = sum(moved.values()) if name == "whole step" else moved[name]
        times = value * BANDWIDTH.value / floor
        print(f"{name:12s} {1e3 * value:9.3f} ms {floor / 1e6:9.2f} MB {times:9.0f} times the floor")
    whole_seconds(views, fitting, surface)  # Compiles.
    phases = whole_seconds(views, fitting, surface)
    total = sum(value for name, value in phases.items() if "part of" not in name)
    for name, value in {**phases, "images to GLB": total}.items():
        print(f"{name:26s} {value:8.2f} s")
    if OUT.value:
        about = {"device": jax.devices()[0].device_kind, "quality": QUALITY.value, "size": SIZE.value}
        result = {**about, "step_seconds": parts, "step_bytes": moved, "seconds": phases}
        files.write_atomically(OUT.value, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    app.run(main)
