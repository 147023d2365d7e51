"""Work in other processes."""

import functools
import itertools
import multiprocessing
import operator
import os
import subprocess
import sys
import time

import pytest

from e3d_jax.data import parallel


def test_processes_keep_to_one_core_and_off_the_accelerator(monkeypatch):
    for library in ("OMP", "OPENBLAS", "MKL"):
        monkeypatch.delenv(f"{library}_NUM_THREADS", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with parallel.host_processes(1) as pool:
        found = pool.in_order(os.getenv, ["OPENBLAS_NUM_THREADS", "JAX_PLATFORMS"])
        assert list(found) == ["1", "cpu"]


def test_items_are_taken_only_as_needed():
    taken = []
    with parallel.host_processes(1) as pool:
        results = pool.in_order(abs, (taken.append(i) or -i for i in itertools.count()), ahead=3)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) == 8


def test_a_failure_is_passed_on():
    with parallel.host_processes(1) as pool:
        results = pool.in_order(int, ["1", "x"])
        assert next(results) == 1
        with pytest.raises(ValueError, match="invalid literal"):
            next(results)


def test_work_that_has_not_begun_at_the_end_is_dropped():
    begun = time.monotonic()
    with parallel.host_processes(1) as pool:
        next(pool.in_order(time.sleep, [0.2] * 60))
    assert time.monotonic() - begun < 6


def test_processes_end_with_the_one_that_started_them():
    code = """
import operator, os, time
from e3d_jax.data import parallel
with parallel.host_processes(1) as pool:
    print(*pool.in_order(operator.call, [os.getpid]), flush=True)
    time.sleep(100)
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert int(run.stdout.readline()) != run.pid
    run.kill()
    run.communicate(timeout=30)  # Until every process that writes to the pipe has ended.


def call(pool, *functions):
    """The results of functions without arguments, which processes can only import from elsewhere."""
    return list(pool.in_order(operator.call, functions))


def test_an_item_that_kills_its_process_whenever_it_is_tried_harms_no_other():
    kill, others = functools.partial(os._exit, 1), [functools.partial(abs, -index) for index in range(8)]
    with parallel.host_processes(2) as pool:
        assert call(pool, *others[:3], kill, *others[3:]) == [0, 1, 2, parallel.KILLED, *range(3, 8)]


def test_an_item_whose_process_is_killed_once_is_done_again(tmp_path):
    # The second attempt finds the folder that the first has made.
    folder = str(tmp_path / "a")
    once = f"import os; os.path.exists({folder!r}) or (os.mkdir({folder!r}), os._exit(1))"
    with parallel.host_processes(1) as pool:
        assert call(pool, functools.partial(exec, once), functools.partial(abs, -1)) == [None, 1]


def test_processes_killed_from_outside_lose_nothing():
    found = []
    with parallel.host_processes(2) as pool:
        for result in pool.in_order(abs, range(200), ahead=8):
            found.append(result)
            if len(found) % 70 == 0:
                for child in multiprocessing.active_children():
                    child.kill()
    assert found == list(range(200))
