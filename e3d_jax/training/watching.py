"""What a run reports: rows of numbers to a file and to TensorBoard, and how fast it is."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2

from e3d_jax import files
from e3d_jax.training import costs

# Seconds between syncs of TensorBoard's file, which a mounted bucket uploads whole.
SYNC_EVERY = 60


class Writer:
    """Rows of metrics, ``FOLDER/metrics.jsonl`` and ``FOLDER/tensorboard``; only the first process writes.

    Args:
      folder: of the run.
      first: the step after which the run continues; rows of later steps, from before it was stopped, go.

    Raises:
      OSError: as all its methods do, where the folder cannot be written to.
    """

    def __init__(self, folder: pathlib.Path, first: int):
        self._active, self._folder = jax.process_index() == 0, folder
        if not self._active:
            return
        path = folder / "metrics.jsonl"
        rows = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A last line without its end was cut off when the run was killed.
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= first]
        files.write_atomically(path, "".join(kept).encode())
        with files.write_errors(self._folder):
            (folder / "tensorboard").mkdir(exist_ok=True)
            self._rows = open(path, "a")  # noqa: SIM115
            # Not tensorboardX's SummaryWriter: on a full disk its thread dies, and what hands it events waits for ever.
            self._events = event_file_writer.EventsWriter(str(folder / "tensorboard" / "events"))
            self._synced = 0.0
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._event(first + 1, session_log=start)  # Viewers drop what there is of later steps.

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row."""
        if self._active:
            with files.write_errors(self._folder):
                self._rows.write(json.dumps({"step": step, **metrics}) + "\n")
                self._rows.flush()
                finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
                scalars = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in finite.items()]
                self._event(step, summary=summary_pb2.Summary(value=scalars))

    def image(self, step: int, name: str, picture: Float[np.ndarray, "h w 3"]) -> None:
        """Show a picture in [0, 1]."""
        if self._active:
            with files.write_errors(self._folder):
                self._event(step, summary=summary.image(name, picture, dataformats="HWC"))

    def close(self) -> None:
        """Write what is left."""
        if self._active:
            with files.write_errors(self._folder), contextlib.closing(self._events), self._rows:
                pass

    def _event(self, step: int, **what: Any) -> None:
        self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **what))
        if time.monotonic() > self._synced + SYNC_EVERY:
            self._events.flush()
            self._synced = time.monotonic()


def mean(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means over steps of those values that are finite; what counts something keeps its last value."""
    rows = list(rows)
    result = {}
    for name in rows[-1]:
        finite = [row[name] for row in rows if math.isfinite(row[name])]
        result[name] = rows[-1][name] if name.startswith("skipped") else float(np.mean(finite)) if finite else math.nan
    return result


def speed(seconds: float, waited: float, examples: int, operations: float, devices: list[Any]) -> dict[str, float]:
    """Rates of a step.

    Args:
      seconds: that a step takes.
      waited: of these, how many for input.
      examples: in a batch.
      operations: floating-point operations of a step, recomputed ones included (:func:`costs.count`).
      devices: that share the step.
    """
    each = operations / seconds / len(devices)
    rates = {
        "time/step_ms": 1e3 * seconds,
        "time/input_ms": 1e3 * waited,
        "examples_per_second": examples / seconds,
        "tflops_per_device": each / 1e12,
    }
    if chip := costs.chip(devices[0].device_kind):
        rates["mfu"] = each / chip.flops
    if memory := jax.local_devices()[0].memory_stats():
        rates["memory_gb"] = memory["peak_bytes_in_use"] / 1e9
    return rates
