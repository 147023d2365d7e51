"""Where metrics and images of a run go.

To add a logger, write a :class:`Writer` and list it in :data:`WRITERS`.
"""

import abc
import contextlib
import importlib.util
import json
import math
import os
import pathlib
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
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


class _Lines(abc.ABC):
    """Rows of metrics as lines of a file; see :func:`make_writers`.

    Args:
      path: of the file.
      first: the step after which the run continues.
      header: the first line, without its end; none if empty.
    """

    def __init__(self, path: pathlib.Path, first: int, header: str = ""):
        self._path = path
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        # A last line without an end was cut off when the run was killed; power loss damages any.
        rows = [(number, line, self._step_of(line)) for number, line in enumerate(lines[:-1], 1)]
        rows = [row for row in rows if not header or row[1] != header.encode()]
        if unreadable := [str(number) for number, _, step in rows if step is None]:
            warnings.warn(f"{path}: line {', '.join(unreadable[:10])} is not a row; left out", stacklevel=3)
        kept = [header.encode()] if header else []
        kept += [line for _, line, step in rows if step is not None and step <= first]
        files.write_atomically(path, b"".join(line + b"\n" for line in kept))
        with files.write_errors(path):
            self._file = open(path, "a")  # noqa: SIM115

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the lines of a row."""
        with files.write_errors(self._path):
            self._file.write(self._format(step, metrics))
            self._file.flush()

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """Do nothing: images do not fit a line."""
        del step, name, image

    def close(self) -> None:
        """Close the file."""
        with files.write_errors(self._path):
            self._file.close()

    @abc.abstractmethod
    def _step_of(self, line: bytes) -> int | None:
        """Return the step of a line; None if it is not one of the file."""

    @abc.abstractmethod
    def _format(self, step: int, metrics: Mapping[str, float]) -> str:
        """Return the lines of a row."""


class JsonLines(_Lines):
    """Metrics as one JSON object per line of ``FOLDER/metrics.jsonl``; see :func:`make_writers`."""

    def __init__(self, folder: pathlib.Path, first: int):
        super().__init__(folder / "metrics.jsonl", first)

    def _step_of(self, line: bytes) -> int | None:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError, OverflowError):
            return None

    def _format(self, step: int, metrics: Mapping[str, float]) -> str:
        return json.dumps({"step": step, **metrics}) + "\n"


class Csv(_Lines):
    """Metrics as lines ``step,metric,value`` of ``FOLDER/metrics.csv``; see :func:`make_writers`.

    Rows differ in their metrics, so that a column for each would change the header.
    """

    def __init__(self, folder: pathlib.Path, first: int):
        super().__init__(folder / "metrics.csv", first, header="step,metric,value")

    def _step_of(self, line: bytes) -> int | None:
        try:
            step, _, value = line.split(b",")
            float(value)
            return int(step)
        except ValueError:
            return None

    def _format(self, step: int, metrics: Mapping[str, float]) -> str:
        return "".join(f"{step},{name},{value!r}\n" for name, value in metrics.items())


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


class WeightsAndBiases:
    """Metrics and images as a run of Weights & Biases (extra ``wandb``); see :func:`make_writers`.

    The run keeps its id in ``FOLDER/wandb_id``, so that a run that continues is the same one there, too. Steps that are
    taken again are logged once: their values are the same. The variables of W&B apply, such as ``WANDB_PROJECT`` and
    ``WANDB_MODE=offline``.
    """

    def __init__(self, folder: pathlib.Path, first: int):
        del first  # W&B leaves out steps that it has already.
        import wandb

        known = folder / "wandb_id"
        if not known.exists():
            files.write_atomically(known, uuid.uuid4().hex[:16].encode())
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "e3d_jax"),
                name=f"{folder.parent.name}/{folder.name}",
                id=known.read_text(),
                dir=folder,
                resume="allow",
            )
        except wandb.errors.Error as error:
            raise OSError(f"Weights & Biases cannot be used ({error}); log in, or set WANDB_MODE=offline") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics to the row of a step."""
        self._run.log(dict(metrics), step=step)

    def image(self, step: int, name: str, image: Float[np.ndarray, "h w 3"]) -> None:
        """Add an image to the row of a step."""
        self._run.log({name: self._wandb.Image((image * 255).round().astype(np.uint8))}, step=step)

    def close(self) -> None:
        """Send, or write, what is left."""
        self._run.finish()


WRITERS: dict[str, Callable[[pathlib.Path, int], Writer]] = {
    "jsonl": JsonLines,
    "csv": Csv,
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
DEFAULT = ("jsonl", "tensorboard")


def check(names: Sequence[str]) -> None:
    """Refuse writers that do not exist or lack their package.

    Raises:
      ValueError: there is no such writer.
      OSError: Weights & Biases is not installed.
    """
    for name in names:
        if name not in WRITERS:
            raise ValueError(f"there is no writer {name!r}; give some of {', '.join(WRITERS)}")
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise OSError("Weights & Biases is not installed; run pip install 'e3d_jax[wandb]'")


def make_writers(folder: pathlib.Path, first: int, names: Sequence[str] = DEFAULT) -> list[Writer]:
    """Return the writers of a run; other processes than the first have none.

    Args:
      folder: of the run.
      first: the step after which the run continues; what was written of later steps, before it stopped, is dropped.
      names: keys of :data:`WRITERS`.

    Raises:
      OSError: the folder cannot be written to, or a service cannot be reached.
    """
    return [WRITERS[name](folder, first) for name in names] if jax.process_index() == 0 else []
