"""Metrics of the steps since the last row that was written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

# Metrics that count over the whole run: of several steps, the last value holds.
COUNTS = ("skipped", "consecutive_skips")


class MetricsBuffer:
    """Metrics of the steps since the last row, and the records that these steps learned from.

    Metrics stay on the device until they are needed, so that collecting them does not wait for the step.

    Args:
      rows: metrics of earlier steps, which a run that continues has not written yet.
    """

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()):
        self._rows: list[Any] = list(rows)
        self._ids: list[list[str]] = []

    def add(self, metrics: Mapping[str, Any], ids: Iterable[str]) -> None:
        """Add the metrics of a step, and the ids of its records."""
        self._rows.append(metrics)
        self._ids.append(list(map(str, ids)))

    @property
    def num_added(self) -> int:
        """Steps since the last row, without those from before the run continued."""
        return len(self._ids)

    def limit_queue(self) -> None:
        """Wait until the device has at most two steps left: batches of more would fill its memory."""
        jax.block_until_ready(self._rows[-3:-2])

    def fetch(self) -> list[dict[str, float]]:
        """Return the metrics as plain numbers, once they are computed."""
        self._rows = [{name: float(value) for name, value in metrics.items()} for metrics in jax.device_get(self._rows)]
        return self._rows

    def clear(self) -> None:
        """Forget what was written."""
        self._rows, self._ids = [], []

    def check_finite(self, stage: str, step: int, limit: int, checkpoints: Sequence[int]) -> None:
        """Refuse to go on after too many consecutive steps whose loss or gradient was not finite.

        Args:
          stage: in training.
          step: the last one that was added.
          limit: this many consecutive steps are too many.
          checkpoints: steps that are saved.

        Raises:
          ValueError: names the records of the first of these steps since the last row.
        """
        rows = self.fetch()
        last = max(range(len(rows)), key=lambda i: rows[i]["consecutive_skips"])
        count = int(rows[last]["consecutive_skips"])
        if count < limit:
            return
        begin = step - len(rows) + last + 2 - count
        ids = self._ids[max(0, last + 1 - count - len(rows) + len(self._ids))]
        # Skipped steps change nothing, so every checkpoint is good.
        good = f"the last good checkpoint is step {checkpoints[-1]}" if checkpoints else "there is no checkpoint"
        raise ValueError(
            f"{stage}: loss or gradient was not finite {count} times in a row, from step {begin} on, with the records "
            f"{', '.join(ids[:8])}; {good}; look at these records, or start another --workdir with a lower "
            "learning rate and --init=FOLDER, to which the weights of a checkpoint were exported"
        )


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over those steps where it is finite; :data:`COUNTS` keep their last value."""
    result = {}
    for name, newest in rows[-1].items():
        finite = [row[name] for row in rows if math.isfinite(row[name])]
        result[name] = newest if name in COUNTS else float(np.mean(finite)) if finite else math.nan
    return result
