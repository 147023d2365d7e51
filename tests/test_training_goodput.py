"""The time of a run is divided among what it was spent on, over all its restarts."""

import pytest

from e3d_jax.training import goodput, timing


def _attempt(first, last, began=0.0, ended=0.0, complete=False, **seconds):
    return goodput.Attempt(first, last, began, ended, complete, seconds)


def test_goodput_is_the_fraction_of_computing():
    found = goodput.summary([_attempt(0, 10, complete=True, compute=6.0, input=1.0, checkpoint=2.0, start=3.0)])
    assert found["goodput/fraction"] == 0.5
    assert (found["goodput/input_s"], found["goodput/checkpoint_s"], found["goodput/start_s"]) == (1, 2, 3)
    assert (found["goodput/restarts"], found["goodput/lost_steps"]) == (0, 0)


def test_steps_that_are_taken_again_are_lost():
    found = goodput.summary([_attempt(0, 10, compute=20.0), _attempt(8, 12, compute=8.0)])
    assert (found["goodput/lost_steps"], found["goodput/lost_s"], found["goodput/compute_s"]) == (2, 4, 24)


def test_an_attempt_may_lose_more_than_the_next_one_took():
    attempts = [_attempt(0, 10, compute=10.0), _attempt(8, 9, compute=1.0), _attempt(4, 10, compute=6.0)]
    found = goodput.summary(attempts)
    assert (found["goodput/lost_steps"], found["goodput/lost_s"]) == (7, 7)


def test_the_time_between_a_crash_and_the_next_start_counts():
    attempts = [_attempt(0, 4, 0.0, 10.0, start=10.0), _attempt(4, 8, 15.0, 25.0, complete=True, start=10.0)]
    assert goodput.summary(attempts)["goodput/down_s"] == 5


def test_the_time_after_a_complete_run_does_not_count():
    attempts = [_attempt(0, 4, 0.0, 10.0, complete=True), _attempt(4, 8, 1e6, 1e6 + 10, complete=True)]
    assert goodput.summary(attempts)["goodput/down_s"] == 0


def test_an_attempt_follows_those_before_it(tmp_path):
    for first in (0, 4):
        record = goodput.Record(tmp_path, first, timing.Stopwatch("start"))
        record.write(first + 4)
    assert [(attempt.first, attempt.last) for attempt in goodput.read(tmp_path)] == [(0, 4), (4, 8)]
    assert set(goodput.read(tmp_path)[0].seconds) == set(goodput.KINDS)


@pytest.mark.parametrize("damage", ["[{", "[{}]", "3"])
def test_a_damaged_file_stops_nothing(tmp_path, damage):
    (tmp_path / goodput.NAME).write_text(damage)
    with pytest.warns(UserWarning, match=r"goodput\.json cannot be read"):
        assert goodput.read(tmp_path) == []
