"""Intervals and paired differences."""

import numpy as np
import pytest

from e3d_jax.evaluation import statistics


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    ends = np.array([statistics.interval(sample.tolist()) for sample in rng.normal(size=(60, 40))])
    assert 0.88 <= ((ends[:, 0] < 0) & (ends[:, 1] > 0)).mean() <= 0.99


def test_one_object_has_no_interval():
    assert statistics.interval([1.0]) is None


@pytest.mark.parametrize("best, good, bad", [(np.inf, 2.0, 1.0), (0.0, 1.0, 2.0), (1.0, 1.2, 0.5), (1.0, 0.9, 3.0)])
def test_better_scores_are_nearer_to_the_best(best, good, bad):
    assert statistics.loss(good, best) < statistics.loss(bad, best)


def test_only_common_objects_are_paired():
    pair = statistics.paired({"a": 1.0, "b": 5.0}, {"a": 3.0, "c": 0.0}, best=0.0)
    assert pair == {"difference": -2, "ci95": None, "objects": 1, "better": 1}
