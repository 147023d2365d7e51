"""Means over objects with bootstrap intervals, and paired differences between two systems."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 10_000


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return float(np.mean(values))


def interval(values: Sequence[float], seed: int = 0) -> list[float] | None:
    """Return the 95 % interval of the mean by the percentile bootstrap over objects; None for a single object."""
    if len(values) < 2:
        return None
    rng, array = np.random.default_rng(seed), np.asarray(values, np.float64)
    means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(1)
    return np.percentile(means, [2.5, 97.5]).tolist()


def loss(value: float, best: float) -> float:
    """Return how bad a score is.

    Args:
      value: the score.
      best: its best value: infinity if more is better, 0 if less is better; otherwise ratios to it count.
    """
    if math.isinf(best):
        return -value
    return value if best == 0 else abs(math.log(max(value, 1e-9) / best))


def paired(ours: Mapping[str, float], theirs: Mapping[str, float], best: float) -> dict[str, object]:
    """Return the differences of a score over the objects that both have.

    Args:
      ours: score by object.
      theirs: the same of another system.
      best: see :func:`loss`.

    Returns:
      ``difference`` (ours minus theirs, mean), its ``ci95``, ``objects`` that both have, and how many of these are
      ``better``.
    """
    common = sorted(ours.keys() & theirs.keys())
    differences = [ours[name] - theirs[name] for name in common]
    better = sum(loss(ours[name], best) < loss(theirs[name], best) for name in common)
    return {"difference": mean(differences), "ci95": interval(differences), "objects": len(common), "better": better}
