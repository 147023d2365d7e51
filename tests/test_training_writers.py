"""Metrics and images reach their files whole, or the run ends with a reason."""

import json
import time

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from e3d_jax.training import writers


def _events(folder):
    """Return the events of TensorBoard's only file; each stands between its length and checksums."""
    (path,) = (folder / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


@pytest.fixture
def written(tmp_path):
    """A folder to which all writers wrote a row and an image."""
    for writer in writers.make_writers(tmp_path, 0):
        writer.write(3, {"loss": 0.5, "psnr": float("nan")})
        writer.image(3, "views", np.zeros((4, 6, 3)))
        writer.close()
    return tmp_path


def test_metrics_are_lines_of_json(written):
    (line,) = (written / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 3 and json.loads(line)["loss"] == 0.5


def test_tensorboard_gets_what_is_finite(written):
    values = [(event.step, value.tag) for event in _events(written) for value in event.summary.value]
    assert values == [(3, "loss"), (3, "views")]


def test_tensorboard_gets_images(written):
    image = _events(written)[-1].summary.value[0].image
    assert (image.height, image.width) == (4, 6)


def test_rows_of_steps_that_are_taken_again_are_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"ste')
    writers.JsonLines(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 2}\n'


@pytest.mark.parametrize("damage", [b"\0" * 9, b"", b"[2]", b'{"step": 1}{"step": 2}', b'{"loss": 1}', b"\xff"])
def test_rows_that_cannot_be_read_are_left_out(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 2}\n')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 2 is not a row; left out"):
        writers.JsonLines(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_lines_of_csv_have_a_step_a_metric_and_a_value(tmp_path):
    for first in (0, 2):  # A run that continues keeps the header and drops later steps.
        writer = writers.Csv(tmp_path, first)
        for step in (1, 2, 3):
            if step > first:
                writer.write(step, {"loss": step / 2, "psnr": float("nan")})
        writer.close()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,metric,value"
    assert lines[1:] == [
        f"{step},{rest}" for step, loss in ((1, 0.5), (2, 1.0), (3, 1.5)) for rest in (f"loss,{loss}", "psnr,nan")
    ]


@pytest.mark.slow
def test_wandb_gets_rows_and_images_and_the_run_that_continues_is_the_same(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for first in (0, 3):
        (writer,) = writers.make_writers(tmp_path, first, ["wandb"])
        writer.write(first + 3, {"loss": 0.5})
        writer.image(first + 3, "views", np.zeros((4, 6, 3)))
        writer.close()
    runs = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(runs) == 2 and {path.stem for path in runs} == {f"run-{(tmp_path / 'wandb_id').read_text()}"}
    until = time.monotonic() + 60  # A process of W&B's own writes the files.
    while not all(b"loss" in path.read_bytes() for path in runs):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/views_*.png"))) == 2


def test_writers_must_exist():
    with pytest.raises(ValueError, match="no writer 'jsnl'; give some of jsonl, csv, tensorboard, wandb"):
        writers.check(["jsnl"])


def test_a_writer_without_its_package_is_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"not installed; run pip install 'e3d_jax\[wandb\]'"):
        writers.check(["csv", "wandb"])


def test_a_half_written_event_file_stops_nothing(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.1").write_bytes(b"\1\2")
    writers.TensorBoard(tmp_path, 2).close()


def test_tensorboard_learns_from_which_step_a_run_continues(tmp_path):
    writers.TensorBoard(tmp_path, 2).close()
    starts = [event.step for event in _events(tmp_path) if event.session_log.status == event_pb2.SessionLog.START]
    assert starts == [3]


def test_lines_on_a_full_disk_end_the_run(tmp_path, full_disk):
    writer = writers.JsonLines(tmp_path, 0)
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}.*check the folder, its space"):
        for step in range(100):
            writer.write(step, {"loss": 0.0})


def test_events_on_a_full_disk_end_the_run(tmp_path, full_disk, monkeypatch):
    monkeypatch.setattr(writers, "FLUSH_EVERY", -1)
    writer = writers.TensorBoard(tmp_path, 0)
    with pytest.raises(OSError, match=rf"cannot write {tmp_path}.*check the folder, its space"):
        for step in range(100):
            writer.write(step, {"loss": 0.0})


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    assert writers.make_writers(tmp_path, 0) == [] and not list(tmp_path.iterdir())
