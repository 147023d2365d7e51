"""Jobs that make datasets."""

import hashlib
import operator
import os
import shutil

import pytest
from array_record.python import array_record_module

import e3d_jax
from e3d_jax.data import engine, manifest, parallel, records


def contents(path) -> list[bytes]:
    return array_record_module.ArrayRecordReader(str(path)).read_all()


def shards_of(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.array_record*"))


def even_only(item):
    return item if item % 2 == 0 else engine.Skipped(f"{item} is\nodd")


def negative(values):
    """A device that reads two values ahead."""
    pending = []
    for value in values:
        pending.append(-value)
        if len(pending) > 2:
            yield pending.pop(0)
    yield from pending


def text(value) -> bytes:
    return str(value).encode()


WORK = engine.Work(device=negative, finish=text)
PICKY = engine.Work(prepare=even_only, device=negative, finish=text)
SHARDS = [engine.Shard("a", range(3)), engine.Shard("b", range(3, 5))]


def job(out, shards=SHARDS, work=WORK, seed=None):
    return engine.Job(out, shards, lambda: work, seed)


def write(out, shards=SHARDS, work=WORK, workers=0):
    return engine.write_shards(job(out, shards, work), workers=workers)


def test_records_keep_the_order_of_items(tmp_path):
    assert write(tmp_path) == (5, 0, 0, 0)
    assert contents(tmp_path / "a.array_record") == [b"0", b"-1", b"-2"]
    assert contents(tmp_path / "b.array_record") == [b"-3", b"-4"]


def test_worker_processes_change_nothing(tmp_path):
    # Worker processes cannot import this file, so the steps are of the standard library.
    to_bytes = operator.methodcaller("to_bytes", 4, "big", signed=True)
    work = engine.Work(prepare=abs, device=negative, finish=to_bytes)
    for workers in (0, 1):
        write(tmp_path / str(workers), [engine.Shard("a", [1, -2, 3])], work, workers)
    assert contents(tmp_path / "0" / "a.array_record") == contents(tmp_path / "1" / "a.array_record")


def test_an_item_that_kills_its_process_is_skipped_by_name():
    class Pool(parallel.HostProcesses):
        def __init__(self): ...

        def in_order(self, function, items, ahead=1):
            return (parallel.KILLED if item == 2 else function(item) for item in items)

    shard = engine.Shard("a", [1, 2], ["one", "two"])
    one, two = engine.named(shard, engine.Work(prepare=text).results(shard.items, Pool()))
    assert one == b"1" and two.reason.startswith("two ended its process whenever it was tried")


def test_receipt_and_manifest_say_what_was_made(tmp_path):
    shards = [engine.Shard("a", range(3), ["zero", "one", "two"]), engine.Shard("b", [4])]
    engine.write_shards(job(tmp_path, shards, PICKY, seed=7), workers=0)
    found = manifest.read(tmp_path)
    assert found is not None and found["quarantine"] == {"one": "1 is\nodd"}
    first = found["shards"]["a.array_record"]
    assert (first["records"], first["seed"], first["version"]) == (2, 7, e3d_jax.__version__)
    hashed = hashlib.sha256(b"".join(len(data).to_bytes(8, "little") + data for data in (b"0", b"-2")))
    assert first["sha256"] == hashed.hexdigest()
    receipt = manifest.read_receipts(tmp_path)[0]
    assert receipt.items == ["zero", "one", "two"] and receipt.counts == {"made": 2, "skipped": 1, "flawed": 0}


def test_an_item_that_can_be_made_again_leaves_the_quarantine(tmp_path):
    write(tmp_path, [engine.Shard("a", [1, 2], ["one", "two"])], PICKY)
    write(tmp_path, [engine.Shard("b", [1], ["one"])])
    found = manifest.read(tmp_path)
    assert found is not None and found["quarantine"] == {} and len(found["shards"]) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "lacks 1 of the shards in its manifest.json, such as a.array_record"),
        (
            lambda path: shutil.copy(path.with_name("b.array_record"), path),
            "truncated or damaged record shards: .*a.array",
        ),
    ],
)
def test_readers_compare_shards_with_the_manifest(tmp_path, damage, message):
    write(tmp_path)
    assert len(records.find_shards(tmp_path)) == 2
    damage(tmp_path / "a.array_record")
    with pytest.raises(ValueError, match=message):
        records.find_shards(tmp_path)


def test_a_damaged_manifest_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .*run the command that made it again"):
        records.find_shards(tmp_path)
    write(tmp_path)
    assert len(records.find_shards(tmp_path)) == 2


def test_a_shard_that_exists_is_left_alone(tmp_path):
    write(tmp_path, SHARDS[:1])
    before = (tmp_path / "a.array_record").stat().st_mtime_ns
    assert write(tmp_path) == (2, 3, 0, 0)
    assert (tmp_path / "a.array_record").stat().st_mtime_ns == before


def test_a_finished_job_does_no_work(tmp_path):
    write(tmp_path)
    assert write(tmp_path, work=engine.Work(prepare=os._exit)) == (0, 5, 0, 0)


def test_skipped_items_are_named_counted_and_left_out(tmp_path, capsys):
    assert write(tmp_path, work=PICKY) == (3, 0, 2, 0)
    assert contents(tmp_path / "a.array_record") == [b"0", b"-2"]
    assert "skipped: 1 is odd" in capsys.readouterr().err


def test_skipped_items_keep_their_place_beside_the_device():
    kept = [None if isinstance(result, engine.Skipped) else result for result in PICKY.results(range(6))]
    assert kept == [b"0", None, b"-2", None, b"-4", None]


def test_a_shard_without_records_is_not_written(tmp_path):
    assert write(tmp_path, [engine.Shard("odd", [1, 3]), engine.Shard("even", [2])], PICKY) == (1, 0, 2, 0)
    assert shards_of(tmp_path) == ["even.array_record"]


def test_an_interrupted_job_leaves_whole_shards_only(tmp_path):
    def interrupted(values):
        for value in values:
            if value == 4:
                raise KeyboardInterrupt
            yield value

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, work=engine.Work(device=interrupted, finish=text))
    assert shards_of(tmp_path) == ["a.array_record"]
    assert write(tmp_path) == (2, 3, 0, 0)


def test_another_runner_makes_the_same_records(tmp_path):
    write(tmp_path)
    for shard in SHARDS:
        assert list(WORK.results(shard.items)) == contents(tmp_path / f"{shard.name}.array_record")


def test_shards_in_a_bucket_resume(bucket):
    assert write(f"{bucket}/job", SHARDS[:1]) == (3, 0, 0, 0)
    assert write(f"{bucket}/job") == (2, 3, 0, 0)


def test_items_that_write_files_of_their_own_are_counted(tmp_path):
    def touch(item):
        (tmp_path / str(item)).touch()

    work = engine.Work(prepare=even_only, finish=touch)
    assert engine.run([1, 2, 4], work, already=7, workers=0) == (2, 7, 1, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


@pytest.mark.parametrize("shard", ["8/8", "-1/8", "1/0", "abc", "1"])
def test_a_malformed_shard_of_a_job_is_refused(shard):
    with pytest.raises(ValueError, match=f"--shard is '{shard}'; expected I/N with I from 0 to N - 1"):
        engine.parse_shard(shard)


def test_the_suffix_is_what_readers_look_for(tmp_path):
    write(tmp_path, SHARDS[:1])
    assert records.find_shards(tmp_path) == [str(tmp_path / "a.array_record")]


def test_what_lacks_something_is_kept_counted_and_reported(tmp_path, capsys):
    def flawed(item):
        return engine.Flawed(b"record", ("a: no\ntexture", "a: no hat")) if item == 1 else b"record"

    assert write(tmp_path, [engine.Shard("a", [1, 2])], engine.Work(prepare=flawed)) == (2, 0, 0, 1)
    assert contents(tmp_path / "a.array_record") == [b"record"] * 2
    err = capsys.readouterr().err
    assert "warning: a: no texture" in err and "warning: a: no hat" in err
