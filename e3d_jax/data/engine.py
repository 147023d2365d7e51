"""The one runner of jobs that make datasets: work by shard in, shards of records out.

    counts = engine.write_shards(out, shards, engine.Work(prepare=read, device=draw, finish=pack), workers=8)

A job is a list of :class:`Shard`, each the name of a file and the items that become its records, and one
:class:`Work`, which says how an item becomes a record, in up to three steps:

    prepare   item -> value, in worker processes: read, decode, render
    device    values -> values, a generator in this process: draw or encode on the accelerator
    finish    value -> record, in worker processes: compress, pack

Records keep the order of their items, few are in memory at a time, and the steps overlap. What cannot be made is a
:class:`Skipped` in place of a value: it is reported in one line, counted, and left out.

Resuming follows one rule: a shard that exists is whole and is left alone. Shards get their names only when they are
whole, so running an interrupted job again completes it. Several machines share a job by ``--shard=I/N``
(:func:`parse_shard`): machine I takes every N-th shard, or every N-th item where names of shards are not fixed.

The records of a shard depend on its items alone. ``work.results(shard.items)`` makes them in one process, so that
another runner, such as Apache Beam with one shard per element, may take the place of :func:`write_shards`.

Results that are files of their own instead of records go through :func:`run`.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import tqdm

from e3d_jax import files
from e3d_jax.data import parallel, records


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An item that cannot be made.

    Attributes:
      reason: why, in one sentence that names the item.
    """

    reason: str


class Counts(NamedTuple):
    """Numbers of items.

    Attributes:
      made: those that this run made.
      already: those that were there before.
      skipped: those that cannot be made.
    """

    made: int
    already: int
    skipped: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records.

    Attributes:
      name: the file's, without its suffix.
      items: what its records are made of; read one by one, so that a sequence may load them lazily.
    """

    name: str
    items: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """How items become results; each step may be left out.

    Attributes:
      prepare: the value of an item, or :class:`Skipped`; runs in worker processes, so it must be picklable.
      device: a generator over values that yields one for each, in order; it runs in this process, may read ahead, and
        never sees what was skipped.
      finish: the result of a value, or :class:`Skipped`; as ``prepare``.
    """

    prepare: Callable[[Any], Any] | None = None
    device: Callable[[Iterator[Any]], Iterator[Any]] | None = None
    finish: Callable[[Any], Any] | None = None

    def results(self, items: Iterable[Any], pool: futures.Executor | None = None) -> Iterator[Any]:
        """Yield one result or :class:`Skipped` per item, in order.

        Args:
          items: what to work on; taken only as needed.
          pool: the worker processes; without it everything runs in this process.

        Raises:
          OSError: a worker process was killed.
        """
        results = _apply(self.prepare, items, pool)
        if self.device is not None:
            results = _pass_by(self.device, results)
        return _apply(self.finish, results, pool)


def _apply(function: Callable | None, items: Iterable[Any], pool: futures.Executor | None) -> Iterator[Any]:
    if function is None:
        return iter(items)
    function = functools.partial(_unless_skipped, function)
    return map(function, items) if pool is None else parallel.in_order(pool, function, items)


def _unless_skipped(function: Callable[[Any], Any], value: Any) -> Any:
    return value if isinstance(value, Skipped) else function(value)


def _pass_by(device: Callable[[Iterator[Any]], Iterator[Any]], values: Iterator[Any]) -> Iterator[Any]:
    """Run a generator on the values that were not skipped, and put the others back in their places."""
    order: collections.deque[Skipped | None] = collections.deque()  # None for a value that is on the device

    def kept() -> Iterator[Any]:
        for value in values:
            if isinstance(value, Skipped):
                order.append(value)
            else:
                order.append(None)
                yield value

    for result in device(kept()):
        while (before := order.popleft()) is not None:
            yield before
        yield result
    yield from (skipped for skipped in order if skipped is not None)


def write_shards(out: str | os.PathLike, shards: Sequence[Shard], work: Work, *, workers: int | None = None) -> Counts:
    """Write the shards of a job that do not exist yet, with a progress bar.

    Args:
      out: folder of the dataset.
      shards: all shards of the job, or of this machine's part of it.
      work: makes records (bytes) of items.
      workers: processes; one per core by default, 0 for none but this one.

    Returns:
      Numbers of items; a shard of which every item is skipped is not written.

    Raises:
      OSError: the folder cannot be written to, or a worker process was killed.
    """
    there = {pathlib.PurePath(path).name for path in files.glob(out, f"*{records.SUFFIX}")}
    missing = [shard for shard in shards if shard.name + records.SUFFIX not in there]
    total, rest = (sum(len(shard.items) for shard in some) for some in (shards, missing))
    with _processes(workers, rest) as pool, _Progress(total, total - rest) as progress:
        results = work.results(itertools.chain.from_iterable(shard.items for shard in missing), pool)
        for shard in missing:
            made = progress.follow(itertools.islice(results, len(shard.items)))
            if (first := next(made, None)) is None:
                continue
            with records.Writer(files.join(out, shard.name + records.SUFFIX)) as writer:
                for record in itertools.chain([first], made):
                    writer.write(record)
    return progress.counts


def run(items: Sequence[Any], work: Work, *, already: int = 0, workers: int | None = None) -> Counts:
    """Make items whose results are files that the work itself writes; arguments as of :func:`write_shards`.

    Args:
      items: those that are missing.
      work: writes the result of each.
      already: number of items that were there before.
      workers: processes.

    Raises:
      OSError: a result cannot be written, or a worker process was killed.
    """
    with (
        _processes(workers, len(items)) as pool,
        _Progress(already + len(items), already) as progress,
    ):
        collections.deque(progress.follow(work.results(items, pool)), maxlen=0)
    return progress.counts


def _processes(workers: int | None, items: int) -> contextlib.AbstractContextManager[futures.Executor | None]:
    """Return the worker processes of a job; no more than items."""
    workers = min(os.cpu_count() or 1 if workers is None else workers, items)
    return parallel.host_processes(workers) if workers else contextlib.nullcontext()


class _Progress:
    """A progress bar that counts results and prints a line for each one skipped."""

    def __init__(self, total: int, already: int):
        self.counts = Counts(0, already, 0)
        self._bar = tqdm.tqdm(total=total, initial=already, unit="object", mininterval=2)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def follow(self, results: Iterable[Any]) -> Iterator[Any]:
        """Yield the results that were not skipped."""
        for result in results:
            made, already, skipped = self.counts
            if isinstance(result, Skipped):
                self.counts = Counts(made, already, skipped + 1)
                tqdm.tqdm.write("skipped: " + result.reason.replace("\n", " "), sys.stderr)
            else:
                self.counts = Counts(made + 1, already, skipped)
                yield result
            self._bar.update()


def parse_shard(text: str) -> tuple[int, int]:
    """Return I and N of "I/N": which of how many parts of a job to do, the first being 0/N.

    Raises:
      ValueError: the text is not of that form.
    """
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 0 <= index < count:
        raise ValueError(f"--shard is {text!r}; expected I/N with I from 0 to N - 1, as in 0/8")
    return index, count
