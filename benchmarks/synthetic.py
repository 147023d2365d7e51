"""Measure how many synthetic objects per second this device draws: 32 color and 8 normal views of each at 128 px.

    python benchmarks/synthetic.py [--batches=8] [--batch=64]

``draw`` is the device alone, objects sampled beforehand; ``generate`` adds sampling on the host and the transfer back,
as :mod:`e3d_jax.data.synthetic` uses it (it then encodes PNG files in other processes).
"""

import time

import jax
from absl import app, flags

from e3d_jax import cameras
from e3d_jax.data import synthetic
from e3d_jax.data.synthetic import objects, tracer

BATCHES = flags.DEFINE_integer("batches", 8, "Batches to time.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 64, "Objects per batch.", lower_bound=1)


@jax.jit
def draw(batch: objects.ObjectParams, ring) -> tuple[jax.Array, jax.Array]:
    """Draw all views, and the normals of the anchors."""
    images = tracer.render(objects.normalize(batch), ring)
    return images.rgba, images.normals[:, cameras.RELEASED.anchors]


def main(_) -> None:
    """Time both and print a line."""
    ring, size = cameras.ring(128), BATCH.value
    batches = [
        jax.device_put(objects.stack([synthetic.sample_object("train", 0, size * b + i) for i in range(size)]))
        for b in range(BATCHES.value)
    ]
    jax.block_until_ready(draw(batches[0], ring))
    start = time.perf_counter()
    for batch in batches:
        jax.block_until_ready(draw(batch, ring))
    drawn = BATCHES.value * size / (time.perf_counter() - start)

    views = {"cameras": ring, "normal_views": cameras.RELEASED.anchors, "batch": size}
    next(synthetic.generate("train", 0, range(size), **views))
    start = time.perf_counter()
    count = sum(1 for _ in synthetic.generate("train", 0, range(BATCHES.value * size), **views))
    generated = count / (time.perf_counter() - start)
    print(f"{jax.devices()[0].device_kind}: draw {drawn:.1f} objects/s, generate {generated:.1f} objects/s")


if __name__ == "__main__":
    app.run(main)
