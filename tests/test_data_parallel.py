"""Work in other processes."""

import itertools
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
        found = parallel.in_order(pool, os.getenv, ["OPENBLAS_NUM_THREADS", "JAX_PLATFORMS"])
        assert list(found) == ["1", "cpu"]


def test_items_are_taken_only_as_needed():
    taken = []
    with parallel.host_processes(1) as pool:
        results = parallel.in_order(pool, abs, (taken.append(i) or -i for i in itertools.count()), ahead=3)
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) == 8


def test_a_failure_is_passed_on():
    with parallel.host_processes(1) as pool:
        results = parallel.in_order(pool, int, ["1", "x"])
        assert next(results) == 1
        with pytest.raises(ValueError, match="invalid literal"):
            next(results)


def test_work_that_has_not_begun_at_the_end_is_dropped():
    with parallel.host_processes(1) as pool:
        waiting = [pool.submit(time.sleep, 0.1) for _ in range(50)]
    assert waiting[-1].cancelled()


def test_processes_end_with_the_one_that_started_them():
    code = """
import os, time
from e3d_jax.data import parallel
with parallel.host_processes(1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(100)
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert int(run.stdout.readline()) != run.pid
    run.kill()
    run.communicate(timeout=30)  # Until every process that writes to the pipe has ended.


def test_a_killed_worker_is_named_in_one_sentence():
    with parallel.host_processes(1) as pool, pytest.raises(OSError, match="was killed, probably out of memory; lower"):
        list(parallel.in_order(pool, os._exit, [1]))
