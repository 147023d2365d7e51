"""Work of the host spread over processes, in order and in bounded memory."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any


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


@contextlib.contextmanager
def host_processes(count: int | None) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Start worker processes, one per core if ``count`` is None, that leave the accelerator to this process.

    Work that has not begun when the block ends is dropped: results that are wanted have been asked for by then.
    """
    one_core_each()
    os.environ["JAX_PLATFORMS"] = "cpu"  # This process has read it already, when it imported JAX.
    pool = concurrent.futures.ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=live_with_parent
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: concurrent.futures.Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int = 64
) -> Iterator[Any]:
    """Yield the results of ``function`` in order, of which at most ``ahead`` are pending; items are taken no sooner.

    Raises:
      OSError: a worker process was killed.
    """
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
    except concurrent.futures.BrokenExecutor as error:
        raise OSError("a worker process was killed, probably out of memory; lower --workers") from error
