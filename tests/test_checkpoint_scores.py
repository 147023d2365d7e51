"""Checkpoints of a run are scored once each, by a process that only reads."""

import json
import shutil

import pytest

from e3d_jax import benchmark, checkpoint_scores, system
from e3d_jax.training import checkpoints, loop
from e3d_jax.weights import folder
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_stages")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The work folder of a run of three steps, with a checkpoint of each, and its config."""
    dataset = str(toy.write_records(tmp_path_factory.mktemp("records")))
    config, workdir = toy.config(steps=3, checkpoint_every=1, keep_last=3), tmp_path_factory.mktemp("finished")
    for stage in ("toy", "user"):
        loop.train(config, stage, str(workdir), {dataset: 1.0})
    return workdir, config


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """Score a stage of the run, whose bias is an object's score; return how many objects were scored."""
    scored = []

    def score_object(model, index, *_):
        scored.append(index)
        return {"mesh_chamfer": float(list(model.modules.values())[-1].outer.bias[0]), "family": "balls"}

    monkeypatch.setattr(benchmark, "score_object", score_object)
    monkeypatch.setattr(checkpoint_scores, "INTERVAL", 0.01)
    shutil.copytree(finished[0], tmp_path / "run")

    def run(stage="user", **rest):
        scored.clear()
        folders = str(run.source / stage / "checkpoints"), tmp_path / "out"
        checkpoint_scores.score(finished[1], stage, str(run.source), *folders, objects=2, **rest)
        return len(scored)

    run.source = tmp_path / "run"
    return run


def _rows(path):
    return [json.loads(line) for line in (path / "out" / "metrics.jsonl").read_text().splitlines()]


def test_every_checkpoint_has_a_row_of_its_scores(run, finished, tmp_path):
    assert run() == 6
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    stored = folder.read(finished[0] / "weights", "user")["outer.bias"].read()
    assert rows[-1]["mesh_chamfer"] == pytest.approx(float(stored[0])) != rows[0]["mesh_chamfer"]


def test_what_is_scored_is_not_scored_again(run, tmp_path):
    run()
    (tmp_path / "out" / "3" / checkpoint_scores.DONE).unlink()
    (tmp_path / "out" / "3" / "object_001.json").unlink()
    assert run() == 1 and [row["step"] for row in _rows(tmp_path)] == [1, 2, 3]
    assert run() == 0


def test_new_checkpoints_are_waited_for(run, finished, tmp_path, monkeypatch):
    made = run.source / "user" / "checkpoints"
    shutil.rmtree(made)

    def appear(_):
        step = len(list(made.glob("?"))) + 1
        shutil.copytree(finished[0] / "user" / "checkpoints" / str(step), made / str(step))

    monkeypatch.setattr(checkpoint_scores.time, "sleep", appear)
    run()
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3]


def test_a_checkpoint_that_the_run_removes_is_left_out(run, tmp_path, monkeypatch, capsys):
    restore = checkpoints.Checkpoints.restore

    def remove_and_restore(self, like, step):
        if step == 2:
            shutil.rmtree(run.source / "user" / "checkpoints" / "2")
        return restore(self, like, step)

    monkeypatch.setattr(checkpoints.Checkpoints, "restore", remove_and_restore)
    run()
    assert [row["step"] for row in _rows(tmp_path)] == [1, 3]
    assert "step 2 is left out: the run removed its checkpoint" in capsys.readouterr().out


def test_a_run_without_checkpoints_is_refused_unless_it_is_followed(run):
    shutil.rmtree(run.source / "user" / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no folder of checkpoints"):
        run(follow=False)


def test_components_that_the_stage_does_without_may_be_trained_later(run, monkeypatch):
    seen, load = [], system.load
    monkeypatch.setattr(system, "load", lambda weights: seen.append(load(weights)) or seen[-1])
    shutil.rmtree(run.source / "weights")
    run("toy")
    assert len(seen) == 3 and all(set(model.modules) == {"toy"} for model in seen)


def test_a_component_that_the_stage_needs_must_be_there(run):
    shutil.rmtree(run.source / "weights")
    with pytest.raises(FileNotFoundError, match=r"weights has no toy, which the user needs; give weights .* --init"):
        run()
