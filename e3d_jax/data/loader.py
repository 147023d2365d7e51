"""Grain pipelines from record shards to batches.

Batches hold uint8 images (a quarter of the bytes of float32 on their way to the device); the training step scales them.
Random choices come from Grain's per-example generator, so a batch depends only on the seed and on its number, not on
the number of workers or processes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
from absl import flags

from e3d_jax.data import damage, parallel, records


class Rows(grain.MapDataset):
    """Some rows of every batch of a dataset, from a certain batch on.

    Which example stands in which row of which batch therefore does not depend on how many processes read.
    """

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: Sequence[int], start: int):
        super().__init__(parent)
        self._batch_size, self._rows, self._start = batch_size, tuple(int(row) for row in rows), start

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._parent[(self._start + batch) * self._batch_size + self._rows[row]]


def make_loader(
    datasets: Mapping[str, float],
    source: Any,
    config: Any,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    rows: Sequence[int] | None = None,
    start: int = 0,
    max_bad_records: int = 0,
) -> damage.Batches:
    """Return an endless iterator over this process's rows of the batches: the records' ids, and the batch.

    Close it to end its workers.

    Args:
      datasets: folders of record shards, each with its weight in the mixture; all of the kind that ``source`` reads.
      source: makes the examples (:class:`e3d_jax.stages.base.Source`).
      config: of the system.
      batch_size: examples of a whole batch.
      seed: of the shuffle and of every random choice.
      workers: decoding processes; 0 decodes in threads of this one.
      rows: which rows of a batch to read; all when not given.
      start: number of the first batch; all that a run must remember to continue.
      max_bad_records: damaged records, or ones that do not fit the config, that others replace; of more, the iterator
        raises a ValueError that names folder, shard and record.

    Raises:
      FileNotFoundError, ValueError: see :func:`e3d_jax.data.records.find_shards`; fewer records than a batch, or a
        weight that is not positive.
    """
    if not all(0 < weight < math.inf for weight in datasets.values()):
        raise ValueError(f"the weights of the datasets are {dict(datasets)}; give positive numbers")
    shards = {folder: records.find_shards(folder) for folder in datasets}
    sources = {folder: damage.Numbered(open_shards(paths)) for folder, paths in shards.items()}
    if (total := sum(map(len, sources.values()))) < batch_size:
        raise ValueError(
            f"{', '.join(datasets)} holds {total} records, fewer than one batch of {batch_size}; "
            "make more records or lower the batch size"
        )
    sets = [
        # Random choices follow an example's place in the global order.
        grain.MapDataset.source(opened)
        .seed(seed + i)
        .shuffle()
        .repeat()
        .random_map(damage.ExampleMaker(folder, shards[folder], opened, source, config))
        for i, (folder, opened) in enumerate(sources.items())
    ]
    dataset = grain.MapDataset.mix(sets, weights=list(datasets.values())) if len(sets) > 1 else sets[0]
    rows = range(batch_size) if rows is None else rows
    # Batched before Grain deals elements to workers, or these would deal examples and make other batches of them.
    batches = Rows(dataset, batch_size, rows, start).batch(len(rows), drop_remainder=True)
    threads = 1 if workers else 4
    ready = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        parallel.one_core_each()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        # Grain's processes read its own absl flags, which nothing here parses.
        flags.FLAGS.mark_as_parsed()
        ready = ready.mp_prefetch(options, worker_init_fn=parallel.live_with_parent)
    return damage.Batches(iter(ready), max_bad_records)


def open_shards(paths: Sequence[str]) -> Any:
    """Return the records of shards, by number."""
    return grain.sources.ArrayRecordDataSource(list(paths))


def parse_weights(datasets: Iterable[str]) -> dict[str, float]:
    """Read datasets as given on a command line, ``FOLDER`` or ``FOLDER@WEIGHT``; the weight is 1 when not given.

    Raises:
      ValueError: a weight is not a number.
    """
    weights = {}
    for given in datasets:
        folder, at, weight = given.rpartition("@")
        if not at or "/" in weight:
            folder, weight = given, "1"
        try:
            weights[folder] = float(weight)
        except ValueError as error:
            raise ValueError(f"the dataset {given!r} has the weight {weight!r}; give a number after '@'") from error
    return weights


def kind_of(datasets: Iterable[str], stage: Any, config: Any, max_bad_records: int = 0) -> str:
    """Return the kind of records that datasets hold, after checking their first records.

    Args:
      datasets: folders of record shards.
      stage: that is to learn from them (:class:`e3d_jax.stages.base.Stage`).
      config: of the system.
      max_bad_records: damaged records before the first good one that are passed over.

    Raises:
      FileNotFoundError, ValueError: see :func:`e3d_jax.data.records.find_shards`; there are several kinds, the stage
        cannot learn from the kind, or the source refuses the records.
    """
    kinds = {}
    for folder in datasets:
        record, kind = _first_record(folder, stage, max_bad_records)
        kinds[folder] = kind
        with _naming(folder):
            stage.sources[kind].check(record, config)
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{folder} ({kind})" for folder, kind in kinds.items())
        raise ValueError(f"datasets of several kinds: {listed}; give one kind")
    return next(iter(kinds.values()))


def _first_record(folder: str, stage: Any, max_bad_records: int) -> tuple[Any, str]:
    """Return the first record of a dataset that can be read, and its kind."""
    shards = records.find_shards(folder)
    numbered = damage.Numbered(open_shards(shards))
    for index in range(len(numbered)):
        _, data = numbered[index]
        try:
            if isinstance(data, Exception):
                raise ValueError(str(data)) from data
            kind = records.kind_of(data)
            if kind in stage.sources:
                return stage.sources[kind].unpack(data), kind
        except ValueError as error:
            if index < min(max_bad_records, len(numbered) - 1):
                continue
            raise ValueError(damage.describe(folder, shards, index, data, error)) from error
        raise ValueError(f"{folder}: holds {kind}, but the {stage.name} learns from {' or '.join(stage.sources)}")
    raise ValueError(f"{folder} holds no records; make some")


class _naming:
    """Put the name of a dataset before the errors of a block."""

    def __init__(self, folder: str):
        self._folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"{self._folder}: {error}") from error
