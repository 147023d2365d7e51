"""Batches depend on the seed and their number alone; datasets that do not fit are named."""

import itertools

import jax
import msgpack
import numpy as np
import pytest

from e3d_jax import stages
from e3d_jax.data import latents, loader, records
from tests import tiny, toy

SIZE_32 = tiny.config()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of eight toys."""
    return str(toy.write_records(tmp_path_factory.mktemp("toys")))


def load(dataset, **options):
    """Return batches of two toys."""
    arguments = {"batch_size": 2, "seed": 0} | options
    datasets = dataset if isinstance(dataset, dict) else {dataset: 1.0}
    return loader.make_loader(datasets, toy.Numbers(), None, **arguments)


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_the_same_seed_gives_the_same_batches_of(stage, ball_folder):
    source = stages.get(stage).sources["images"]
    first, second = (
        loader.make_loader({str(ball_folder): 1.0}, source, SIZE_32, batch_size=2, seed=1) for _ in range(2)
    )
    for _ in range(2):
        assert_equal(next(first), next(second))


def test_another_seed_gives_other_batches(dataset):
    first, second = (next(load(dataset, batch_size=8, seed=seed))[1] for seed in (1, 2))
    assert not np.array_equal(first.x, second.x)


def test_batches_come_with_the_ids_of_their_records(dataset):
    ids, batch = next(load(dataset, batch_size=8))
    assert [f"toy-{index}" for index in batch.index] == list(ids) and len(set(ids)) == 8


def test_random_choices_differ_from_epoch_to_epoch(dataset):
    epochs = [batch for _, batch in itertools.islice(load(dataset, batch_size=8), 2)]
    values = [batch.x[np.argsort(batch.index)] for batch in epochs]
    assert not np.isclose(values[0], values[1]).any()


def test_a_loader_starts_at_any_batch(dataset):
    expected = list(itertools.islice(load(dataset), 7))[5:]
    for batch, later in zip(expected, load(dataset, start=5), strict=False):
        assert_equal(later, batch)


def test_processes_read_the_rows_of_one_batch(dataset):
    whole, first, second = (
        itertools.islice(load(dataset, batch_size=4, rows=rows), 3) for rows in (None, [0, 3], [1, 2])
    )
    for (_, batch), (_, one), (_, other) in zip(whole, first, second, strict=True):
        np.testing.assert_array_equal(batch.x[[0, 3, 1, 2]], np.concatenate([one.x, other.x]))


def test_workers_change_nothing(dataset):
    for alone, helped in zip(itertools.islice(load(dataset), 4), load(dataset, workers=2), strict=False):
        assert_equal(alone, helped)


def test_datasets_are_mixed_by_their_weights(dataset, tmp_path):
    other = toy.write_records(tmp_path, count=1)
    mixed = load({dataset: 3.0, str(other): 1.0}, batch_size=8)
    # The other dataset holds toy 0 alone; one in eight of the first is a toy 0, too.
    counts = sum(np.bincount(batch.index, minlength=8) for _, batch in itertools.islice(mixed, 4))
    np.testing.assert_array_equal(counts, [8 + 3, *[3] * 7])


def test_records_of_another_schema_are_refused_with_their_dataset(tmp_path):
    with records.Writer(tmp_path / "old.array_record") as writer:
        writer.write(msgpack.packb({"schema": 0}))
    with pytest.raises(ValueError, match=rf"{tmp_path}: record 0 of old\.array_record cannot .*: .* schema version 0"):
        loader.kind_of([str(tmp_path)], stages.get("anchor"), SIZE_32)


def test_weights_of_datasets_are_read():
    assert loader.parse_weights(["a@b/c", "d@0.5"]) == {"a@b/c": 1.0, "d": 0.5}


def test_a_weight_that_is_not_a_number_is_named():
    with pytest.raises(ValueError, match="the dataset 'a@b' has the weight 'b'; give a number after '@'"):
        loader.parse_weights(["a@b"])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_a_positive_number(dataset, weight):
    with pytest.raises(ValueError, match="give positive numbers"):
        load({dataset: weight})


def test_fewer_records_than_a_batch_are_refused(dataset):
    with pytest.raises(ValueError, match="holds 8 records, fewer than one batch of 9; make more records"):
        load(dataset, batch_size=9)


# -- Kinds ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A dataset of cached latents, as large as those of images of 32 px."""
    folder = tmp_path_factory.mktemp("cached")
    shapes = {"views": (2, 8, 4, 4, 8), "inputs": (2, 8, 3, 4, 4, 8), "order": (2, 8, 8)}
    record = latents.Latents("ball", "anchor", {name: np.zeros(shape, np.float16) for name, shape in shapes.items()})
    with records.Writer(folder / "ball.array_record") as writer:
        writer.write(latents.pack(record))
    return str(folder)


@pytest.fixture(scope="module")
def kind_of():
    """Return the kind of datasets, for a stage of a system of 32 px."""
    return lambda stage, *datasets: loader.kind_of(map(str, datasets), stages.get(stage), SIZE_32)


def test_images_are_of_the_kind_images(kind_of, ball_folder):
    assert kind_of("anchor", ball_folder) == "images"


def test_cached_latents_are_of_the_kind_latents(kind_of, cached):
    assert kind_of("anchor", cached) == "latents"


def test_datasets_of_several_kinds_are_refused(kind_of, ball_folder, cached):
    with pytest.raises(ValueError, match=r"datasets of several kinds: .*\(images\), .*\(latents\); give one kind"):
        kind_of("anchor", ball_folder, cached)


def test_a_kind_that_the_stage_cannot_learn_from_is_refused(kind_of, cached):
    with pytest.raises(ValueError, match=f"{cached}: holds latents, but the normals learns from images"):
        kind_of("normals", cached)


def test_latents_of_another_stage_are_refused_with_their_dataset(kind_of, cached):
    with pytest.raises(ValueError, match=f"{cached}: .*a record was cached for stage anchor, not interpolation"):
        kind_of("interpolation", cached)


def test_records_that_do_not_fit_the_config_are_refused_with_their_dataset(ball_folder):
    with pytest.raises(ValueError, match=f"{ball_folder}: holds images of 32 px, but the config wants 128 px"):
        loader.kind_of([str(ball_folder)], stages.get("anchor"), tiny.system())
