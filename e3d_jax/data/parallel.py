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
    """Processes that are started from now on compute on one core each, unless the environment says otherwise.

    NumPy's matrix products would else take all cores in every one of them, and threads that wait for each other by
    spinning bring many processes to a standstill.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def live_with_parent(*_: int) -> None:
    """Called in a worker: it ends when the process that started it says so, or ends, and for nothing else.

    Ctrl-C and SLURM's notice go to all processes of a run, and a worker that dies within a message has whoever reads
    that wait for ever. Grain says which of how many workers it is, which makes no difference.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(process: Any) -> None:
    process.join()
    os._exit(1)


@contextlib.contextmanager
def host_processes(count: int | None) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Processes, as many as there are cores when not given, that leave the accelerator to this one.

    Work that has not begun at the end is left undone: results that are wanted have been asked for by then.
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


def parse_share(text: str) -> tuple[int, int]:
    """I and N of "I/N": which of how many shares of the work is meant, the first being 0/N.

    Raises:
      ValueError: it is no such share.
    """
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 0 <= index < count:
        raise ValueError(f"--share is {text!r}; expected I/N with I from 0 to N - 1, as in 0/8")
    return index, count


def in_order(
    pool: concurrent.futures.Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int = 64
) -> Iterator[Any]:
    """Results of ``function``, of which at most ``ahead`` are under way: items are taken no sooner.

    Raises:
      OSError: a process was ended from outside.
    """
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)
    except concurrent.futures.BrokenExecutor as error:
        raise OSError(
            "a process that this one started was ended, mostly for want of memory; give fewer --workers"
        ) from error
