"""A dataset of images becomes one of cached latents."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax import stages
from e3d_jax.data import loader, manifest, records
from e3d_jax.models import layers
from e3d_jax.training import cache
from e3d_jax.weights import folder
from tests import conftest, tiny

CONFIG = tiny.system(32)
ANCHOR = stages.get("anchor")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of fresh weights of what the anchor stage caches with."""
    path = tmp_path_factory.mktemp("weights")
    for name in ("autoencoder", "normals", "anchor"):
        folder.save(path, name, stages.build(CONFIG, name, layers.Types(rngs=nnx.Rngs(0))), CONFIG)
    return str(path)


@pytest.fixture(scope="module")
def cached(weights, ball_folder, tmp_path_factory):
    """The folder of cached latents of the balls."""
    out = str(tmp_path_factory.mktemp("cached"))
    cache.cache_dataset(CONFIG, "anchor", weights, str(ball_folder), out, workers=1)
    return out


def records_of(path):
    opened = loader.open_shards(records.find_shards(path))
    return [ANCHOR.sources["latents"].unpack(opened[index]) for index in range(len(opened))]


def test_shards_keep_their_names_and_objects(cached):
    assert [path.rpartition("/")[2] for path in records.find_shards(cached)] == [
        "balls-0.array_record",
        "balls-1.array_record",
    ]
    assert [record.id for record in records_of(cached)] == [f"ball-{index}" for index in range(8)]


def test_cached_latents_make_batches(cached):
    assert loader.kind_of([cached], ANCHOR, CONFIG) == "latents"
    ids, batch = next(loader.make_loader({cached: 1.0}, ANCHOR.sources["latents"], CONFIG, batch_size=2, seed=0))
    assert len(ids) == 2 and batch.targets.shape == (2, 2, 8, 16, 16, 2)


@pytest.mark.slow
def test_beam_caches_what_the_local_engine_caches(cached, weights, ball_folder, tmp_path):
    pytest.importorskip("apache_beam")
    from e3d_jax.data import beam  # It is an extra.

    out = str(tmp_path)
    assert (
        cache.cache_dataset(CONFIG, "anchor", weights, str(ball_folder), out, workers=1, runner=beam.Runner()).made == 8
    )
    local, made = (manifest.read(path)["shards"] for path in (cached, out))
    assert {name: fields["sha256"] for name, fields in made.items()} == {
        name: fields["sha256"] for name, fields in local.items()
    }


def test_arrays_are_in_half_precision_but_for_the_cameras(cached):
    arrays = records_of(cached)[0].arrays
    single = {name for name, array in arrays.items() if array.dtype == np.float32}
    assert single == {"poses", "input_poses", "input_fov"} and arrays["views"].dtype == np.float16


@pytest.mark.parametrize("computed", [jnp.float32, jnp.bfloat16])
def test_what_any_device_computes_is_stored_in_half_precision(computed):
    assert cache.stored_type("tokens", computed) == np.float16


def test_cached_latents_are_not_cached_again(cached, weights, tmp_path):
    with pytest.raises(ValueError, match="holds cached latents; give a dataset of images"):
        cache.cache_dataset(CONFIG, "anchor", weights, cached, str(tmp_path))


def test_a_stage_that_learns_from_images_alone_is_refused():
    with pytest.raises(ValueError, match="the normals stage trains on images, which cached latents do not hold"):
        cache.cached_source(CONFIG, "normals")


def test_a_stage_that_trains_its_image_encoder_is_refused():
    train = dataclasses.replace(CONFIG["anchor"].train, freeze=())
    components = {**CONFIG.components, "anchor": dataclasses.replace(CONFIG["anchor"], train=train)}
    with pytest.raises(ValueError, match="trains its image encoder"):
        cache.cached_source(dataclasses.replace(CONFIG, components=components), "anchor")


def test_objects_are_computed_a_few_at_a_time_and_keep_their_order():
    sizes = []

    def compute(objects):
        sizes.append(len(objects))
        return {"x": jnp.array([arrays["x"] for _, arrays in objects])}

    objects = [(str(index), {"x": np.float32(index)}) for index in range(6)]
    found = list(cache.compute_objects(compute, iter(objects)))
    assert sizes == [4, 4] and found == objects


def cut(record):
    """Damage the images of a record."""
    return dataclasses.replace(record, maps={"color": {view: b"dust" for view in record.maps["color"]}})


@pytest.mark.parametrize(("bad", "message"), [(cut(conftest.ball_record(1)), ""), (conftest.ball_record(1, 64), "64")])
def test_a_record_that_cannot_be_cached_is_named_and_skipped(weights, tmp_path, capsys, bad, message):
    with records.Writer(tmp_path / "a.array_record") as writer:
        for record in (conftest.ball_record(0), bad):
            writer.write(records.pack(record))
    out = tmp_path / "out"
    assert cache.cache_dataset(CONFIG, "anchor", weights, str(tmp_path), str(out), workers=1) == (1, 0, 1, 0)
    reason = rf"record 1 of a\.array_record \(ball-1\) cannot be used: .*{message}"
    assert re.search(reason, capsys.readouterr().err)
    found = manifest.read(out)
    assert found is not None and re.search(reason, found["quarantine"]["item 1 of a"])


def test_arrays_that_are_not_finite_are_refused_with_their_record():
    compute = lambda objects: {"x": jnp.full(4, jnp.inf, jnp.float16)}  # noqa: E731
    with pytest.raises(ValueError, match="record 'a': x are not finite in float16; check the weights"):
        list(cache.compute_objects(compute, iter([("a", {})])))
