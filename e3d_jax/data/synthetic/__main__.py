"""Write record shards of synthetic objects.

    python -m e3d_jax.data.synthetic --out=DIR --objects=N [--seed=0] [--split=train] [--size=128] [--views=32]
        [--shard=I/N]

Objects that are in ``--out`` are kept, so the same call continues an interrupted one, and a larger ``--objects``
extends a dataset. Several machines or devices share the work by ``--shard=I/N`` and one folder.
"""

from absl import app, flags

from e3d_jax import cameras, commands
from e3d_jax.data import engine
from e3d_jax.data.synthetic import jobs

OUT = flags.DEFINE_string("out", None, "Folder of the shards.", required=True)
OBJECTS = flags.DEFINE_integer("objects", None, "Number of objects.", lower_bound=1, required=True)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the sequence of objects.", lower_bound=0)
SPLIT = flags.DEFINE_enum("split", "train", ["train", "test"], "The two splits share no object.")
SIZE = flags.DEFINE_integer("size", 128, "Width and height of the images in pixels.", lower_bound=16)
VIEWS = flags.DEFINE_enum("views", "32", ["32", "8"], "The ring, or its anchors: enough for all but the interpolation.")
BATCH = flags.DEFINE_integer("batch", 64, "Objects drawn per call of the device.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", None, "Encoding processes; by default one per core.", lower_bound=1)
SHARD = flags.DEFINE_string("shard", "0/1", "Part of the work to do: I/N is the I-th of N parts, the first 0/N.")


def main(_) -> None:
    """Write the records that the flags describe."""
    views = int(VIEWS.value)
    jobs.write_records(
        OUT.value,
        OBJECTS.value,
        cameras.ring(SIZE.value, views),
        cameras.anchors_of(views),
        split=SPLIT.value,
        seed=SEED.value,
        batch=BATCH.value,
        workers=WORKERS.value,
        shard=engine.parse_shard(SHARD.value),
    )


if __name__ == "__main__":
    app.run(commands.told(main, "e3d_jax.data.synthetic"))
