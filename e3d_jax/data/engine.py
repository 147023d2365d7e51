"""Jobs that make datasets: work by shard in, shards of records out.

    job = engine.Job(out, shards, functools.partial(make_work, config), seed=0)
    counts = engine.write_shards(job, workers=8)

A job is a list of :class:`Shard`, each the name of a file and the items that become its records, and a function that
makes the :class:`Work`, which says how an item becomes a record, in up to three steps:

    prepare   item -> value, in worker processes: read, decode, render
    device    values -> values, a generator in this process: draw or encode on the accelerator
    finish    value -> record, in worker processes: compress, pack

Records keep the order of their items, few are in memory at a time, and the steps overlap. What cannot be made is a
:class:`Skipped` in place of a value: it is reported in one line, counted, and left out. An item that ends its worker
process is skipped likewise. What lacks something is :class:`Flawed`: it is kept, reported, and counted.

Resuming follows one rule: a shard that exists is whole and is left alone. Shards get their names only when they are
whole, so running an interrupted job again completes it. Several machines share a job by ``--shard=I/N``
(:func:`parse_shard`): machine I takes every N-th shard, or every N-th item where names of shards are not fixed.

The records of a shard depend on its items alone. A :data:`Runner` does a whole job: :func:`write_shards` on this
machine, :class:`e3d_jax.data.beam.Runner` on those of Apache Beam. Both write :func:`write_shard` by shard, its receipt
with it, and the manifest at the end (:mod:`e3d_jax.data.manifest`).

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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import tqdm

from e3d_jax import files
from e3d_jax.data import manifest, parallel, records


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An item that cannot be made.

    Attributes:
      reason: why, in one sentence that names the item.
    """

    reason: str


# Stands in the place of an item until it is named.
KILLED = Skipped(
    "ended its process whenever it was tried: it damages the process, or there is too little memory (lower --workers)"
)


@dataclasses.dataclass(frozen=True)
class Flawed:
    """A result that lacks something, such as a texture that could not be loaded.

    Attributes:
      value: the result.
      warnings: what it lacks, in sentences that name the item.
    """

    value: Any
    warnings: tuple[str, ...]


class Counts(NamedTuple):
    """Numbers of items.

    Attributes:
      made: those that this run made.
      already: those that were there before.
      skipped: those that cannot be made.
      flawed: those among the made that lack something.
    """

    made: int
    already: int
    skipped: int
    flawed: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records.

    Attributes:
      name: the file's, without its suffix.
      items: what its records are made of; read one by one, so that a sequence may load them lazily.
      names: of the items, if they have names.
    """

    name: str
    items: Sequence[Any]
    names: Sequence[str] = ()

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.name + records.SUFFIX

    def item_name(self, index: int) -> str:
        """Return the name of an item by its number."""
        return self.names[index] if self.names else f"item {index} of {self.name}"


@dataclasses.dataclass(frozen=True)
class Work:
    """How items become results; each step may be left out.

    Attributes:
      prepare: the value of an item, or :class:`Skipped`; runs in worker processes, so it must be picklable.
      device: a generator over values that yields one for each, in order; it runs in this process, may read ahead, and
        never sees what was skipped.
      finish: the result of a value, :class:`Flawed` if it lacks something, or :class:`Skipped`; as ``prepare``. In
        work without ``finish`` and ``device``, the same holds for ``prepare``.
    """

    prepare: Callable[[Any], Any] | None = None
    device: Callable[[Iterator[Any]], Iterator[Any]] | None = None
    finish: Callable[[Any], Any] | None = None

    def results(self, items: Iterable[Any], pool: parallel.HostProcesses | None = None) -> Iterator[Any]:
        """Yield one result, :class:`Flawed` or :class:`Skipped` per item, in order.

        Args:
          items: what to work on; taken only as needed.
          pool: the worker processes; without it everything runs in this process.
        """
        results = _apply(self.prepare, items, pool)
        if self.device is not None:
            results = _pass_by(self.device, results)
        return _apply(self.finish, results, pool)


@dataclasses.dataclass(frozen=True)
class Job:
    """A dataset to make.

    Attributes:
      out: its folder.
      shards: all of them, or this machine's part.
      make_work: returns the work; called once by each process that makes records, so that it may load weights there,
        and picklable.
      seed: of its randomness, if there is one; for the manifest.
    """

    out: str | os.PathLike
    shards: Sequence[Shard]
    make_work: Callable[[], Work]
    seed: int | None = None

    def missing(self) -> list[Shard]:
        """Return the shards that do not exist yet."""
        there = {pathlib.PurePath(path).name for path in files.glob(self.out, f"*{records.SUFFIX}")}
        return [shard for shard in self.shards if shard.file not in there]


@runtime_checkable
class Runner(Protocol):
    """Does jobs; given the number of worker processes, one per core if it is None."""

    def __call__(self, job: Job, *, workers: int | None = None) -> Counts:
        """Write the shards that do not exist yet, and the manifest; return numbers of items."""


def _apply(function: Callable | None, items: Iterable[Any], pool: parallel.HostProcesses | None) -> Iterator[Any]:
    if function is None:
        return iter(items)
    function = functools.partial(_unless_skipped, function)
    if pool is None:
        return map(function, items)
    return (KILLED if result is parallel.KILLED else result for result in pool.in_order(function, items))


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


def write_shards(job: Job, *, workers: int | None = None) -> Counts:
    """Write the shards of a job that do not exist yet on this machine, with a progress bar.

    Args:
      job: what to make.
      workers: processes; one per core by default, 0 for none but this one.

    Returns:
      Numbers of items; a shard of which every item is skipped is not written.

    Raises:
      OSError: the folder cannot be written to.
    """
    missing = job.missing()
    total, rest = (sum(len(shard.items) for shard in some) for some in (job.shards, missing))
    with _processes(workers, rest) as pool, _Progress(total, total - rest) as progress:
        work = job.make_work() if missing else Work()
        results = work.results(itertools.chain.from_iterable(shard.items for shard in missing), pool)
        for shard in missing:
            made = itertools.islice(results, len(shard.items))
            write_shard(job, shard, progress.follow(named(shard, made)))
    manifest.write(job.out)
    return progress.counts


def write_shard(job: Job, shard: Shard, results: Iterable[Any]) -> manifest.Receipt:
    """Write a shard and, just before it gets its name, its receipt; no file if every item is skipped.

    Args:
      job: which the shard belongs to.
      shard: to write.
      results: one per item, named.

    Raises:
      OSError: the folder cannot be written to.
    """
    register = manifest.Register()
    with contextlib.ExitStack() as stack:
        writer: records.Writer | None = None
        for index, result in enumerate(results):
            if isinstance(result, Skipped):
                register.quarantine[shard.item_name(index)] = result.reason
                continue
            register.flawed += isinstance(result, Flawed)
            record = result.value if isinstance(result, Flawed) else result
            if writer is None:
                writer = stack.enter_context(records.Writer(files.join(job.out, shard.file)))
            writer.write(record)
            register.add(record)
        receipt = register.receipt(shard.file, job.seed, shard.names)
        manifest.write_receipt(job.out, receipt)
    return receipt


def named(shard: Shard, results: Iterable[Any]) -> Iterator[Any]:
    """Yield results, with the name of the item where its process was killed."""
    for index, result in enumerate(results):
        yield Skipped(f"{shard.item_name(index)} {KILLED.reason}") if result is KILLED else result


def messages(result: Any) -> list[str]:
    """Return the lines that report a result."""
    lines = []
    if isinstance(result, Skipped):
        lines = ["skipped: " + result.reason]
    elif isinstance(result, Flawed):
        lines = ["warning: " + warning for warning in result.warnings]
    return [line.replace("\n", " ") for line in lines]


def run(items: Sequence[Any], work: Work, *, already: int = 0, workers: int | None = None) -> Counts:
    """Make items whose results are files that the work itself writes.

    Args:
      items: those that are missing.
      work: writes the result of each.
      already: number of items that were there before.
      workers: as of :func:`write_shards`.

    Raises:
      OSError: a result cannot be written.
    """
    with (
        _processes(workers, len(items)) as pool,
        _Progress(already + len(items), already) as progress,
    ):
        results = named(Shard("the job", items, [str(item) for item in items]), work.results(items, pool))
        collections.deque(progress.follow(results), maxlen=0)
    return progress.counts


def _processes(workers: int | None, items: int) -> contextlib.AbstractContextManager[parallel.HostProcesses | None]:
    """Return the worker processes of a job; no more than items."""
    workers = min(os.cpu_count() or 1 if workers is None else workers, items)
    return parallel.host_processes(workers) if workers else contextlib.nullcontext()


class _Progress:
    """A progress bar that counts results, and prints a line for each one skipped and for what others lack."""

    def __init__(self, total: int, already: int):
        self.counts = Counts(0, already, 0, 0)
        self._bar = tqdm.tqdm(total=total, initial=already, unit="object", mininterval=2)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def follow(self, results: Iterable[Any]) -> Iterator[Any]:
        """Yield results, counted and reported."""
        for result in results:
            made, _, skipped, flawed = self.counts
            if isinstance(result, Skipped):
                self.counts = self.counts._replace(skipped=skipped + 1)
            else:
                flawed += isinstance(result, Flawed)
                self.counts = self.counts._replace(made=made + 1, flawed=flawed)
            for message in messages(result):
                tqdm.tqdm.write(message, sys.stderr)
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
