"""Write record shards of synthetic objects.

    python -m e3d_jax.data.synthetic --out=DIR --objects=N [--seed=0] [--split=train] [--start=0] [--size=128]
        [--views=32]

Shards that exist are kept, so the same call continues an interrupted one. Objects are numbered: several machines or
devices share the work by writing different ranges (``--start``) of one seed into one folder.
"""

import functools
import itertools
import pathlib

import tqdm
from absl import app, flags

from e3d_jax import commands
from e3d_jax.data import parallel, records, synthetic
from e3d_jax.data.synthetic import recording

OUT = flags.DEFINE_string("out", None, "Folder of the shards.", required=True)
OBJECTS = flags.DEFINE_integer("objects", None, "How many objects.", lower_bound=1, required=True)
SEED = flags.DEFINE_integer("seed", 0, "Of the object sequence.", lower_bound=0)
SPLIT = flags.DEFINE_enum("split", "train", ["train", "test"], "The two splits share no object.")
START = flags.DEFINE_integer("start", 0, "Number of the first object.", lower_bound=0)
SIZE = flags.DEFINE_integer("size", 128, "Width and height of the pictures in pixels.", lower_bound=16)
VIEWS = flags.DEFINE_enum("views", "32", ["32", "8"], "The ring, or its anchors: enough for all but the interpolation.")
BATCH = flags.DEFINE_integer("batch", 64, "Objects drawn per call of the device.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", None, "Encoding processes; one a core when not given.", lower_bound=1)
SHARD = 256


def main(_) -> None:
    """Draws on the device, encodes in other processes, writes shard after shard."""
    end = START.value + OBJECTS.value
    shards = [range(first, min(first + SHARD, end)) for first in range(START.value, end, SHARD)]
    missing = {path: indices for indices in shards if not (path := _path(indices)).exists()}
    draw = functools.partial(
        synthetic.generate, SPLIT.value, SEED.value, size=SIZE.value, num_views=int(VIEWS.value), batch=BATCH.value
    )
    encode = functools.partial(recording.pack, split=SPLIT.value, seed=SEED.value)
    with (
        parallel.host_processes(WORKERS.value) as pool,
        tqdm.tqdm(total=OBJECTS.value, unit="object", mininterval=2) as bar,
    ):
        bar.update(OBJECTS.value - sum(map(len, missing.values())))
        drawn = itertools.chain.from_iterable(draw(indices[0], len(indices)) for indices in missing.values())
        encoded = parallel.in_order(pool, encode, drawn)
        for path, indices in missing.items():
            with records.Writer(path) as writer:
                for record in itertools.islice(encoded, len(indices)):
                    writer.write(record)
                    bar.update()


def _path(indices: range) -> pathlib.Path:
    """The shard of some objects."""
    return pathlib.Path(OUT.value) / f"{SPLIT.value}-{SEED.value}-{indices[0]:08d}-{len(indices):04d}.array_record"


if __name__ == "__main__":
    app.run(commands.told(main, "e3d_jax.data.synthetic"))
