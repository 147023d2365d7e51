"""Records survive the disk; damaged ones are named."""

import dataclasses

import msgpack
import numpy as np
import pytest

from e3d_jax import cameras, files, stores
from e3d_jax.data import records


def fields_of(ball):
    return msgpack.unpackb(records.pack(ball))


def test_a_record_comes_back_as_written(ball):
    found = records.unpack(records.pack(ball))
    for name in ("id", "provenance", "maps", "size"):
        assert getattr(found, name) == getattr(ball, name), name
    for name in ("anchors", "ring", "inputs"):
        assert list(getattr(found, name)) == list(getattr(ball, name)), name


def test_cameras_come_back_as_written(ball):
    found = records.unpack(records.pack(ball)).cameras
    for name in ("world_from_cam", "focal", "center"):
        np.testing.assert_array_equal(getattr(found, name), getattr(cameras.ring(32), name))


def test_maps_may_have_any_name(ball):
    depth = {3: ball.maps["color"][3]}
    found = records.unpack(records.pack(dataclasses.replace(ball, maps=ball.maps | {"depth": depth})))
    np.testing.assert_array_equal(found.image(3, "depth"), ball.image(3))


def test_images_are_stored_without_loss():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    np.testing.assert_array_equal(records.decode_png(records.encode_png(image)), image)


def test_a_view_without_a_map_is_named_with_those_that_have_one(ball):
    with pytest.raises(ValueError, match=r"record 'ball-0': view 1 has no normal map; views with one: \[0, 4, 8"):
        ball.image(1, "normal")


def test_views_with_a_map_are_listed(ball):
    assert ball.views_with("normal") == list(range(0, 32, 4)) and ball.views_with("depth") == []


def test_the_kind_of_a_record_is_known_without_reading_its_images(ball):
    assert records.kind_of(records.pack(ball)) == "images"


def test_records_of_another_kind_are_not_read_as_images(ball):
    with pytest.raises(ValueError, match="a record holds latents, not images; give a dataset of images"):
        records.unpack(msgpack.packb(fields_of(ball) | {"kind": "latents"}))


def test_another_schema_is_refused(ball):
    with pytest.raises(ValueError, match="a record has schema version 99, this code reads version 2; write it again"):
        records.unpack(msgpack.packb(fields_of(ball) | {"schema": 99}))


@pytest.mark.parametrize(
    "old",
    [
        {"schema": 1, "id": "a", "size": 32, "views": [], "normal_views": [], "normals": [], "cameras": {}},
        {"encoded": 1, "id": "a", "stage": "anchor", "arrays": {}},
    ],
    ids=["images", "latents"],
)
def test_records_of_the_first_schema_are_refused(old):
    with pytest.raises(ValueError, match="a record has schema version 1, this code reads version 2; write it again"):
        records.fields_of(msgpack.packb(old))


def test_a_record_without_some_fields_is_refused(ball):
    fields = fields_of(ball)
    del fields["anchors"]
    with pytest.raises(ValueError, match=r"a record lacks fields of version 2 \('anchors'\); write it again"):
        records.unpack(msgpack.packb(fields))


@pytest.mark.parametrize("data", [b"", b"no record", msgpack.packb([1, 2]), msgpack.packb({"id": "a"})])
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match=f"{len(data)} bytes that are not a record of e3d_jax"):
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
    with pytest.raises(FileNotFoundError, match=r"no record shards .*make some with '.*synthetic --out="):
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
    records.check_shards([stores.local(f"{bucket}/set/a.array_record")])


def test_an_interrupted_shard_leaves_nothing_in_a_bucket(bucket, ball):
    with pytest.raises(RuntimeError), records.Writer(f"{bucket}/interrupted/a.array_record") as writer:
        writer.write(records.pack(ball))
        raise RuntimeError
    assert files.glob(f"{bucket}/interrupted", "*") == []


def test_a_dataset_of_another_schema_is_not_extended(tmp_path):
    with records.Writer(tmp_path / "a.array_record") as writer:
        writer.write(msgpack.packb({"schema": 1}))
    with pytest.raises(ValueError, match=r"cannot be extended: a record has schema version 1, .* into an empty folder"):
        records.check_schema(tmp_path)
