"""Rows of metrics summarize steps, and steps that are not finite end a run in time."""

import math

import jax.numpy as jnp
import pytest

from e3d_jax.training import metrics


def test_a_row_has_the_mean_of_each_metric():
    assert metrics.mean([{"loss": 1.0}, {"loss": 2.0}]) == {"loss": 1.5}


def test_steps_that_are_not_finite_do_not_spoil_the_mean():
    assert metrics.mean([{"loss": 1.0}, {"loss": math.nan}, {"loss": math.inf}]) == {"loss": 1.0}


def test_without_a_finite_step_there_is_no_mean():
    assert math.isnan(metrics.mean([{"loss": math.inf}])["loss"])


@pytest.mark.parametrize("name", ["skipped", "consecutive_skips"])
def test_counts_keep_their_last_value(name):
    assert metrics.mean([{name: 3.0}, {name: 1.0}]) == {name: 1.0}


def _buffer(*skips, rows=()):
    buffer = metrics.MetricsBuffer(rows)
    for index, count in enumerate(skips):
        buffer.add({"consecutive_skips": jnp.int32(count)}, [f"record-{index}"])
    return buffer


def test_metrics_become_plain_numbers():
    assert _buffer(2).fetch() == [{"consecutive_skips": 2.0}]


def test_metrics_that_a_run_had_not_written_are_kept():
    assert _buffer(2, rows=[{"consecutive_skips": 1.0}]).fetch() == [{"consecutive_skips": x} for x in (1.0, 2.0)]


def test_a_row_forgets_its_steps():
    buffer = _buffer(0, 0)
    buffer.clear()
    assert buffer.num_added == 0 and buffer.fetch() == []


def test_fewer_skips_than_the_limit_are_accepted():
    _buffer(1, 2, 0).check_finite("toy", 3, 3, [])


def test_too_many_skips_name_their_first_step_its_records_and_the_last_checkpoint():
    with pytest.raises(ValueError, match=r"2 times in a row, from step 12 on, .*record-1; .*checkpoint is step 10"):
        _buffer(0, 1, 2, 0).check_finite("toy", 14, 2, [5, 10])


def test_skips_that_began_before_the_last_row_name_the_first_records_since():
    with pytest.raises(ValueError, match=r"5 times in a row, from step 8 on, .*record-0; there is no checkpoint"):
        _buffer(4, 5).check_finite("toy", 12, 5, [])
