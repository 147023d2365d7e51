"""Cached latents give a network what images would have given it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax import cameras, stages
from e3d_jax.data import latents, records
from e3d_jax.models import layers
from e3d_jax.stages import caching
from tests import tiny

CONFIG = tiny.system(32)
FULL_PRECISION = {"strength", "poses", "input_poses", "input_fov"}
SEEDS = (4, 6)  # of an example as it is, and of a mirrored one
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def modules():
    """The modules of the toy system."""
    types = {name: layers.Types(rngs=nnx.Rngs(seed)) for seed, name in enumerate(stages.STAGES)}
    return {name: stages.build(CONFIG, name, types[name]) for name in stages.STAGES}


@pytest.fixture(scope="module")
def cached(modules, ball):
    """The ball's record of cached latents for each stage, through bytes."""
    found = {}
    for name in ("anchor", "interpolation"):
        source = stages.get(name).sources["latents"]
        compute = jax.jit(
            lambda modules, *rest, name=name, source=source: source.compute(modules[name], modules, *rest, CONFIG),
            compiler_options=QUICK,
        )
        arrays = compute(modules, source.read(records.unpack(records.pack(ball)), CONFIG), jax.random.key(0))
        halved = {
            part: np.asarray(x, np.float16 if x.dtype == np.float32 and part not in FULL_PRECISION else x.dtype)
            for part, x in arrays.items()
        }
        found[name] = source.unpack(latents.pack(latents.Latents(ball.id, name, halved)))
    return found


def batch_of(example):
    return jax.tree.map(lambda x: jnp.asarray(x)[None], example)


@pytest.fixture(scope="module", params=SEEDS)
def anchor_batches(request, ball, cached):
    """The same example of both kinds; not the first input."""
    sources, seed = stages.get("anchor").sources, request.param
    images = sources["images"].example(ball, np.random.default_rng(seed), CONFIG)
    stored = sources["latents"].example(cached["anchor"], np.random.default_rng(seed), CONFIG)
    return batch_of(images), batch_of(stored)


@pytest.fixture(scope="module")
def prepare_images(modules):
    compiled = jax.jit(
        lambda modules, batch, *rest: batch.prepare(modules["anchor"], modules, *rest), compiler_options=QUICK
    )
    return lambda batch, *choices: compiled(modules, batch, *choices)


def test_both_kinds_choose_the_same_input(anchor_batches):
    images, stored = anchor_batches
    azimuth = cameras.azimuth_of(stored.input_poses)
    assert images.azimuth()[0] == azimuth[0, 0] != 0


def test_both_kinds_give_the_cameras_the_same_labels(anchor_batches):
    images, stored = anchor_batches
    _, condition = stored.prepare(None, {}, jnp.array([False]), jnp.array([False]))
    np.testing.assert_array_equal(condition.labels, images.labels(None))


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_cached_anchors_are_what_training_on_images_computes(anchor_batches, prepare_images, estimated, dropped):
    images, stored = anchor_batches
    choices = (jnp.array([estimated]), jnp.array([dropped]))
    expected = prepare_images(images, *choices)
    given = stored.prepare(None, {}, *choices)
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2, rtol=1e-2)


def test_a_dropped_condition_is_another_one(anchor_batches):
    _, stored = anchor_batches
    known, dropped = (stored.prepare(None, {}, jnp.array([False]), jnp.array([x]))[1] for x in (False, True))
    assert jnp.abs(known.latents - dropped.latents).max() > 0.01
    assert jnp.abs(known.tokens - dropped.tokens).max() > 0.01


@pytest.fixture(scope="module")
def windows(modules, ball, cached):
    """What both kinds make of one window: images with noise too faint to see, and cached latents."""
    sources = stages.get("interpolation").sources
    images = batch_of(sources["images"].example(ball, np.random.default_rng(1), CONFIG))
    stored = batch_of(sources["latents"].example(cached["interpolation"], np.random.default_rng(1), CONFIG))
    prepare = jax.jit(
        lambda modules, batch, key: batch.prepare(modules["interpolation"], modules, key, -20.0, CONFIG.layout),
        compiler_options=QUICK,
    )
    key = jax.random.key(0)
    return prepare(modules, images, key), stored.prepare(None, {}, key, -20.0, CONFIG.layout)


def test_cached_windows_are_what_training_on_images_computes(windows):
    (expected, _), (given, _) = windows
    np.testing.assert_allclose(given, expected, atol=2e-2, rtol=1e-2)


def test_cached_windows_have_the_labels_of_images(windows):
    (_, known), (_, noisy) = windows
    np.testing.assert_allclose(noisy.labels, known.labels, atol=1e-5)


def test_tokens_of_cached_windows_are_of_the_image_without_noise(windows):
    (_, known), (_, noisy) = windows
    np.testing.assert_allclose(noisy.token, known.token, atol=2e-2, rtol=1e-2)


def test_cached_windows_have_the_noise_that_they_say(windows):
    (_, known), (_, noisy) = windows
    assert 0.005 < noisy.noise[0] < 0.5
    assert 0 < jnp.abs(noisy.latents - known.latents).mean() < 10 * noisy.noise[0]


def test_windows_of_an_object_have_noise_of_their_own(cached):
    strength = cached["interpolation"].arrays["strength"]
    assert strength.shape == (8,) and len(np.unique(strength)) == 8


@pytest.mark.parametrize("name", ["anchor", "interpolation"])
def test_rows_of_cached_latents_have_the_promised_shapes(name, cached):
    source = stages.get(name).sources["latents"]
    row, spec = source.example(cached[name], np.random.default_rng(0), CONFIG), source.spec(CONFIG)
    assert jax.tree.structure(row) == jax.tree.structure(spec)
    found, promised = ([(x.shape, x.dtype) for x in jax.tree.leaves(part)] for part in (row, spec))
    assert found == promised


@pytest.mark.parametrize("name", ["anchor", "interpolation"])
def test_cached_latents_of_this_config_are_accepted(name, cached):
    stages.get(name).sources["latents"].check(cached[name], CONFIG)


def test_images_are_encoded_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(caching, "PIXELS_AT_ONCE", 2 * 4 * 4)
    seen = []

    def encode(rgba):
        seen.append(rgba.shape)
        return rgba.mean((-3, -2))

    rgba = jax.random.uniform(jax.random.key(0), (1, 5, 4, 4, 4))
    found = caching.in_turns(encode)(rgba)
    np.testing.assert_allclose(found, rgba.mean((-3, -2)), rtol=1e-5)
    assert max(int(np.prod(shape[:-3])) for shape in seen) <= 2


# -- Several inputs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_inputs():
    """The toy system, with up to three inputs and their cameras."""
    values = tiny.system_values() | {"size": 32}
    values["anchor"]["diffusion"] |= {"max_inputs": 3, "input_cameras": True}
    return stages.parse_config(values)


@pytest.fixture(scope="module")
def photographed(ball):
    """The ball with three inputs from cameras of their own, at azimuths 0, 100 and 200."""
    views = [cameras.ring(32, 1, offset=np.radians(x), elevation=0.3) for x in (0, 100, 200)]
    return dataclasses.replace(
        ball,
        cameras=jax.tree.map(lambda *parts: np.concatenate(parts), ball.cameras, *views),
        maps={name: {**maps, **{32 + i: maps[4 * i] for i in range(3)}} for name, maps in ball.maps.items()},
        inputs=[32, 33, 34],
    )


@pytest.fixture(scope="module")
def cached_three(modules, photographed, three_inputs):
    """The record of cached latents."""
    source = stages.get("anchor").sources["latents"]
    compute = jax.jit(lambda modules, *rest: source.compute(modules["anchor"], modules, *rest, three_inputs))
    arrays = jax.tree.map(np.asarray, compute(modules, source.read(photographed, three_inputs), jax.random.key(0)))
    record = latents.Latents("ball", "anchor", arrays)
    source.check(record, three_inputs)
    return record


@pytest.fixture(scope="module", params=SEEDS)
def batches_of_three(request, photographed, cached_three, three_inputs):
    """The same example of both kinds."""
    sources = stages.get("anchor").sources
    given = {"images": photographed, "latents": cached_three}
    return tuple(
        batch_of(sources[kind].example(record, np.random.default_rng(request.param), three_inputs))
        for kind, record in given.items()
    )


@pytest.mark.parametrize("estimated", [False, True])
def test_cached_inputs_are_what_training_on_images_computes(batches_of_three, prepare_images, estimated):
    images, stored = batches_of_three
    assert images.count == stored.count and images.count > 1
    known = jnp.array([[[True, False], [False, True], [True, True]]])
    choices = (jnp.array([estimated]), jnp.array([False]), known)
    expected, given = prepare_images(images, *choices), stored.prepare(None, {}, *choices)
    for one, other in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-2, rtol=1e-2)


def test_inputs_that_are_views_cannot_be_cached_for_several(modules, ball, three_inputs):
    arrays = {"views": np.zeros((2, 8, 16, 16, 2)), "inputs": np.zeros((2, 8, 3)), "order": np.zeros((2, 8, 8))}
    record = latents.Latents("ball", "anchor", arrays)
    with pytest.raises(ValueError, match=r"each in a frame of its own, but anchor\.diffusion\.max_inputs is 3; draw"):
        stages.get("anchor").sources["latents"].check(record, three_inputs)


def test_latents_of_older_versions_are_refused(cached):
    record = cached["anchor"]
    old = dataclasses.replace(record, arrays={name: array[0] for name, array in record.arrays.items()})
    with pytest.raises(ValueError, match="latents of an older version, without the mirror image; cache them again"):
        stages.get("anchor").sources["latents"].check(old, CONFIG)


@pytest.fixture(scope="module")
def loss_of(three_inputs):
    """The loss of the anchor stage, of a network whose prediction is not zero."""
    modules = {name: stages.build(three_inputs, name, layers.Types(rngs=nnx.Rngs(1))) for name in stages.STAGES}
    noise = np.random.default_rng(0)
    state = nnx.state(modules["anchor"], nnx.Param)
    nnx.update(modules["anchor"], jax.tree.map(lambda x: x + 0.2 * noise.standard_normal(x.shape, np.float32), state))

    def loss(modules, batch):
        key, chosen = jax.random.key(0), three_inputs["anchor"]
        return stages.get("anchor").loss(modules["anchor"], modules, batch, key, chosen, three_inputs.layout)[0]

    compiled = jax.jit(loss, compiler_options=QUICK)
    return lambda batch: float(compiled(modules, batch))


@pytest.mark.parametrize(("slot", "exists"), [(1, True), (2, False)])
def test_an_input_changes_the_loss_if_it_exists(batches_of_three, loss_of, slot, exists):
    images, _ = batches_of_three
    other = dataclasses.replace(images, inputs=images.inputs.at[:, 0, slot].set(60))
    assert (abs(loss_of(other) - loss_of(images)) > 1e-5 * loss_of(images)) == exists
