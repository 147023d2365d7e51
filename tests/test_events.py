"""Events of a run, its listeners, and its end."""

import threading

import pytest

from e3d_jax import events


def run(listener):
    """Two stages; the second makes a text."""
    clock = events.Clock(listener)
    with clock.stage("first", 2) as stage:
        stage.advance(1)
        stage.advance(1)
    with clock.stage("second", 1) as stage:
        stage.value = "text"
    return clock


@pytest.fixture(scope="module")
def reported():
    found = []
    run(found.append)
    return found


def test_steps_count_from_none_to_all(reported):
    steps = [event for event in reported if isinstance(event, events.Step) and event.stage == "first"]
    assert [(step.done, step.total) for step in steps] == [(0, 2), (1, 2), (2, 2)]


def test_stages_end_with_what_they_made(reported):
    ends = [event for event in reported if isinstance(event, events.Done)]
    assert [(end.stage, end.value) for end in ends] == [("first", None), ("second", "text")]


def test_a_clock_has_time_and_memory_of_each_stage():
    clock = run(events.ignore)
    assert list(clock.seconds) == list(clock.peak_memory) == ["first", "second"]
    assert clock.peak_memory["second"] > 0


def test_bars_reach_their_ends(capsys):
    run(events.Bars())
    printed = capsys.readouterr().err
    assert "first" in printed and "2/2" in printed and "second" in printed and "1/1" in printed


def test_a_stream_yields_reports_and_then_the_result():
    assert list(events.stream(lambda report: [report(1), report(2), 3][-1])) == [1, 2, 3]


def test_a_stream_raises_what_the_work_raises():
    def work(report):
        report(1)
        raise ValueError("no object")

    found = events.stream(work)
    assert next(found) == 1
    with pytest.raises(ValueError, match="no object"):
        next(found)


def test_closing_a_stream_ends_the_work_at_its_next_report():
    closing, reached = threading.Event(), []

    def work(report):
        report(1)
        closing.wait(10)
        reached.append("before")
        report(2)
        reached.append("after")

    found = events.stream(work)
    next(found)
    threading.Timer(0.2, closing.set).start()
    found.close()
    assert reached == ["before"]
