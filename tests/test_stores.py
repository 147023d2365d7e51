"""Folders in object stores."""

import pathlib
import time

import pytest

from e3d_jax import files, stores
from e3d_jax.data import engine, loader, records


def put(url, **contents):
    for name, data in contents.items():
        files.write_atomically(f"{url}/{name}", data)


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def test_a_local_path_is_its_own_copy(tmp_path):
    assert stores.local(tmp_path) == str(tmp_path)


def test_a_folder_and_a_file_are_copied(bucket):
    put(f"{bucket}/set", a=b"1", b=b"22")
    put(f"{bucket}/set/below", c=b"333")
    assert pathlib.Path(stores.local(f"{bucket}/set"), "below", "c").read_bytes() == b"333"
    file = stores.local(f"{bucket}/set/b")
    assert pathlib.Path(file).name == "b" and pathlib.Path(file).read_bytes() == b"22"


def test_messages_name_urls_and_not_their_copies(bucket):
    put(f"{bucket}/set", a=b"1")
    copies = [stores.local(f"{bucket}/set"), stores.local(f"{bucket}/set/a")]
    with stores.mirrored(f"{bucket}/out/") as folder:
        copies.append(folder)
    assert stores.named(" and ".join(copies)) == f"{bucket}/set and {bucket}/set/a and {bucket}/out"


def test_a_copy_follows_what_is_added_changed_and_removed(bucket):
    put(f"{bucket}/set", a=b"1", b=b"22")
    first = stores.local(f"{bucket}/set")
    system, inside = files.store(f"{bucket}/set")
    system.rm_file(f"{inside}/a")
    put(f"{bucket}/set", b=b"23", c=b"4")
    assert stores.local(f"{bucket}/set") == first
    assert names_in(first) == {"b", "c", stores.INDEX} and pathlib.Path(first, "b").read_bytes() == b"23"


def test_what_is_up_to_date_is_not_fetched_again(bucket, monkeypatch):
    put(f"{bucket}/set", a=b"1")
    stores.local(f"{bucket}/set")
    system, _ = files.store(bucket)
    monkeypatch.setattr(type(system), "get_file", None)
    assert pathlib.Path(stores.local(f"{bucket}/set"), "a").read_bytes() == b"1"


def test_parts_can_be_left_out(bucket):
    put(f"{bucket}/set", a=b"1")
    put(f"{bucket}/set/below", c=b"333")
    assert names_in(stores.local(f"{bucket}/set", without=("below/",))) == {"a", stores.INDEX}


def test_a_url_with_nothing_there_is_named(bucket):
    with pytest.raises(FileNotFoundError, match=f"there is nothing at {bucket}/none"):
        stores.local(f"{bucket}/none")


def test_a_short_read_is_refused(bucket, monkeypatch):
    put(f"{bucket}/set", a=b"123")
    system, _ = files.store(bucket)
    monkeypatch.setattr(type(system), "get_file", lambda self, name, path: pathlib.Path(path).write_bytes(b"12"))
    with pytest.raises(OSError, match="changed while it was read"):
        stores.local(f"{bucket}/set")


def test_a_mirror_fetches_sends_and_leaves_the_rest_alone(bucket):
    put(f"{bucket}/run", old=b"1", kept=b"2")
    put(f"{bucket}/run/checkpoints", c=b"3")
    with stores.mirrored(f"{bucket}/run", without=("checkpoints/", "lock")) as folder:
        assert names_in(folder) == {"old", "kept"}
        pathlib.Path(folder, "old").write_bytes(b"changed")
        pathlib.Path(folder, "new").write_bytes(b"new")
        pathlib.Path(folder, "lock").touch()
    found = {path.rpartition("/")[2]: files.read(path) for path in files.glob(f"{bucket}/run", "*[!s]")}
    assert found == {"old": b"changed", "new": b"new", "kept": b"2"}
    assert files.read(f"{bucket}/run/checkpoints/c") == b"3"


def test_a_mirror_sends_while_it_is_used(bucket, monkeypatch):
    monkeypatch.setattr(stores, "INTERVAL", 0.01)
    with stores.mirrored(f"{bucket}/run") as folder:
        pathlib.Path(folder, "row").write_bytes(b"1")
        deadline, sent = time.monotonic() + 10, b""
        while not sent and time.monotonic() < deadline:
            time.sleep(0.01)
            # What is sent first may be the file before its content.
            sent = files.read(f"{bucket}/run/row") if files.glob(f"{bucket}/run", "row") else b""
        assert sent == b"1"


def test_a_mirror_sends_when_asked_and_other_folders_do_not(bucket, tmp_path):
    with stores.mirrored(f"{bucket}/run") as folder:
        pathlib.Path(folder, "row").write_bytes(b"1")
        stores.send(tmp_path)
        assert not files.glob(f"{bucket}/run", "row")
        stores.send(folder)
        assert files.read(f"{bucket}/run/row") == b"1"


def test_what_was_written_before_an_error_is_sent(bucket):
    with pytest.raises(KeyError), stores.mirrored(f"{bucket}/run") as folder:
        pathlib.Path(folder, "row").write_bytes(b"1")
        raise KeyError
    assert files.read(f"{bucket}/run/row") == b"1"


def test_records_are_read_from_a_bucket(bucket, tmp_path):
    shards = [engine.Shard("a", [b"1", b"2"]), engine.Shard("b", [b"3"])]
    engine.write_shards(engine.Job(f"{bucket}/set", shards, engine.Work), workers=0)
    opened = loader.open_shards(records.find_shards(f"{bucket}/set"))
    assert [opened[index] for index in range(3)] == [b"1", b"2", b"3"]
    assert all(path.startswith(str(tmp_path)) for path in records.find_shards(f"{bucket}/set"))
