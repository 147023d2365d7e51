"""Records that cannot be used are named, or replaced."""

import itertools
import types

import msgpack
import pytest

from e3d_jax.data import loader, records
from tests import toy


class Fragile(toy.Numbers):
    """Records whose images may be damaged or of another size."""

    def check(self, record, config):
        if record.index == 9:
            raise ValueError("holds images of 64 px, but the config wants 32 px")

    def example(self, record, rng, config):
        if record.index in (3, 5):
            raise OSError("image file is truncated")
        return super().example(record, rng, config)


def write(folder, *shards):
    """Write shards of records with these numbers; None is a record of other bytes."""
    for name, shard in zip("ab", shards, strict=False):
        with records.Writer(folder / f"{name}.array_record") as writer:
            for index in shard:
                fields = {"schema": records.SCHEMA, "kind": "images", "id": f"toy-{index}", "index": index}
                writer.write(b"dust" if index is None else msgpack.packb(fields))
    return str(folder)


def load(folder, **options):
    return loader.make_loader({folder: 1.0}, Fragile(), "config", **{"batch_size": 4, "seed": 0} | options)


def test_a_damaged_image_is_named_by_folder_shard_and_record(tmp_path):
    folder = write(tmp_path, [0, 1], [2, 3])
    with pytest.raises(
        ValueError, match=rf"{folder}: record 1 of b\.array_record \(toy-3\) cannot be used: image file is truncated;"
    ):
        next(load(folder))


def test_a_record_of_another_size_is_named(tmp_path):
    folder = write(tmp_path, [0, 1, 2], [9])
    with pytest.raises(ValueError, match=r"record 0 of b\.array_record \(toy-9\) .*: holds images of 64 px"):
        next(load(folder))


def test_other_bytes_than_a_record_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"record 3 of a\.array_record cannot be used: 4 bytes that are not a record"):
        next(load(write(tmp_path, [0, 1, 2, None])))


def test_a_damaged_record_is_named_by_workers(tmp_path):
    batches = load(write(tmp_path, [0, 1, 2, 3]), workers=1)
    with pytest.raises(ValueError, match="toy-3"):
        next(batches)
    batches.close()


def test_damaged_records_are_replaced_and_counted_once(tmp_path):
    batches = load(write(tmp_path, [0, 1, 3, None, 2, 4, 6, 7]), max_bad_records=2)
    with pytest.warns(UserWarning, match=r"cannot be used: .*; skipped"):
        batch_ids = [ids for ids, _ in itertools.islice(batches, 4)]
    assert batches.num_bad == 2 and not any("toy-3" in ids for ids in batch_ids)
    assert all(len(ids) == 4 for ids in batch_ids)


@pytest.mark.filterwarnings("ignore:.*skipped")
def test_replacements_depend_on_the_seed_alone(tmp_path):
    folder = write(tmp_path, [0, 1, 3, 2, 4, 6, 7, 8])
    one, other = ([list(ids) for ids, _ in itertools.islice(load(folder, max_bad_records=1), 4)] for _ in range(2))
    assert one == other


@pytest.mark.filterwarnings("ignore:.*skipped")
def test_more_damaged_records_than_allowed_end_the_run(tmp_path):
    batches = load(write(tmp_path, [0, 1, 2, 3, 5, 9]), max_bad_records=2)
    with pytest.raises(ValueError, match="more than max_bad_records, 2"):
        list(itertools.islice(batches, 6))


def test_a_dataset_may_begin_with_a_damaged_record_if_it_may_be_skipped(tmp_path):
    folder, config = write(tmp_path, [None, 1]), types.SimpleNamespace(size=toy.SIZE)
    assert loader.kind_of([folder], toy.Toy(), config, 1) == "images"
    with pytest.raises(ValueError, match=r"record 0 of a\.array_record cannot be used"):
        loader.kind_of([folder], toy.Toy(), config)
