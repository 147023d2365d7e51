"""A run logs, leaves weights, and continues after whatever stopped it."""

import contextlib
import gc
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from e3d_jax.data import records
from e3d_jax.training import goodput, loop, restarts, runs, steps, writers
from e3d_jax.weights import folder
from tests import tiny, toy

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 300  # seconds after which a process is taken to hang

pytestmark = pytest.mark.usefixtures("toy_stages")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Records of the toy stages."""
    return str(toy.write_records(tmp_path_factory.mktemp("records")))


@pytest.fixture(scope="module")
def train(dataset):
    """Train a stage, the toy one if not given."""

    def train(config, workdir, init=None, stage="toy", **rest):
        loop.train(config, stage, str(workdir), {dataset: 1.0}, init and str(init), **rest)

    return train


@pytest.fixture(scope="module")
def finished(tmp_path_factory, train):
    """The work folder of a run of six steps, with a checkpoint of each, and its config."""
    config, workdir = toy.config(steps=6, checkpoint_every=1, log_every=4), tmp_path_factory.mktemp("finished")
    train(config, workdir)
    return workdir, config


def _all_rows(workdir, stage="toy"):
    return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def _rows(workdir, stage="toy"):
    """Rows of metrics without that of goodput, which ends a run."""
    return [row for row in _all_rows(workdir, stage) if "goodput/fraction" not in row]


def _losses(workdir):
    return [(row["step"], row["loss"]) for row in _rows(workdir)]


def _tensors(path, component="toy"):
    return {name: tensor.read() for name, tensor in folder.read(path, component).items()}


def _assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@contextlib.contextmanager
def _before_step(number, action):
    """Do something right before a step, counted from 1."""
    make = steps.make_train_step

    def make_interrupted(*arguments, **settings):
        step = make(*arguments, **settings)

        def run(state, *rest):
            if int(state.step) == number - 1:
                action()
            return step(state, *rest)

        run.trace = step.trace
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "make_train_step", make_interrupted)
        yield


def _cut_power():
    raise RuntimeError("power cut")


def _terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_writes_metrics_every_few_steps_and_after_the_last(finished):
    assert [row["step"] for row in _rows(finished[0])] == [4, 6]


def test_a_run_measures_its_speed(finished):
    assert all(row["time/step_ms"] > row["time/input_ms"] > 0 for row in _rows(finished[0]))


def test_a_run_leaves_weights(finished):
    workdir, config = finished
    assert folder.has(workdir / "weights", "toy")
    assert folder.read_config(workdir / "weights")["toy"].model == config["toy"].model


def test_a_run_continues_where_it_stopped(finished, train, tmp_path):
    workdir, config = finished
    with _before_step(4, _cut_power), pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path)
    train(config, tmp_path)
    assert _losses(tmp_path) == _losses(workdir)


def test_a_run_ends_with_what_its_time_was_spent_on(finished):
    row = _all_rows(finished[0])[-1]
    assert row["step"] == 6 and 0 < row["goodput/fraction"] < 1
    assert all(row[f"goodput/{kind}_s"] > 0 for kind in ("start", "compile", "compute", "input", "checkpoint"))


def test_steps_lost_in_a_crash_are_counted(finished, train, tmp_path):
    config = toy.config(steps=6, checkpoint_every=2, log_every=1)
    with _before_step(6, _cut_power), pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path)
    train(config, tmp_path)
    row = _all_rows(tmp_path)[-1]
    assert (row["goodput/restarts"], row["goodput/lost_steps"]) == (1, 1)


def test_garbage_is_collected_again_after_a_run_that_failed(finished, train, tmp_path):
    with _before_step(3, _cut_power), pytest.raises(RuntimeError, match="power cut"):
        train(finished[1], tmp_path)
    assert gc.get_freeze_count() == 0


def test_what_tracing_left_is_not_searched_for_garbage_while_a_run_lasts(train, tmp_path, monkeypatch):
    searched, write = [], writers.JsonLines.write

    def counting(*row):
        searched.append(len(gc.get_objects()))
        write(*row)

    monkeypatch.setattr(writers.JsonLines, "write", counting)
    train(toy.config(), tmp_path)
    assert searched[0] < 10_000  # Imports and tracing alone leave many times as many.
    assert gc.get_freeze_count() == 0


def test_a_start_that_fails_leaves_the_work_folder_to_others(finished, train, tmp_path):
    for name in ("innr", "outr"):
        with pytest.raises(ValueError, match=f"freeze names {name}, which"):
            train(toy.config(freeze=[name]), tmp_path, finished[0] / "weights")


def test_learning_rate_multipliers_must_match_a_parameter(train, tmp_path):
    with pytest.raises(ValueError, match="lr_multipliers names iner, but no parameter of the toy in training"):
        train(toy.config(lr_multipliers={"iner": 2.0}), tmp_path)


def test_a_run_of_constant_learning_rate_is_made_longer(train, tmp_path):
    for count in (2, 4):
        train(toy.config(lr_schedule="constant", steps=count), tmp_path)
    assert [row["step"] for row in _rows(tmp_path)] == [2, 4]


def test_a_damaged_record_is_reported_with_its_dataset(tmp_path):
    path = toy.write_records(tmp_path / "records", padding=1000)
    shard = path / "toys.array_record"
    data = bytearray(shard.read_bytes())
    inside = data.index(toy.padding_of(2, 1000)[500:516])
    data[inside : inside + 64] = bytes(64)
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path}: record 2 of toys.array_record cannot be used: .*write it again"):
        loop.train(toy.config(), "toy", str(tmp_path / "run"), {str(path): 1.0})


@pytest.fixture(scope="module")
def started(finished, train, tmp_path_factory):
    """Weights that a stage started from, where it ended after a step that changes nothing, and its config."""
    config, init, out = toy.config(learning_rate=0.0, steps=1), *map(tmp_path_factory.mktemp, ("init", "started"))
    trained = folder.read(finished[0] / "weights", "toy")
    for name in ("toy", "user"):
        folder.write(init, name, trained, config, 10**9)
    train(config, out, init, "user")
    return init, out / "weights", config


@pytest.mark.parametrize("component", ["toy", "user"])
def test_a_stage_and_what_it_needs_start_from_a_weights_folder(started, component):
    init, out, _ = started
    _assert_equal(_tensors(init, component), _tensors(out, component))


def test_a_folder_of_another_architecture_is_not_a_start(started, tmp_path, dataset):
    config = toy.config(model={"scale": 2.0})  # Of the same shapes.
    with pytest.raises(ValueError, match=r"another architecture: toy\.model\.linear\.scale is 1\.0 there and 2\.0"):
        runs.check_run(config, "toy", str(tmp_path), {dataset: 1.0}, str(started[0]))


def test_a_folder_without_the_stage_is_not_a_start(finished, tmp_path, dataset):
    workdir, config = finished
    with pytest.raises(FileNotFoundError, match="has no weights of component user"):
        runs.check_run(config, "user", str(tmp_path), {dataset: 1.0}, str(workdir / "weights"))


def test_a_run_that_continues_does_without_its_start(finished, dataset):
    workdir, config = finished
    runs.check_run(config, "toy", str(workdir), {dataset: 1.0}, "gone")


def test_sigterm_saves_the_step_and_the_run_continues_bit_for_bit(finished, train, tmp_path, capsys):
    workdir, _ = finished
    config = toy.config(steps=6, checkpoint_every=100, log_every=4)
    with _before_step(3, _terminate):
        train(config, tmp_path)
    assert "stopped after step 3 of 6" in capsys.readouterr().out
    train(config, tmp_path)
    assert _losses(tmp_path) == _losses(workdir)
    _assert_equal(_tensors(tmp_path / "weights"), _tensors(workdir / "weights"))


def test_a_damaged_checkpoint_is_skipped_and_another_mesh_continues(finished, train, tmp_path):
    workdir, _ = finished
    mesh = {"mesh": {"data": 1, "fsdp": 2, "tensor": 2}}
    with _before_step(5, _terminate):
        train(toy.config(system=mesh, steps=6, checkpoint_every=1, log_every=4), tmp_path)
    for file in (tmp_path / "toy" / "checkpoints" / "5" / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    train(toy.config(steps=6, checkpoint_every=1, log_every=4), tmp_path)
    np.testing.assert_allclose(_losses(tmp_path), _losses(workdir), rtol=1e-5)
    assert (tmp_path / "toy" / "checkpoints" / "damaged-5").exists()


def test_a_checkpoint_of_another_model_is_refused_and_stays(finished, train, tmp_path):
    checkpoints = finished[0] / "toy" / "checkpoints"
    with pytest.raises(ValueError, match=r"belongs to another model: .* arrays differ"):
        train(toy.config(model={"features": 8}), tmp_path, checkpoints=str(checkpoints))
    assert (checkpoints / "6").exists()


def test_losses_that_stay_infinite_end_the_run_and_name_its_records(train, tmp_path):
    config = toy.config(learning_rate=1e30, max_consecutive_skips=2, checkpoint_every=1, warmup_steps=0)
    with pytest.raises(ValueError, match=r"3 times in a row, from step 2 on, with .* toy-\d.* checkpoint is step \d"):
        train(config, tmp_path)


def test_a_batch_must_divide_over_the_devices_before_anything_is_written(train, tmp_path):
    with pytest.raises(ValueError, match="batch_size=6 does not divide over 4 devices"):
        train(toy.config(batch_size=6), tmp_path)
    assert not (tmp_path / "toy").exists()


def test_held_out_objects_are_evaluated_every_few_steps_and_after_the_last(train, tmp_path, dataset):
    train(toy.config(steps=3, evaluate_every=2), tmp_path, heldout=dataset)
    assert [row["step"] for row in _rows(tmp_path) if "heldout/loss" in row] == [2, 3]


def test_some_steps_are_traced(train, tmp_path):
    train(toy.config(), tmp_path, profile=(2, 3))
    assert list((tmp_path / "toy" / "profile").rglob("*.trace.json.gz"))


def test_what_is_not_trained_stays_and_a_complete_run_writes_the_same_weights(finished, train, tmp_path):
    workdir, _ = finished
    config = toy.config(freeze=["inner"], steps=2, checkpoint_every=1)
    for _ in range(2):  # The second call finds the run complete.
        train(config, tmp_path, workdir / "weights")
        before, after = (_tensors(path / "weights") for path in (workdir, tmp_path))
        np.testing.assert_array_equal(before["inner.kernel"], after["inner.kernel"])
        assert not np.array_equal(before["outer.kernel"], after["outer.kernel"])


@pytest.fixture(scope="module")
def estimator(tmp_path_factory, ball_folder):
    """The work folder of a network of the project, trained on balls and evaluated on them."""
    workdir, balls = tmp_path_factory.mktemp("estimator"), str(ball_folder)
    loop.train(tiny.config(steps=2, evaluate_every=1), "normals", str(workdir), {balls: 1.0}, heldout=balls)
    return workdir


@pytest.mark.slow
def test_the_normal_estimator_is_trained(estimator):
    assert folder.has(estimator / "weights", "normals")


@pytest.mark.slow
def test_the_normal_estimator_is_evaluated(estimator):
    scores = [row["heldout/angle_deg"] for row in _rows(estimator, "normals") if "heldout/angle_deg" in row]
    assert len(scores) == 2 and all(0 < score < 180 for score in scores)


def _processes_of(group):
    """Return whether there are any, after ten seconds at most."""
    with contextlib.suppress(ProcessLookupError):
        for _ in range(100):
            os.killpg(group, 0)
            time.sleep(0.1)
        return True
    return False


def test_a_second_run_in_the_same_folder_is_refused(train, tmp_path):
    def start_again():
        with pytest.raises(ValueError, match="in use by process"):
            train(toy.config(), tmp_path)

    with _before_step(2, start_again):
        train(toy.config(), tmp_path)
    assert [row["step"] for row in _rows(tmp_path)] == [2, 4]


def test_skipped_records_are_counted(tmp_path):
    data = toy.write_records(tmp_path / "data", count=8)
    with records.Writer(data / "dust.array_record") as writer:
        writer.write(b"dust")
    with pytest.warns(UserWarning, match="record 0 of dust"):
        loop.train(toy.config(max_bad_records=1, steps=6), "toy", str(tmp_path), {str(data): 1.0})
    assert _rows(tmp_path)[-1]["bad_records"] == 1


@pytest.fixture
def busy(tmp_path, ball_folder):
    """A process that trains for long, with loader processes, in a process group of its own."""
    changes = {"loader_workers": 2, "batch_size": 4, "steps": 10**6, "checkpoint_every": 10**6, "log_every": 1}
    command = [sys.executable, "train.py", "--config=mini:smoke", "--config.size=32", "--stage=normals"]
    command += [f"--workdir={tmp_path}", f"--data={ball_folder}"]
    command += [f"--config.normals.train.{name}={value}" for name, value in changes.items()]
    run = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True)
    rows = tmp_path / "normals" / "metrics.jsonl"
    end = time.monotonic() + PATIENCE
    while run.poll() is None and time.monotonic() < end and not (rows.exists() and rows.read_text()):
        time.sleep(0.1)
    assert run.poll() is None, "it ended before its first row of metrics"
    yield run
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.slow
def test_sigterm_to_workers_too_saves_the_step_and_ends_them(busy):
    os.killpg(busy.pid, signal.SIGTERM)
    printed, _ = busy.communicate(timeout=PATIENCE)
    assert busy.returncode == 0 and "which is saved" in printed
    assert not _processes_of(busy.pid)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(busy):
    busy.kill()
    busy.wait()
    assert not _processes_of(busy.pid)


def _begin(*calls, **output):
    """Begin processes of a run (tests/tiny_run.py)."""
    program, environment = str(ROOT / "tests" / "tiny_run.py"), os.environ | {"PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, program, *map(str, call)] for call in calls]
    return [subprocess.Popen(command, env=environment, **output) for command in commands]


def _port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path, dataset):
    port, two = _port(), [tmp_path / "two", dataset, 3, 2, -1, 1, 2]
    begun = _begin([tmp_path / "one", dataset, 3, 4, -1, 1], [*two, 0, port], [*two, 1, port])
    assert [process.wait(PATIENCE) for process in begun] == [0, 0, 0]
    one, two = (_losses(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_those_that_are_left_continue(tmp_path, dataset):
    port, count, (hurt, whole) = _port(), 100, (tmp_path / name for name in ("hurt", "whole"))
    call = [hurt, dataset, count, 4, 2, 4]
    others = _begin([*call, 2, 0, port], [*call, 2, 1, port], stderr=subprocess.PIPE, text=True)
    rows, end = hurt / "toy" / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (rows.exists() and len(rows.read_text().splitlines()) > 5):
        assert others[0].poll() is None and time.monotonic() < end
        time.sleep(0.01)
    others[1].kill()
    _, said = others[0].communicate(timeout=PATIENCE)
    assert others[0].returncode != 0
    assert "another process may be gone" in said or "another task died" in said
    others[1].communicate()

    # The same settings on half of the devices, and an undisturbed run.
    (left,) = _begin(call, stdout=subprocess.PIPE, text=True)
    begun = _begin([whole, dataset, count, 4, -1, 1])
    printed, _ = left.communicate(timeout=PATIENCE)
    assert "continuing on a mesh of fsdp=4" in printed
    assert [left.returncode, begun[0].wait(PATIENCE)] == [0, 0]
    first = goodput.read(hurt / "toy")[1].first
    losses, wanted = (_losses(path)[: first + 20] for path in (hurt, whole))
    np.testing.assert_allclose(losses, wanted, rtol=1e-2)  # Other data would give quite another loss.


@pytest.mark.slow
def test_kills_at_random_times_change_nothing(tmp_path, dataset):
    hurt, whole, random = tmp_path / "hurt", tmp_path / "whole", np.random.default_rng(0)
    call = [dataset, 60, 4, -1, 1]

    def kill():
        """Kill the process that holds the run, each time after some more steps."""
        for step in (5, 20, 35):
            while goodput.last_step(hurt / "toy") < step:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.3))
            os.kill(json.loads((hurt / "toy" / "lock.json").read_text())["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    command = [sys.executable, str(ROOT / "tests" / "tiny_run.py"), str(hurt), *map(str, call)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        assert restarts.supervise(command, 5, lambda: goodput.last_step(hurt / "toy")) == 0
    killer.join()
    assert len(goodput.read(hurt / "toy")) == 4
    (process,) = _begin([whole, *call])
    assert process.wait() == 0
    assert _losses(hurt) == _losses(whole)
    _assert_equal(_tensors(hurt / "weights"), _tensors(whole / "weights"))
