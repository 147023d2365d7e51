"""Write record shards of synthetic objects.

    python -m e3d_jax.data.synthetic --out=DIR --objects=N [--seed=0] [--split=train] [--start=0] [--size=128]

Shards that exist are kept, so the same call continues an interrupted one. Objects are numbered: several machines or
devices share the work by writing different ranges (``--start``) of one seed into one folder.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import sys

import jax
import tqdm
from absl import app, flags

from e3d_jax.data import records, synthetic
from e3d_jax.data.synthetic import recording

OUT = flags.DEFINE_string("out", None, "Folder of the shards.", required=True)
OBJECTS = flags.DEFINE_integer("objects", None, "How many objects.", lower_bound=1, required=True)
SEED = flags.DEFINE_integer("seed", 0, "Of the object sequence.", lower_bound=0)
SPLIT = flags.DEFINE_enum("split", "train", ["train", "test"], "The two splits share no object.")
START = flags.DEFINE_integer("start", 0, "Number of the first object.", lower_bound=0)
SIZE = flags.DEFINE_integer("size", 128, "Width and height of the pictures in pixels.", lower_bound=16)
BATCH = flags.DEFINE_integer("batch", 64, "Objects drawn per call of the device.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", None, "Encoding processes; one a core when not given.", lower_bound=1)
SHARD = 256


def main(_) -> None:
    """Draws on the device, encodes in other processes, writes shard after shard."""
    jax.devices()  # Takes the accelerator before the encoders start, which must leave it alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    encode = functools.partial(recording.pack, split=SPLIT.value, seed=SEED.value)
    end = START.value + OBJECTS.value
    shards = [(first, min(SHARD, end - first)) for first in range(START.value, end, SHARD)]
    context = multiprocessing.get_context("spawn")
    try:
        with (
            concurrent.futures.ProcessPoolExecutor(WORKERS.value or os.cpu_count(), mp_context=context) as pool,
            tqdm.tqdm(total=OBJECTS.value, unit="object", mininterval=2) as bar,
        ):
            for first, count in shards:
                path = pathlib.Path(OUT.value) / f"{SPLIT.value}-{SEED.value}-{first:08d}-{count:04d}.array_record"
                if not path.exists():
                    examples = synthetic.generate(
                        SPLIT.value, SEED.value, first, count, size=SIZE.value, batch=BATCH.value
                    )
                    with records.Writer(path) as writer:
                        for record in pool.map(encode, examples):
                            writer.write(record)
                bar.update(count)
    except (ValueError, OSError) as error:
        sys.exit(f"e3d_jax.data.synthetic: {error}")


if __name__ == "__main__":
    app.run(main)
