"""The process that does the jobs of a queue; it starts with the first job, and again after it was ended."""

import contextlib
import multiprocessing
import pathlib
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from e3d_jax.app import pictures, schema

UNEXPECTED = "the job failed for a reason that the server's log has"

# Makes the result of a job in a folder, from the pictures there; yields where it is. Closing the generator cancels it.
Make = Callable[[pathlib.Path, schema.Options, Sequence[float | str]], Generator[schema.Progress]]


class Ended(Exception):
    """The process ended in the middle of a job."""


class Process:
    """A process that does one job after the other.

    Args:
      make: does a job; it is pickled.
    """

    def __init__(self, make: Make):
        self._make = make
        self._process: Any = None
        self._connection: Any = None

    @property
    def pid(self) -> int | None:
        """Number of the process; None before the first job."""
        return self._process and self._process.pid

    def begin(self, folder: pathlib.Path, options: schema.Options, azimuths: Sequence[float | str]) -> None:
        """Begin a job."""
        if self._process is None or not self._process.is_alive():
            self.kill()
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=serve, args=(other, self._make), daemon=True)
            self._process.start()
            other.close()
        self._connection.send((folder, options, azimuths))

    def release(self) -> None:
        """Cancel the job, or acknowledge its end; once per job."""
        self._connection.send(None)

    def receive(self, seconds: float) -> schema.Progress | None:
        """Return where the job is as soon as that changes, or None if it does not for some time.

        Raises:
          Ended: there is nothing to receive any longer.
        """
        try:
            return self._connection.recv() if self._connection.poll(seconds) else None
        except (EOFError, OSError) as error:
            raise Ended from error

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
        self._process = self._connection = None


def serve(connection: Connection, make: Make) -> None:
    """Do the jobs that come through a connection until it ends; what runs in the process.

    A job comes as arguments of ``make``, and each is followed by a None, which cancels the job if it still runs.
    """
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            arguments = connection.recv()
            for progress in _to_end(make, arguments, connection.poll):
                connection.send(progress)
            connection.recv()


def _to_end(make: Make, arguments: Any, cancelled: Callable[[], bool]) -> Iterator[schema.Progress]:
    """Yield where a job is until it is cancelled, and at last how it ended."""
    last, state, message = schema.Progress(state="running"), "done", ""
    try:
        with contextlib.closing(make(*arguments)) as happened:
            for last in happened:
                if cancelled():
                    state = "cancelled"
                    break
                yield last
    except pictures.Refused as error:
        state, message = "failed", str(error)
    except Exception:
        traceback.print_exc()
        state, message = "failed", UNEXPECTED
    yield last.model_copy(update={"state": state, "message": message})


def make_with(
    weights: str, folder: pathlib.Path, options: schema.Options, azimuths: Sequence[float | str]
) -> Generator[schema.Progress]:
    """Make a mesh with the system of some weights, which is loaded for the first job; the rest as in :data:`Make`.

    Raises:
      Refused: the pictures or the options cannot be used.
    """
    yield schema.Progress(state="running", stage="loading")
    from e3d_jax.app import worker  # Imports JAX, which only this process needs.

    yield from worker.maker(weights)(folder, options, azimuths)
