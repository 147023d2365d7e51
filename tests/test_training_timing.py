"""Times of steps leave out what is not part of one; traces hold the steps that were asked for."""

import pathlib
import types

import pytest

from e3d_jax.training import costs, timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_a_lap_is_the_mean_time_of_its_steps(clock):
    watch = timing.Stopwatch("compute")
    for _ in range(4):
        with watch.spending("input"):
            clock.now += 1
        clock.now += 2
        watch.step()
    assert watch.lap() == timing.Lap(step=3.0, input=1.0)


def test_a_lap_starts_where_the_last_one_ended(clock):
    watch = timing.Stopwatch("compute")
    clock.now += 100
    watch.step()
    watch.lap()
    clock.now += 5
    watch.step()
    assert watch.lap() == timing.Lap(step=5.0, input=0.0)


def test_only_computing_and_waiting_for_input_are_part_of_a_step(clock):
    watch = timing.Stopwatch("start")
    clock.now += 100
    watch.switch("compute")
    clock.now += 2
    with watch.spending("checkpoint"):
        clock.now += 50
    watch.step()
    assert watch.lap() == timing.Lap(step=2.0, input=0.0)


def test_every_second_of_a_run_is_spent_on_something(clock):
    watch = timing.Stopwatch("start")
    clock.now += 3
    with pytest.raises(OSError), watch.spending("checkpoint"):
        clock.now += 4
        raise OSError
    clock.now += 1
    assert watch.seconds == {"start": 4, "checkpoint": 4}


def test_without_steps_there_is_no_lap():
    assert timing.Stopwatch("compute").lap() is None


def test_throughput_is_per_device():
    device = types.SimpleNamespace(device_kind="cpu")
    rates = timing.throughput(timing.Lap(0.5, 0.1), batch_size=8, flops=4e12, devices=[device] * 2)
    assert (rates["time/step_ms"], rates["time/input_ms"]) == (500, 100)
    assert (rates["examples_per_second"], rates["tflops_per_device"]) == (16, 4)


def test_model_flops_utilization_is_a_fraction_of_the_published_flops():
    devices = [types.SimpleNamespace(device_kind="NVIDIA H200")]
    flops = costs.chip("NVIDIA H200").flops
    assert timing.throughput(timing.Lap(1.0, 0.0), 1, flops / 2, devices)["mfu"] == 0.5


@pytest.fixture
def traced(monkeypatch):
    """Steps of a run at which traces begin and end, from a profiler that writes none."""

    def run(steps, start=0, last=5):
        events, now = [], None

        class Trace:
            def __init__(self, folder): ...

            def __enter__(self):
                events.append(("begin", now))

            def __exit__(self, *_):
                events.append(("end", now))

        monkeypatch.setattr(timing.jax.profiler, "trace", Trace)
        profiler = timing.Profiler(pathlib.Path("profile"), steps, start)
        for now in range(start + 1, last + 1):
            profiler.begin_step(now)
            profiler.end_step(now, None)
        profiler.close()
        return events

    return run


def test_a_trace_goes_from_the_first_of_its_steps_to_the_last(traced):
    assert traced((2, 4)) == [("begin", 2), ("end", 4)]


def test_a_run_that_continues_traces_the_steps_that_are_left(traced):
    assert traced((2, 4), start=2) == [("begin", 3), ("end", 4)]


def test_steps_that_were_passed_are_not_traced(traced):
    assert traced((1, 2), start=2) == []


def test_without_steps_nothing_is_traced(traced):
    assert traced(None) == []


def test_a_run_that_stops_earlier_ends_its_trace(traced):
    assert traced((2, 4), last=3) == [("begin", 2), ("end", 3)]
