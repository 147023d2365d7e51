"""Where metrics and images of a run go.

To add a logger, write a :class:`Writer` and list it in :func:`make_writers`.
"""

import contextlib
import json
import math
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2

from e3d_jax import files

# Seconds between flushes of TensorBoard's file; a mounted bucket uploads all of it each time.
FLUSH_EVERY = 60


@runtime_checkable
class Writer(Protocol):
    """A destination of metrics and images; all methods raise OSError if it cannot be written to."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step."""

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """Add an image in [0, 1]."""

    def close(self) -> None:
        """Write what is still in memory."""


def make_writers(folder: pathlib.Path, first: int) -> list[Writer]:
    """Return the writers of a run; other processes than the first have none.

    Args:
      folder: of the run.
      first: the step after which the run continues; what was written of later steps, before it stopped, is dropped.

    Raises:
      OSError: the folder cannot be written to.
    """
    return [JsonLines(folder, first), TensorBoard(folder, first)] if jax.process_index() == 0 else []


class JsonLines:
    """Metrics as one JSON object per line of ``FOLDER/metrics.jsonl``; see :func:`make_writers`."""

    def __init__(self, folder: pathlib.Path, first: int):
        self._path = folder / "metrics.jsonl"
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
        # A last line without an end was cut off when the run was killed; power loss damages any.
        steps = list(map(_step_of, lines[:-1]))
        if unreadable := [str(number) for number, step in enumerate(steps, 1) if step is None]:
            warnings.warn(f"{self._path}: line {', '.join(unreadable[:10])} is not a row; left out", stacklevel=2)
        kept = [
            line + b"\n" for line, step in zip(lines[:-1], steps, strict=True) if step is not None and step <= first
        ]
        files.write_atomically(self._path, b"".join(kept))
        with files.write_errors(self._path):
            self._file = open(self._path, "a")  # noqa: SIM115

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line."""
        with files.write_errors(self._path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """Do nothing: images do not fit a line."""

    def close(self) -> None:
        """Close the file."""
        with files.write_errors(self._path):
            self._file.close()


def _step_of(line: bytes) -> int | None:
    """Return the step of a row of metrics; None if it is not one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


class TensorBoard:
    """Metrics and images as events in ``FOLDER/tensorboard``; see :func:`make_writers`."""

    def __init__(self, folder: pathlib.Path, first: int):
        self._folder = folder / "tensorboard"
        with files.write_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
            # Not tensorboardX's SummaryWriter: on a full disk its thread dies, and adding events then blocks forever.
            self._events = event_file_writer.EventsWriter(str(self._folder / "events"))
            self._flushed = 0.0
            # Makes viewers drop what there is of later steps.
            self._event(first + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add an event with all metrics that are finite."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        scalars = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
        with files.write_errors(self._folder):
            self._event(step, summary=summary_pb2.Summary(value=scalars))

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """Add an event with an image in [0, 1]."""
        with files.write_errors(self._folder):
            self._event(step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Flush and close the file."""
        with files.write_errors(self._folder), contextlib.closing(self._events):
            pass

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))
        if time.monotonic() > self._flushed + FLUSH_EVERY:
            self._events.flush()
            self._flushed = time.monotonic()
