"""Files appear whole or not at all, on disks and in buckets."""

import sys

import pytest

from e3d_jax import files


def fail(*_):
    raise OSError("disk full")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_staged_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "file"
    with files.staged(path) as local:
        local.write_bytes(b"data")
        assert not path.exists()
    assert path.read_bytes() == b"data" and list(path.parent.iterdir()) == [path]


def test_a_failed_staged_file_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match=f"cannot write {path} "), files.staged(path) as local:
        local.write_bytes(b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_has_no_files(tmp_path):
    assert files.glob(tmp_path / "none", "*") == []


def test_a_store_that_refuses_is_named(bucket, monkeypatch):
    system, _ = files.store(bucket)
    monkeypatch.setattr(type(system), "pipe_file", fail)
    with pytest.raises(OSError, match=rf"cannot write {bucket}/file \(disk full\)"):
        files.write_atomically(f"{bucket}/file", b"data")


def test_a_store_without_its_client_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(OSError, match="gs://bucket: Please install gcsfs"):
        files.store("gs://bucket")


def test_a_file_in_a_bucket_is_written_and_found(bucket):
    files.write_atomically(f"{bucket}/folder/file", b"data")
    assert files.glob(f"{bucket}/folder", "f*") == [files.join(f"{bucket}/folder", "file")]


def test_a_staged_file_for_a_bucket_appears_at_the_end(bucket):
    with files.staged(f"{bucket}/staged/file") as local:
        local.write_bytes(b"data")
        assert files.glob(f"{bucket}/staged", "*") == []
    assert files.read(f"{bucket}/staged/file") == b"data"
