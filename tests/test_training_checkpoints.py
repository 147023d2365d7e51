"""Checkpoints are complete or not there, and hold what was at the moment of saving."""

import json
import os
import time

import jax.numpy as jnp
import pytest

from e3d_jax.training import checkpoints

STATE = {"x": jnp.zeros(2)}


@pytest.fixture
def saved(tmp_path):
    """Checkpoints in an empty folder."""
    saved = checkpoints.Checkpoints(str(tmp_path), 2, 0)
    yield saved
    saved.close()


def test_a_checkpoint_is_of_the_moment_of_saving_however_slow_the_storage(saved, monkeypatch):
    dumps = json.dumps

    def slowly(*arguments, **settings):
        time.sleep(0.2)
        return dumps(*arguments, **settings)

    monkeypatch.setattr(json, "dumps", slowly)
    recent = [{"loss": 1.0}]
    saved.save(1, STATE, {"recent": recent})
    recent.append({"loss": 2.0})
    saved.finish()
    assert saved.restore(STATE)[1] == {"recent": [{"loss": 1.0}]}


@pytest.fixture
def damaged(saved, tmp_path):
    """Two checkpoints, all files of which were cut in half."""
    for step in (1, 2):
        saved.save(step, STATE, {})
        saved.finish()
        for file in (tmp_path / str(step) / "state").rglob("*"):
            if file.is_file():
                os.truncate(file, file.stat().st_size // 2)
    return saved


def test_the_reasons_why_no_checkpoint_can_be_read_are_listed(damaged):
    with pytest.raises(ValueError, match=r"no checkpoint can be read \(step 2: .*; step 1: .*choose another folder"):
        damaged.restore(STATE)


def test_damaged_checkpoints_stay_where_they_are_if_no_other_can_be_read(damaged, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint can be read"):
        damaged.restore(STATE)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


def test_a_step_that_was_not_saved_is_refused(saved):
    with pytest.raises(ValueError, match=r"has no checkpoint of step 3; it has \[\]"):
        saved.restore(STATE, 3)


def test_a_store_that_checkpoints_cannot_be_in_is_refused():
    with pytest.raises(ValueError, match=r"checkpoints cannot be in s3://bucket/run; give --checkpoints=DIR"):
        checkpoints.Checkpoints("s3://bucket/run", 2, 0)


def test_reading_checkpoints_needs_a_folder_and_creates_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of checkpoints"):
        checkpoints.Checkpoints(str(tmp_path / "typo"), 1, 0, read_only=True)
    assert not (tmp_path / "typo").exists()
