"""One process per run folder.

The lock is a file that its owner holds open under the kernel's lock, which ends with the owner, however it ends. Not
every file system shares that lock with other hosts, so the owner also writes a new number into the file every few
seconds: a file that has not changed for a while belongs to a process or host that is gone.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from e3d_jax import files

NAME = "lock.json"
# Seconds between two numbers, and for how long a file must not change to belong to nobody.
BEAT, SILENCE = 10.0, 60.0
BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")


@contextlib.contextmanager
def hold(folder: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a run folder; of several processes of one run, the first does.

    Raises:
      ValueError: another process holds it.
      OSError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        failure: Exception | None = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(_hold(folder / NAME))
            except (OSError, ValueError) as error:
                failure = error
        if jax.process_count() > 1 and not np.all(multihost_utils.process_allgather(np.array(failure is None))):
            failure = failure or ValueError(f"{folder} is in use by another run; see the message of the first process")
        if failure is not None:
            raise failure
        yield


@contextlib.contextmanager
def _hold(path: pathlib.Path) -> Iterator[None]:
    with files.write_errors(path):
        file = _acquire(path)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot(), "job": os.environ.get("SLURM_JOB_ID")}
    stopped = threading.Event()
    _write(file, owner | {"beat": 0})
    thread = threading.Thread(target=_beat, args=(file, owner, stopped), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        with contextlib.suppress(OSError):
            if _is(file, path):  # Otherwise it was taken over.
                path.unlink()
        os.close(file)


def _acquire(path: pathlib.Path) -> int:
    """Return the open file of a lock that this process holds now."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            free = _lock(file)
            owner = _read(file)
            # This kernel's lock is the last word on its own processes.
            known = owner.get("boot") == _boot()
            if free is False and known:
                raise _in_use(path, owner)
            if owner and not (free and known):
                if _alive(file):
                    raise _in_use(path, owner)
                if not free:
                    path.unlink(missing_ok=True)  # The next turn makes and locks another file.
                    os.close(file)
                    continue
            if _is(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int) -> bool | None:
    """Take the kernel's lock; return whether that worked, None if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _alive(file: int) -> bool:
    """Return whether the file changes within the time that a living owner needs to change it."""
    before, end = _read(file), time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, SILENCE / 10))
        if _read(file) != before:
            return True
    return False


def _beat(file: int, owner: dict[str, Any], stopped: threading.Event) -> None:
    beat = 0
    while not stopped.wait(BEAT):
        beat += 1
        with contextlib.suppress(OSError):  # Such as a full disk; the next beat may work.
            _write(file, owner | {"beat": beat})


def _write(file: int, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    os.pwrite(file, data.ljust(512), 0)  # Always as long, so that a reader never sees a part of it.


def _read(file: int) -> dict[str, Any]:
    """Return what the owner wrote, or nothing if that is nobody."""
    try:
        return dict(json.loads(os.pread(file, 4096, 0)))
    except (OSError, ValueError, TypeError):
        return {}


def _is(file: int, path: pathlib.Path) -> bool:
    """Return whether an open file is still the one of this path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _boot() -> str:
    """Return what two processes have in common if one kernel runs both."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()


def _in_use(path: pathlib.Path, owner: dict[str, Any]) -> ValueError:
    job = f" of job {owner['job']}" if owner.get("job") else ""
    who = f"process {owner.get('pid')}{job} on {owner.get('host')}" if owner else "another process"
    return ValueError(f"{path.parent} is in use by {who}; stop that run first, or choose another --workdir")
