"""Records survive the disk; damaged ones are named."""

import msgpack
import numpy as np
import pytest

from e3d_jax import cameras, files
from e3d_jax.data import records


def test_a_record_comes_back_as_written(ball):
    found = records.unpack(records.pack(ball))
    assert (found.id, found.provenance, found.views) == (ball.id, ball.provenance, ball.views)


def test_cameras_come_back_as_written(ball):
    found = records.unpack(records.pack(ball)).cameras
    np.testing.assert_array_equal(found.world_from_cam, cameras.ring(32).world_from_cam)


def test_a_view_without_normals_is_named(ball):
    with pytest.raises(ValueError, match="view 1 has no normal map"):
        ball.normal(1)


def test_another_schema_is_refused(ball):
    fields = msgpack.unpackb(records.pack(ball))
    with pytest.raises(ValueError, match="schema version 99"):
        records.unpack(msgpack.packb({**fields, "schema": 99}))


def test_a_record_with_other_fields_is_refused(ball):
    fields = msgpack.unpackb(records.pack(ball))
    with pytest.raises(ValueError, match="lacks fields, or has others"):
        records.unpack(msgpack.packb({**fields, "depth": 0}))


@pytest.mark.parametrize("data", [b"", b"no record", msgpack.packb([1, 2])])
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match="no record"):
        records.unpack(data)


def test_an_interrupted_shard_leaves_nothing(tmp_path, ball):
    with pytest.raises(RuntimeError), records.Writer(tmp_path / "a.array_record") as writer:
        writer.write(records.pack(ball))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, ball, full_disk):
    refusal = pytest.raises(OSError, match=r"cannot write .*a\.array_record .*check the folder, its space")
    with refusal, records.Writer(tmp_path / "a.array_record") as writer:
        writer.write(records.pack(ball))
    assert not list(tmp_path.iterdir())


def test_a_folder_without_shards_says_how_to_make_some(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"e3d_jax\.data\.synthetic"):
        records.find_shards(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_a_truncated_shard_is_named(tmp_path, ball_folder, fraction):
    data = (ball_folder / "balls-0.array_record").read_bytes()
    (tmp_path / "cut.array_record").write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(ValueError, match=r"cut\.array_record"):
        records.find_shards(tmp_path)


def test_a_shard_for_a_bucket_is_written_whole(bucket, ball):
    with records.Writer(f"{bucket}/set/a.array_record") as writer:
        writer.write(records.pack(ball))
    assert files.glob(f"{bucket}/set", "*") == [f"{bucket}/set/a.array_record"]
    with files.local_copy(f"{bucket}/set/a.array_record") as local:
        records.check_shards([local])


def test_an_interrupted_shard_leaves_nothing_in_a_bucket(bucket, ball):
    with pytest.raises(RuntimeError), records.Writer(f"{bucket}/interrupted/a.array_record") as writer:
        writer.write(records.pack(ball))
        raise RuntimeError
    assert not files.exists(f"{bucket}/interrupted/a.array_record")
