"""Work of the host spread over processes, in order and in bounded memory."""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

# Times that an item is tried alone before it is given up.
TRIES = 2
KILLED = object()


def one_core_each() -> None:
    """Make processes that start from now on compute on one core each, unless the environment says otherwise.

    Otherwise NumPy's matrix products take all cores in each of them, and threads that spin while they wait for each
    other bring many processes to a standstill.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def live_with_parent(*_: int) -> None:
    """Let a worker end only when its parent ends or asks it to; called in the worker.

    Ctrl-C and SLURM's notice go to all processes of a run, and a worker that dies within a message leaves its reader
    waiting forever. Grain passes the worker's index and count, which are ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(process: Any) -> None:
    process.join()
    os._exit(1)


@dataclasses.dataclass
class _Pending:
    """An item and its result to be, or None if it will be tried alone."""

    item: Any
    future: futures.Future | None

    def is_lost(self) -> bool:
        """Return, when there is a result, whether its process died instead."""
        return self.future is not None and isinstance(self.future.exception(), futures.BrokenExecutor)


class HostProcesses:
    """Worker processes that leave the accelerator to this process; those that die are replaced.

    Args:
      count: of processes.
    """

    def __init__(self, count: int):
        self._count = count
        self._pool, self._lone = _start(count), _start(1)

    def in_order(self, function: Callable[[Any], Any], items: Iterable[Any], ahead: int = 64) -> Iterator[Any]:
        """Yield the results of ``function`` in order; items are taken when fewer than ``ahead`` are pending.

        When a process dies, all items that were in work are lost. They are done again, those that may have killed it in
        a process of their own; the result of an item that does so whenever it is tried is :data:`KILLED`.
        """
        waiting: collections.deque[_Pending] = collections.deque()
        for item in items:
            waiting.append(_Pending(item, _submit(self._pool, function, item)))
            if len(waiting) > ahead:
                yield self._take(function, waiting)
        while waiting:
            yield self._take(function, waiting)

    def _take(self, function: Callable[[Any], Any], waiting: collections.deque[_Pending]) -> Any:
        """Remove the first item and return its result."""
        if waiting[0].is_lost():
            self._pool.shutdown()  # Until all items know that they are lost.
            self._pool = _start(self._count)
            # Items are begun in order, so the one that killed its process is among the first.
            for number, pending in enumerate([pending for pending in waiting if pending.is_lost()]):
                pending.future = None if number < self._count else _submit(self._pool, function, pending.item)
        first = waiting.popleft()
        return self._alone(function, first.item) if first.future is None else first.future.result()

    def _alone(self, function: Callable[[Any], Any], item: Any) -> Any:
        for _ in range(TRIES):
            future = _submit(self._lone, function, item)
            if not isinstance(future.exception(), futures.BrokenExecutor):
                return future.result()
            self._lone.shutdown()
            self._lone = _start(1)
        return KILLED

    def close(self) -> None:
        """End the processes; work that has not begun is dropped."""
        for pool in (self._pool, self._lone):
            pool.shutdown(cancel_futures=True)


def _start(count: int) -> futures.ProcessPoolExecutor:
    """Return processes, each of which starts when there is work for it."""
    return futures.ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=live_with_parent
    )


def _submit(pool: futures.Executor, function: Callable[[Any], Any], item: Any) -> futures.Future:
    try:
        return pool.submit(function, item)
    except futures.BrokenExecutor as error:  # A process has died already.
        future: futures.Future = futures.Future()
        future.set_exception(error)
        return future


@contextlib.contextmanager
def host_processes(count: int | None) -> Iterator[HostProcesses]:
    """Start worker processes, one per core if ``count`` is None, for the time of a block.

    Results that are wanted have been asked for when it ends.
    """
    one_core_each()
    os.environ["JAX_PLATFORMS"] = "cpu"  # This process has read it already, when it imported JAX.
    with contextlib.closing(HostProcesses(count or os.cpu_count() or 1)) as processes:
        yield processes
