"""What the data of a run takes follows from a small dataset."""

import json
import re

import pytest

from e3d_jax.data import manifest
from e3d_jax.training import plan_data
from tests import toy


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """Eight records, 100 kB each, that took four seconds."""
    toy.register(monkeypatch)
    toy.write_records(tmp_path, padding=100_000)
    shard = {"records": 8, "sha256": "", "seconds": 4.0, "flawed": 0, "seed": None, "ended": 0, "version": ""}
    (tmp_path / manifest.NAME).write_text(json.dumps({"shards": {"toys.array_record": shard}, "quarantine": {}}))
    return str(tmp_path)


def test_records_storage_time_and_cost_grow_with_the_run(sample):
    config = toy.config(steps=9000, batch_size=8)
    said = plan_data.report(config, "toy", sample, epochs=2.0, price=3.0, storage_price=0.02)
    assert "9000 steps of 8 examples are 72000 examples, of 36000 objects" in said
    (size,) = re.findall(r"storage: (.*) GB \((.*) kB per record of images\)", said)
    assert float(size[0]) == pytest.approx(36000 * float(size[1]) / 1e6, rel=0.01) and 100 < float(size[1]) < 120
    assert "making them: 5.0 hours" in said
    assert "cost of making 1000 objects: 0.42, of all: 15.00" in said
    assert "cost of storing all for a month: 0.08" in said


def test_without_prices_there_is_no_cost(sample):
    assert "cost" not in plan_data.report(toy.config(), "toy", sample)


def test_a_dataset_without_records_is_no_sample(tmp_path, monkeypatch):
    toy.register(monkeypatch)
    with pytest.raises(FileNotFoundError, match="no record shards"):
        plan_data.report(toy.config(), "toy", str(tmp_path))


def test_objects_must_be_seen(sample):
    with pytest.raises(ValueError, match=r"epochs is 0\.0; expected more than 0"):
        plan_data.report(toy.config(), "toy", sample, epochs=0.0)
