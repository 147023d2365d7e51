"""Work of the host spread over processes, in order and in bounded memory."""

import collections
import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def one_core_each() -> None:
    """Processes that are started from now on compute on one core each, unless the environment says otherwise.

    NumPy's matrix products would else take all cores in every one of them, and threads that wait for each other by
    spinning bring many processes to a standstill.
    """
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def host_processes(count: int | None) -> concurrent.futures.ProcessPoolExecutor:
    """Processes, as many as there are cores when not given, that leave the accelerator to this one."""
    one_core_each()
    os.environ["JAX_PLATFORMS"] = "cpu"  # This process has read it already, when it imported JAX.
    return concurrent.futures.ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def in_order(
    pool: concurrent.futures.Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int = 64
) -> Iterator[Any]:
    """Results of ``function``, of which at most ``ahead`` are under way: items are taken no sooner."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)
