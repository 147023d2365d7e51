"""How fast a run is, and where its time goes."""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from e3d_jax.training import costs


@dataclasses.dataclass(frozen=True)
class Lap:
    """Mean times of the steps between two readings of a stopwatch.

    Attributes:
      step: seconds per step.
      input: seconds of these spent waiting for input.
    """

    step: float
    input: float


class Stopwatch:
    """Divides the time of a run by what it is spent on, and measures its steps.

    Args:
      kind: what the first seconds are spent on.
    """

    def __init__(self, kind: str):
        self._seconds, self._kind, self._since = collections.defaultdict[str, float](float), kind, time.perf_counter()
        self._steps, self._lap = 0, self.seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by what they were spent on, so far."""
        self.switch(self._kind)
        return dict(self._seconds)

    def switch(self, kind: str) -> str:
        """Spend the time from now on on something else; return what it was spent on."""
        now, before = time.perf_counter(), self._kind
        self._seconds[before] += now - self._since
        self._kind, self._since = kind, now
        return before

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Spend the time of a block on something else."""
        before = self.switch(kind)
        try:
            yield
        finally:
            self.switch(before)

    def step(self) -> None:
        """Count a step, which consists of ``compute`` and ``input``."""
        self._steps += 1

    def lap(self) -> Lap | None:
        """Return the times per step since the last lap; None if no step was counted."""
        steps, spent = self._steps, self.seconds
        compute, waited = (spent.get(kind, 0.0) - self._lap.get(kind, 0.0) for kind in ("compute", "input"))
        self._steps, self._lap = 0, spent
        return Lap((compute + waited) / steps, waited / steps) if steps else None


class Profiler:
    """Writes a trace of some steps, which TensorBoard and Perfetto show.

    Args:
      folder: where the trace goes.
      steps: the first and the last of the steps, counted from 1; None traces nothing.
      start: the step after which the run continues; it may have passed some of the steps.
    """

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None, start: int):
        self._folder, self._trace = str(folder), contextlib.ExitStack()
        self._steps = range(max(steps[0], start + 1), steps[1] + 1) if steps else range(0)

    def begin_step(self, step: int) -> None:
        """Start the trace if this is the first step of it."""
        if self._steps and step == self._steps[0]:
            self._trace.enter_context(jax.profiler.trace(self._folder))

    def end_step(self, step: int, result: Any) -> None:
        """Write the trace if this was the last step of it, once its ``result`` is computed."""
        if self._steps and step == self._steps[-1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Write a trace that was begun."""
        self._trace.close()


def throughput(lap: Lap, batch_size: int, flops: float, devices: Sequence[Any]) -> dict[str, float]:
    """Return the speed of steps as metrics.

    Args:
      lap: their times.
      batch_size: examples per step.
      flops: FLOPs per step, recomputed ones included (:func:`costs.count_flops`).
      devices: those that share a step.
    """
    flops_per_device = flops / lap.step / len(devices)
    rates = {
        "time/step_ms": 1e3 * lap.step,
        "time/input_ms": 1e3 * lap.input,
        "examples_per_second": batch_size / lap.step,
        "tflops_per_device": flops_per_device / 1e12,
    }
    if chip := costs.chip(devices[0].device_kind):
        rates["mfu"] = flops_per_device / chip.flops
    if memory := jax.local_devices()[0].memory_stats():
        rates["memory_gb"] = memory["peak_bytes_in_use"] / 1e9
    return rates
