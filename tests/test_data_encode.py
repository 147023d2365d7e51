"""Encoded records give a network what pictures would have given it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.data import encode, encoded, loader, records
from e3d_jax.models import build
from e3d_jax.training import loop, losses
from e3d_jax.weights import folder
from tests import tiny


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A config, its weights folder and its modules."""
    config, path = tiny.system(), tmp_path_factory.mktemp("weights")
    modules = {}
    for seed, name in enumerate(build.COMPONENTS):
        modules[name] = build.build(name, config[name]["model"], rngs=nnx.Rngs(seed))
        folder.save(path, name, modules[name], config)
        folder.load(path, name, modules[name])
    return config, path, modules


def _batch(example):
    return {name: jnp.asarray(rows)[None] for name, rows in example.items()}


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize("drop", [False, True])
def test_anchors_are_what_the_step_makes_of_pictures(system, ball, encoded_ball, estimated, drop):
    _, _, modules = system
    choices = (jnp.array([estimated]), jnp.array([drop]))
    pictures = _batch(loader.anchor_example(ball, np.random.default_rng(4)))
    stored = _batch(encoded.anchor_example(encoded_ball["anchor"].arrays, np.random.default_rng(4)))
    assert stored["azimuth"] == pictures["azimuth"] > 0
    expected = losses.anchors_of_images(modules["anchor"], modules, pictures, *choices)
    given = losses.encoded_anchors(None, {}, stored, *choices)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2, rtol=1e-2)


@pytest.fixture(scope="module")
def encoded_ball(system, ball):
    """One ball, encoded for both stages."""
    config, path, _ = system
    found = {}
    for stage in encoded.EXAMPLES:
        objects = [encode.pictures_of(stage, records.pack(ball))]
        (found[stage],) = encode.encode_objects(encode.make_encoder(config, stage, str(path)), stage, objects)
    return found


def test_windows_are_what_the_step_makes_of_pictures(system, ball, encoded_ball):
    _, _, modules = system
    pictures = _batch(loader.interpolation_example(ball, np.random.default_rng(1)))
    stored = _batch(encoded.interpolation_example(encoded_ball["interpolation"].arrays, np.random.default_rng(1)))
    # Noise too faint to see, to compare the rest.
    expected, known = losses.window_of_images(
        modules["interpolation"], modules, pictures, jax.random.key(0), mean=-20.0
    )
    given, noisy = losses.encoded_window(None, {}, stored, jax.random.key(0))
    np.testing.assert_allclose(given, expected, atol=2e-2, rtol=1e-2)
    np.testing.assert_allclose(noisy.token, known.token, atol=2e-2, rtol=1e-2)  # Of the picture without noise.
    assert 0.005 < noisy.noise[0] < 0.5
    assert 0 < jnp.abs(noisy.latents - known.latents).mean() < 10 * noisy.noise[0]


@pytest.fixture
def encoded_folder(encoded_ball, tmp_path):
    """A folder of records with the ball, encoded for the anchor stage, four times."""
    with records.Writer(tmp_path / "ball.array_record") as writer:
        for _ in range(4):
            writer.write(encoded.pack(encoded_ball["anchor"]))
    return str(tmp_path)


def test_encoded_records_make_batches(encoded_folder):
    assert loader.holds_encoded([encoded_folder], "anchor", size=32, latent_size=16)
    batch = next(loader.make_loader({encoded_folder: 1.0}, "anchor", batch_size=1, seed=0))
    assert batch["target"].shape == (1, 2, 8, 16, 16, 2) and batch["id"] == ["ball-0"]


def test_records_encoded_for_another_stage_are_refused(encoded_ball):
    with pytest.raises(ValueError, match="encoded for stage anchor, not interpolation"):
        encoded.unpack(encoded.pack(encoded_ball["anchor"]), "interpolation")


def test_a_stage_that_trains_its_image_encoder_has_no_encoded_records(system):
    config, path, _ = system
    config = {**config, "anchor": {**config["anchor"], "train": {**config["anchor"]["train"], "freeze": ()}}}
    with pytest.raises(ValueError, match="trains its image encoder"):
        encode.make_encoder(config, "anchor", str(path))


def test_training_that_compares_pictures_refuses_encoded_records(system, encoded_folder, tmp_path):
    config, path, _ = system
    loss = config["anchor"]["loss"] | {"picture_weight": 2.0}
    config = {**config, "anchor": {**config["anchor"], "loss": loss}, "size": 32}
    with pytest.raises(ValueError, match="encoded records hold no pictures"):
        loop.train("anchor", config, str(tmp_path), {encoded_folder: 1.0}, str(path))
    assert not (tmp_path / "anchor/config.json").exists()


@pytest.mark.parametrize("pictures", [True, False])
def test_training_from_either_kind_of_records_evaluates_the_other(
    system, encoded_folder, ball_folder, tmp_path, pictures
):
    config, path, _ = system
    training = config["anchor"]["train"] | {"steps": 1, "batch_size": 4}
    config = {**config, "anchor": {**config["anchor"], "train": training}, "size": 32}
    seen, unseen = (encoded_folder, ball_folder) if pictures else (ball_folder, encoded_folder)
    loop.train("anchor", config, str(tmp_path), {str(seen): 1.0}, str(path), unseen=str(unseen))
    rows = [json.loads(row) for row in (tmp_path / "anchor/metrics.jsonl").read_text().splitlines()]
    assert "heldout/loss" in rows[-1] and ("heldout/psnr" in rows[-1]) == pictures


def test_latents_of_another_size_are_refused(encoded_folder):
    with pytest.raises(ValueError, match="latents of 16 x 16, the config wants 32 x 32; encode pictures of 64 px"):
        loader.holds_encoded([encoded_folder], "anchor", size=64, latent_size=32)


def test_a_run_on_latents_brings_what_it_did_without_along(system, encoded_folder, tmp_path):
    config, path, _ = system
    training = config["anchor"]["train"] | {"steps": 1, "batch_size": 4}
    config = {**config, "anchor": {**config["anchor"], "train": training}, "size": 32}
    loop.train("anchor", config, str(tmp_path), {encoded_folder: 1.0}, str(path))
    assert all(folder.has(tmp_path / "weights", name) for name in ("anchor", "autoencoder", "normals"))
