"""A run that logs, leaves weights, and continues after whatever stopped it."""

import contextlib
import gc
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import mini
from e3d_jax.models import autoencoder
from e3d_jax.training import checkpoints, export, loop, losses, watching
from e3d_jax.weights import folder
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ball_folder):
    """A work folder in which the toy normal estimator was trained for its four steps."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny.config()
    loop.train("normals", config, str(workdir), {str(ball_folder): 1.0})
    return workdir, config, ball_folder


def _metrics(workdir):
    return [json.loads(line) for line in (workdir / "normals" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_and_leaves_weights(trained):
    workdir, _, _ = trained
    assert [row["step"] for row in _metrics(workdir)] == [2, 4]
    assert "normals" in folder.read_config(workdir / "weights")


def test_a_run_continues_where_it_stopped(trained, tmp_path):
    workdir, config, records = trained
    half = json.loads(json.dumps(config))
    interrupted = {**half["normals"]["train"], "steps": 4}
    stop = RuntimeError("power cut")

    # Interrupt after the checkpoint of step 2, then run again.
    save = loop.steps.make_train_step

    def failing(*arguments, **settings):
        step = save(*arguments, **settings)

        def run(state, *rest):
            if int(state.step) == 3:
                raise stop
            return step(state, *rest)

        run.trace = step.trace
        return run

    half["normals"]["train"] = interrupted
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(loop.steps, "make_train_step", failing)
        loop.train("normals", half, str(tmp_path), {str(records): 1.0})
    assert gc.get_freeze_count() == 0
    loop.train("normals", half, str(tmp_path), {str(records): 1.0})
    assert _metrics(tmp_path)[-1]["loss"] == _metrics(workdir)[-1]["loss"]


def test_what_tracing_left_is_not_searched_for_garbage_while_a_run_lasts(trained, tmp_path, monkeypatch):
    _, config, records = trained
    searched, write = [], loop.watching.Writer.write

    def counting(*row):
        searched.append(len(gc.get_objects()))
        write(*row)

    monkeypatch.setattr(loop.watching.Writer, "write", counting)
    loop.train("normals", config, str(tmp_path), {str(records): 1.0})
    assert searched[0] < 10_000  # A step was traced by then, which leaves several times as many.
    assert gc.get_freeze_count() == 0


def test_a_work_folder_of_another_config_is_refused(trained):
    workdir, config, records = trained
    other = json.loads(json.dumps(config))
    other["normals"]["train"]["learning_rate"] = 1.0
    with pytest.raises(ValueError, match=r"another config: train\.learning_rate is .* there and 1\.0 in the given"):
        loop.train("normals", other, str(workdir), {str(records): 1.0})


def test_a_work_folder_of_another_seed_is_refused(trained):
    workdir, config, records = trained
    with pytest.raises(ValueError, match="another config: seed is 0 there and 9"):
        loop.train("normals", config | {"seed": 9}, str(workdir), {str(records): 1.0})


def test_a_start_that_fails_leaves_the_work_folder_to_others(trained, tmp_path, ball_folder):
    init = str(trained[0] / "weights")
    for name in ("conv_on", "conv_im"):
        with pytest.raises(ValueError, match=f"freeze names {name}, which"):
            loop.train("normals", tiny.config(freeze=[name]), str(tmp_path), {str(ball_folder): 1.0}, init)


def test_what_is_to_learn_faster_must_exist(tmp_path, ball_folder):
    with pytest.raises(ValueError, match="faster names conv_im, of which the normals trains nothing"):
        loop.train("normals", tiny.config(faster={"conv_im": 2.0}), str(tmp_path), {str(ball_folder): 1.0})


def test_a_config_that_no_system_can_have_is_not_trained(tmp_path, ball_folder):
    config = tiny.config()
    config["anchor"]["sampling"]["sampler"] = "ddpm"
    with pytest.raises(ValueError, match="sampler is 'ddpm'; expected one of"):
        loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0})


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_a_run_is_made_longer_where_its_rate_does_not_depend_on_that(tmp_path, ball_folder, decay):
    train = lambda steps: loop.train(  # noqa: E731
        "normals", tiny.config(decay=decay, steps=steps), str(tmp_path), {str(ball_folder): 1.0}
    )
    train(2)
    with contextlib.nullcontext() if decay == "constant" else pytest.raises(ValueError, match=r"steps is 2 there"):
        train(4)
    assert _metrics(tmp_path)[-1]["step"] == (4 if decay == "constant" else 2)


def _said(*command, **environment):
    """The output of a Python program in the repository, and the last line of its errors."""
    root, environment = pathlib.Path(__file__).parents[1], os.environ | environment
    run = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
    return run.stdout.strip(), run.stderr.strip().splitlines()[-1:]


@pytest.mark.parametrize(
    ("local", "given", "visible"),
    [("0", {}, "all"), ("3", {}, "all"), ("3", {"JAX_CUDA_VISIBLE_DEVICES": "0,1"}, "0,1")],
)
def test_a_process_under_slurm_has_the_gpus_that_slurm_shows_it(local, given, visible):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    slurm = {"JOB_ID": "1", "NTASKS": "1", "PROCID": "0", "LOCALID": local, "STEP_NODELIST": "localhost"}
    slurm = {f"SLURM_{name}": value for name, value in slurm.items()} | {"JAX_COORDINATOR_ADDRESS": address}
    code = "import jax, train; train.flags.FLAGS(['', '--stage=normals', '--workdir=run', '--distributed']); "
    code += "train._join(); print(jax.config.values['jax_cuda_visible_devices'])"
    assert _said("-c", code, **slurm, **given)[0] == visible


def test_a_bucket_is_no_work_folder():
    command = ("train.py", "--config=configs/mini.py:smoke", "--stage=normals", "--workdir=gs://bucket/run")
    assert _said(*command)[1] == [
        "train.py: gs://bucket/run is no local folder; mount the bucket: only --checkpoints may be elsewhere"
    ]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("accumulate", 0, "1 or more"),
        ("log_every", 0, "1 or more"),
        ("steps", 0, "1 or more"),
        ("learning_rate", float("nan"), "0 or more"),
        ("remat", "most", "one of none, full, dots"),
        ("decay", "slow", "one of cosine, constant"),
        ("optimizer", "sgd", "one of adamw, muon"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(name, value, expected, tmp_path, ball_folder):
    with pytest.raises(ValueError, match=rf"normals\.train\.{name} is {value!r}; expected {expected}"):
        loop.train("normals", tiny.config(**{name: value}), str(tmp_path), {str(ball_folder): 1.0})


@pytest.mark.parametrize("profile", [(0, 1), (3, 2), (4, 5)])
def test_steps_that_are_not_taken_cannot_be_traced(profile, tmp_path, ball_folder):
    with pytest.raises(ValueError, match="expected some of 1 to 4"):
        loop.train("normals", tiny.config(), str(tmp_path), {str(ball_folder): 1.0}, profile=profile)


def test_a_shard_that_is_damaged_inside_is_told(tmp_path, ball_folder):
    data = bytearray((ball_folder / "balls-0.array_record").read_bytes())
    records = tmp_path / "records"
    records.mkdir()
    data[len(data) // 4 : len(data) // 4 + 64] = bytes(64)  # Inside the third record.
    (records / "balls.array_record").write_bytes(data)
    with pytest.raises(ValueError, match=f"{records}: a record cannot be read .*write that shard anew"):
        loop.train("normals", tiny.config(), str(tmp_path / "run"), {str(records): 1.0})


def test_a_stage_names_what_must_be_trained_first(tmp_path, ball_folder):
    with pytest.raises(FileNotFoundError, match=r"train\.py"):
        loop.train("anchor", mini.get_config("smoke").to_dict() | {"size": 32}, str(tmp_path), {str(ball_folder): 1.0})


@pytest.fixture(scope="module")
def started(trained, tmp_path_factory):
    """Where a stage started from, where it ended after a step that changes nothing, and its config."""
    workdir, config, records = trained
    init, out = tmp_path_factory.mktemp("init"), tmp_path_factory.mktemp("started")
    config = json.loads(json.dumps(config))
    config["normals"]["train"] |= {"learning_rate": 0.0, "steps": 1}
    config["autoencoder"]["model"] |= {"block_out_channels": [8, 8], "norm_groups": 4}
    folder.write(init, "normals", folder.read(workdir / "weights", "normals"), config, 10**9)
    module = autoencoder.Autoencoder(**config["autoencoder"]["model"], rngs=nnx.Rngs(0))
    folder.save(init, "autoencoder", module, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.NEEDS, "normals", ("autoencoder",))
        loop.train("normals", config, str(out), {str(records): 1.0}, str(init))
    return init, out / "weights", config


@pytest.mark.parametrize("component", ["normals", "autoencoder"])
def test_a_stage_and_what_it_needs_start_from_a_weights_folder(started, component):
    init, out, _ = started
    there, here = ({n: tensor.read() for n, tensor in folder.read(path, component).items()} for path in (init, out))
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_a_folder_of_another_architecture_is_no_start(started, tmp_path, ball_folder):
    init, _, config = started
    config = json.loads(json.dumps(config))
    config["normals"]["model"] |= {"heads": 4}  # Of the same shapes.
    with pytest.raises(ValueError, match=r"another architecture: normals\.model\.heads is 2 there and 4"):
        loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0}, str(init))


def test_a_folder_without_the_stage_is_no_start(started, tmp_path, ball_folder):
    init, _, config = started
    with pytest.raises(FileNotFoundError, match="holds no weights of the interpolation"):
        loop.train("interpolation", config, str(tmp_path), {str(ball_folder): 1.0}, str(init))


def _losses(workdir):
    return [(row["step"], row["loss"]) for row in _metrics(workdir)]


@pytest.fixture(scope="module")
def long(tmp_path_factory, ball_folder):
    """A run of six steps with a checkpoint each, and its config."""
    config = tiny.config(steps=6, checkpoint_every=1, log_every=4)
    workdir = tmp_path_factory.mktemp("long")
    loop.train("normals", config, str(workdir), {str(ball_folder): 1.0})
    return workdir, config


def _interrupted(config, tmp_path, records, step):
    """Train with SIGTERM in the middle of a step."""
    make = loop.steps.make_train_step

    def terminating(*arguments, **settings):
        original = make(*arguments, **settings)

        def run(state, *rest):
            if int(state.step) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(state, *rest)

        run.trace = original.trace
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.steps, "make_train_step", terminating)
        loop.train("normals", config, str(tmp_path), {str(records): 1.0})


def test_sigterm_saves_the_step_and_the_run_continues_bit_for_bit(long, tmp_path, ball_folder, capsys):
    workdir, config = long
    config = {
        **config,
        "normals": {**config["normals"], "train": {**config["normals"]["train"], "checkpoint_every": 100}},
    }
    _interrupted(config, tmp_path, ball_folder, 2)
    assert "stopped after step 3 of 6" in capsys.readouterr().out
    loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0})
    assert _losses(tmp_path) == _losses(workdir)
    there, here = (folder.read(path / "weights", "normals") for path in (workdir, tmp_path))
    assert all(np.array_equal(there[name].read(), here[name].read()) for name in there)


def _processes_of(group):
    """Whether there are any, for ten seconds at most."""
    with contextlib.suppress(ProcessLookupError):
        for _ in range(100):
            os.killpg(group, 0)
            time.sleep(0.1)
        return True
    return False


@pytest.fixture
def busy(tmp_path, ball_folder):
    """A process that trains for long, with workers, in a group of its own."""
    root = pathlib.Path(__file__).parents[1]
    settings = {"workers": 2, "batch_size": 4, "steps": 10**6, "checkpoint_every": 10**6, "log_every": 1}
    command = [sys.executable, "train.py", "--config=configs/mini.py:smoke", "--config.size=32", "--stage=normals"]
    command += [f"--workdir={tmp_path}", f"--records={ball_folder}"]
    command += [f"--config.normals.train.{name}={value}" for name, value in settings.items()]
    run = subprocess.Popen(command, cwd=root, start_new_session=True, stdout=subprocess.PIPE, text=True)
    rows = tmp_path / "normals" / "metrics.jsonl"
    while run.poll() is None and not (rows.exists() and rows.read_text()):
        time.sleep(0.1)
    yield run
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.slow
def test_sigterm_to_workers_too_saves_the_step_and_ends_them(busy):
    os.killpg(busy.pid, signal.SIGTERM)
    printed, _ = busy.communicate(timeout=60)
    assert busy.returncode == 0 and "which is saved" in printed
    assert not _processes_of(busy.pid)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(busy):
    busy.kill()
    busy.wait()
    assert not _processes_of(busy.pid)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped_and_another_mesh_continues(long, tmp_path, ball_folder):
    workdir, config = long
    config = {**config, "mesh": {"data": 1, "fsdp": 2, "tensor": 2}}
    _interrupted(config, tmp_path, ball_folder, 4)
    for file in (tmp_path / "normals" / "checkpoints" / "5" / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0})
    np.testing.assert_allclose(_losses(tmp_path), _losses(workdir), rtol=1e-5)
    assert (tmp_path / "normals" / "checkpoints" / "damaged-5").exists()


def test_a_save_is_of_its_moment_however_slow_the_storage(tmp_path, monkeypatch):
    dumps = json.dumps

    def slowly(*arguments, **settings):
        time.sleep(0.2)
        return dumps(*arguments, **settings)

    monkeypatch.setattr(json, "dumps", slowly)
    kept, state, recent = checkpoints.Checkpoints(str(tmp_path), 1, 0), {"x": jnp.zeros(2)}, [{"loss": 1.0}]
    kept.save(1, state, {"recent": recent})
    recent.append({"loss": 2.0})
    kept.finish()
    assert kept.restore(state)[1] == {"recent": [{"loss": 1.0}]}
    kept.close()


def test_checkpoints_that_are_all_damaged_stop_the_run_and_stay(tmp_path):
    kept, state = checkpoints.Checkpoints(str(tmp_path), 2, 0), {"x": jnp.zeros(2)}
    for step in (1, 2):
        kept.save(step, state, {})
        kept.finish()
        for file in (tmp_path / str(step) / "state").rglob("*"):
            if file.is_file():
                os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"no checkpoint can be read \(step 2: .*; step 1: .*choose another folder"):
        kept.restore(state)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
    kept.close()


def test_metrics_on_a_full_disk_end_the_run(tmp_path, full_disk):
    writer = watching.Writer(tmp_path, 0)
    with pytest.raises(OSError, match=rf"cannot write {tmp_path} .*check the folder, its space"):
        for step in range(100):
            writer.write(step, {"loss": 0.0})


def test_a_checkpoint_of_another_model_is_refused(long, tmp_path, ball_folder):
    workdir, config = long
    config = json.loads(json.dumps(config))
    config["normals"]["model"]["block_out_channels"] = [16]
    with pytest.raises(ValueError, match=r"of another model: .* arrays differ"):
        loop.train(
            "normals",
            config,
            str(tmp_path),
            {str(ball_folder): 1.0},
            checkpoints=str(workdir / "normals" / "checkpoints"),
        )
    assert (workdir / "normals" / "checkpoints" / "6").exists(), "a checkpoint that is only another is no damaged one"


def test_losses_that_stay_infinite_end_the_run(tmp_path, ball_folder):
    config = tiny.config(learning_rate=float("inf"), max_skipped=2, checkpoint_every=1, warmup=0)
    with pytest.raises(ValueError, match=r"3 times in a row, from step 2 on, with .* ball-\d.* checkpoint is step \d"):
        loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0})


def test_a_batch_must_divide_over_the_devices(tmp_path, ball_folder):
    with pytest.raises(ValueError, match="batch_size=6 does not divide over 4 devices"):
        loop.train("normals", tiny.config(batch_size=6), str(tmp_path), {str(ball_folder): 1.0})
    assert not (tmp_path / "normals" / "checkpoints").exists(), "what writes checkpoints was started for nothing"


def test_unseen_objects_are_evaluated(tmp_path, ball_folder):
    config = tiny.config(steps=2, evaluate_every=1)
    loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0}, unseen=str(ball_folder))
    scores = [row["heldout/angle_deg"] for row in _metrics(tmp_path) if "heldout/angle_deg" in row]
    assert len(scores) == 2 and all(0 < score < 180 for score in scores)


def test_a_stage_that_the_config_does_not_train(tmp_path, ball_folder):
    config = tiny.config()
    del config["normals"]["train"]
    with pytest.raises(ValueError, match="does not say how to train the normals"):
        loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0})


def test_weights_of_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of checkpoints"):
        export.export(tiny.config(), "normals", str(tmp_path / "typo"), None, str(tmp_path / "out"))
    assert not (tmp_path / "typo").exists()


def test_any_checkpoint_gives_weights(long, tmp_path, monkeypatch):
    workdir, config = long
    monkeypatch.chdir(workdir)
    checkpoints = "normals/checkpoints"
    assert export.export(config, "normals", checkpoints, 5, str(tmp_path / "earlier")) == 5
    assert export.export(config, "normals", checkpoints, None, str(tmp_path / "newest")) == 6
    five, six, end = (
        folder.read(path, "normals")["conv_in.kernel"].read()
        for path in (tmp_path / "earlier", tmp_path / "newest", workdir / "weights")
    )
    np.testing.assert_array_equal(six, end)
    assert not np.array_equal(five, six)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path, ball_folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    calls = [["one", 4], ["two", 2, 2, 0, port], ["two", 2, 2, 1, port]]
    root = pathlib.Path(__file__).parent
    started = [
        subprocess.Popen(
            [sys.executable, str(root / "tiny_run.py"), str(tmp_path / name), str(ball_folder), "3", *map(str, rest)],
            env=os.environ | {"PYTHONPATH": str(root.parent)},
        )
        for name, *rest in calls
    ]
    assert [process.wait() for process in started] == [0, 0, 0]
    one, two = (_losses(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_what_is_not_trained_must_come_from_somewhere(tmp_path, ball_folder):
    with pytest.raises(ValueError, match=r"does not train its conv_in; say with --init"):
        loop.train("normals", tiny.config(freeze=["conv_in"]), str(tmp_path), {str(ball_folder): 1.0})


def test_exported_weights_have_what_was_not_trained(long, tmp_path, ball_folder):
    workdir, _ = long
    config, init = tiny.config(freeze=["conv_in"], steps=1), str(workdir / "weights")
    loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0}, init)
    export.export(config, "normals", str(tmp_path / "normals/checkpoints"), None, str(tmp_path / "out"), init)
    there, here = (folder.read(tmp_path / path, "normals") for path in ("weights", "out"))
    assert all(np.array_equal(there[name].read(), here[name].read()) for name in there)


def test_exporting_asks_for_what_was_not_trained(long, tmp_path):
    workdir, _ = long
    with pytest.raises(ValueError, match="lack its conv_in, which it does not train; say with --init"):
        export.export(
            tiny.config(freeze=["conv_in"]), "normals", str(workdir / "normals/checkpoints"), 6, str(tmp_path)
        )


@pytest.mark.slow
def test_what_is_not_trained_stays(long, tmp_path, ball_folder):
    workdir, _ = long
    config = tiny.config(freeze=["conv_in"], steps=2, checkpoint_every=1)
    for _ in range(2):  # The second call finds the run complete, and writes the same weights.
        loop.train("normals", config, str(tmp_path), {str(ball_folder): 1.0}, str(workdir / "weights"))
        before, after = (folder.read(path / "weights", "normals") for path in (workdir, tmp_path))
        np.testing.assert_array_equal(before["conv_in.kernel"].read(), after["conv_in.kernel"].read())
        assert not np.array_equal(before["conv_out.kernel"].read(), after["conv_out.kernel"].read())
