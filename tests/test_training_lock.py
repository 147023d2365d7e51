"""A run folder belongs to one process, and to none that is gone."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from e3d_jax.training import lock


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "SILENCE", 0.3)


def write(folder, **owner):
    """Leave the lock of another process."""
    (folder / lock.NAME).write_text(json.dumps({"host": "elsewhere", "pid": 1, "boot": "other", "beat": 0} | owner))


def test_a_second_holder_is_refused(tmp_path):
    message = rf"in use by process {os.getpid()} on .*; stop that run"
    with lock.hold(tmp_path), pytest.raises(ValueError, match=message), lock.hold(tmp_path):
        pass


def test_a_lock_that_was_left_can_be_held_again(tmp_path):
    for _ in range(2):
        with lock.hold(tmp_path):
            assert (tmp_path / lock.NAME).exists()
    assert not (tmp_path / lock.NAME).exists()


def test_a_killed_process_holds_nothing(tmp_path):
    code = f"""
import fcntl, os, signal, json
from pathlib import Path
path = Path({str(tmp_path / lock.NAME)!r})
boot = Path({str(lock.BOOT)!r}).read_text().strip()
path.write_text(json.dumps({{"host": "here", "pid": os.getpid(), "boot": boot}}))
file = open(path)
fcntl.flock(file, fcntl.LOCK_EX)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with lock.hold(tmp_path):
        pass


def test_a_host_that_is_gone_holds_nothing(tmp_path):
    write(tmp_path)
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()


def test_a_living_process_of_another_host_is_respected(tmp_path):
    write(tmp_path, job="7")
    stopped = threading.Event()

    def live():
        beat = 0
        while not stopped.wait(0.02):
            write(tmp_path, job="7", beat=(beat := beat + 1))

    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(ValueError, match="in use by process 1 of job 7 on elsewhere"), lock.hold(tmp_path):
            pass
    finally:
        stopped.set()
        other.join()


def test_an_empty_lock_belongs_to_nobody(tmp_path):
    (tmp_path / lock.NAME).touch()
    with lock.hold(tmp_path):
        pass
