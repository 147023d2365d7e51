"""Plan the data of a training run: records, storage, and time, from a small dataset of the same kind."""

import math
import os

from e3d_jax import config as config_lib
from e3d_jax.data import manifest, records
from e3d_jax.training import runs


def report(
    config: config_lib.SystemConfig,
    stage: str,
    sample: str,
    epochs: float = 1.0,
    price: float | None = None,
    storage_price: float | None = None,
) -> str:
    """Return what the dataset of a run takes, as text.

    Args:
      config: of the run.
      stage: to train.
      sample: local folder of a dataset with some of the objects.
      epochs: how often the run sees each object.
      price: of an hour of a machine like the one that made the sample, in any currency.
      storage_price: of a GB for a month, in any currency.

    Raises:
      FileNotFoundError: there are no records.
      ValueError: the records do not suit the stage or have no manifest, or ``epochs`` is 0.
    """
    if not epochs > 0:
        raise ValueError(f"epochs is {epochs}; expected more than 0")
    train, kind = config.training(stage), runs.check_records({sample: 1.0}, config, stage)
    if (found := manifest.read(sample)) is None:
        raise ValueError(f"{sample} has no manifest, which says how long its records took; make some records again")
    shards = found["shards"].values()
    count = sum(shard["records"] for shard in shards)
    size = sum(os.path.getsize(path) for path in records.find_shards(sample)) / count
    seconds = sum(shard["seconds"] for shard in shards) / count
    examples = train.steps * train.batch_size
    objects = math.ceil(examples / epochs)
    gigabytes, hours = objects * size / 1e9, objects * seconds / 3600
    lines = [
        f"{stage}: {train.steps} steps of {train.batch_size} examples are {examples} examples, of {objects} objects",
        f"storage: {gigabytes:.2f} GB ({size / 1e3:.0f} kB per record of {kind})",
        f"making them: {hours:.1f} hours of a machine like the one that made {count} in {seconds * count:.0f} s",
    ]
    if price is not None:
        lines += [f"cost of making 1000 objects: {1000 * seconds / 3600 * price:.2f}, of all: {hours * price:.2f}"]
    if storage_price is not None:
        lines += [f"cost of storing all for a month: {gigabytes * storage_price:.2f}"]
    return "\n".join(lines)
