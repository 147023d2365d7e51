"""Datasets made by Apache Beam."""

import functools
import multiprocessing
import operator
import os
import threading
import time

import pytest

from e3d_jax.data import engine, manifest, records

pytestmark = pytest.mark.slow
apache_beam = pytest.importorskip("apache_beam")
beam = pytest.importorskip("e3d_jax.data.beam")

LETTERS = [engine.Shard(name, [functools.partial(bytes, [65 + i]) for i in range(3)]) for name in "abc"]


def make_work():
    # Worker processes cannot import this file, so items are functions of the standard library.
    return engine.Work(prepare=operator.call)


def hashes(folder):
    found = manifest.read(folder)
    return {name: fields["sha256"] for name, fields in found["shards"].items()}


def test_beam_writes_what_the_local_engine_writes(tmp_path):
    for name, runner in (("local", engine.write_shards), ("beam", beam.Runner())):
        assert runner(engine.Job(tmp_path / name, LETTERS, make_work, 3), workers=2) == (9, 0, 0, 0)
    assert hashes(tmp_path / "beam") == hashes(tmp_path / "local")


def test_shards_that_exist_are_left_alone(tmp_path):
    engine.write_shards(engine.Job(tmp_path, LETTERS[:2], make_work), workers=0)
    before = (tmp_path / "a.array_record").stat().st_mtime_ns
    assert beam.Runner()(engine.Job(tmp_path, LETTERS, make_work), workers=1) == (3, 6, 0, 0)
    assert (tmp_path / "a.array_record").stat().st_mtime_ns == before
    assert len(records.find_shards(tmp_path)) == 3
    assert beam.Runner()(engine.Job(tmp_path, LETTERS, make_work), workers=1) == (0, 9, 0, 0)


def test_an_item_that_kills_its_process_is_quarantined(tmp_path):
    shards = [engine.Shard("a", [LETTERS[0].items[0], functools.partial(os._exit, 1)], ["good", "bad"]), LETTERS[1]]
    assert beam.Runner()(engine.Job(tmp_path, shards, make_work), workers=1) == (4, 0, 1, 0)
    found = manifest.read(tmp_path)
    assert list(found["quarantine"]) == ["bad"] and len(records.find_shards(tmp_path)) == 2


def test_worker_processes_that_are_killed_lose_nothing(tmp_path):
    begun = tmp_path / "begun"
    item = f"__import__('pathlib').Path({str(begun)!r}).touch() or __import__('time').sleep(0.1) or b'x'"
    shards = [engine.Shard(name, [functools.partial(eval, item)] * 20) for name in "ab"]

    def kill():
        while not begun.exists():
            time.sleep(0.1)
        for child in multiprocessing.active_children():
            child.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert beam.Runner()(engine.Job(tmp_path, shards, make_work), workers=2) == (40, 0, 0, 0)
    killer.join()


def test_the_graph_has_one_element_per_missing_shard_and_writes_the_manifest_last(tmp_path):
    pipeline = apache_beam.Pipeline()
    beam.build(pipeline, engine.Job(tmp_path, LETTERS, make_work), processes=4)
    proto = pipeline.to_runner_api()
    (root,) = proto.root_transform_ids
    steps = proto.components.transforms[root].subtransforms
    names = [proto.components.transforms[step].unique_name for step in steps]
    assert names == ["List shards", "Spread", "Write shards", "Wait", "Write manifest"]


def test_beams_options_reach_the_pipeline(tmp_path, monkeypatch):
    seen = {}

    class Pipeline(apache_beam.Pipeline):
        def __init__(self, runner, options):
            seen.update(options.get_all_options(drop_default=True), given=runner)
            super().__init__("apache_beam.runners.portability.fn_api_runner.FnApiRunner")

    monkeypatch.setattr(beam.apache_beam, "Pipeline", Pipeline)
    options = ["--runner=DataflowRunner", "--project=p", "--region=r", "--temp_location=gs://b/t"]
    gpu = ["--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]
    beam.Runner([*options, *gpu])(engine.Job(tmp_path, (), make_work))
    assert (seen["runner"], seen["project"], seen["region"], seen["given"]) == ("DataflowRunner", "p", "r", None)
    assert seen["dataflow_service_options"] == ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]
