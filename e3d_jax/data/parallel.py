"""Work of the host spread over processes, in order and in bounded memory."""

import collections
import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax


def host_processes(count: int | None) -> concurrent.futures.ProcessPoolExecutor:
    """Processes, one a core when not given, that leave the accelerator to this one."""
    jax.devices()  # Takes it before the others start.
    os.environ["JAX_PLATFORMS"] = "cpu"
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
