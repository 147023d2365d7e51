"""Runs that are started again after a crash, by a process that does nothing else."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from e3d_jax import distributed

# Seconds before a restart: twice as many each time that a run got no further, between these two.
SHORTEST, LONGEST = 1.0, 60.0


def supervise(command: Sequence[str], limit: int, last_step: Callable[[], int]) -> int:
    """Run a command until it ends well; return its exit status, negative for a signal.

    It is started again if a signal killed it, if it asks for that (:data:`e3d_jax.distributed.RETRY`), or if it failed
    after steps that were never taken before: what fails without them would fail again. SIGTERM is passed on, and like
    SIGINT it ends the restarts.

    Args:
      command: to run.
      limit: number of restarts.
      last_step: returns the last step that was ever taken.
    """
    received: list[int] = []
    child: subprocess.Popen | None = None

    def receive(number: int, _: object) -> None:
        received.append(number)
        if child and number == signal.SIGTERM:  # A terminal sends SIGINT to both.
            child.send_signal(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        restarts, pause = 0, SHORTEST
        while True:
            reached = last_step()
            child = subprocess.Popen(command)
            status = child.wait()
            further = (step := last_step()) > reached
            again = status < 0 or status == distributed.RETRY or further
            if status == 0 or received or restarts == limit or not again:
                return status
            restarts += 1
            pause = SHORTEST if further else min(2 * pause, LONGEST)
            what = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
            if status == -signal.SIGABRT:
                what += ", which is how JAX ends it when another of its processes is gone,"
            print(f"the run {what} after step {step}; restart {restarts} of {limit} in {pause:.0f} s", flush=True)
            _wait(pause, received)
            if received:
                return status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(seconds: float, received: Sequence[int]) -> None:
    """Wait, unless there is a signal."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not received:
        time.sleep(0.1)
