"""From weights to a system, from a picture to views; and the settings that are refused."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import e3d_jax
from configs import envision3d
from e3d_jax import cameras, images, settings, system
from e3d_jax.models import build
from e3d_jax.weights import folder

get_config = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs/mini.py"))["get_config"]


def smoke_config(size=32):
    config = get_config("smoke").to_dict()
    config["size"] = size
    for stage in ("anchor", "interpolation"):
        config[stage]["sampling"]["num_steps"] = 1
    return config


def changed(path, value):
    config = get_config("smoke").to_dict()
    *parents, last = path.split(".")
    part = config
    for name in parents:
        part = part[name]
    part[last] = value
    return config


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of random weights of the toy system."""
    path, config = tmp_path_factory.mktemp("weights"), smoke_config()
    for component in build.COMPONENTS:
        module = nnx.eval_shape(lambda c=component: build.build(c, config[c]["model"], rngs=nnx.Rngs(0)))
        rng = np.random.default_rng(0)
        fill = lambda x, rng=rng: jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype)  # noqa: E731
        nnx.update(module, jax.tree.map(fill, nnx.state(module, nnx.Param)))
        folder.save(path, component, module, config)
    return path


@pytest.fixture(scope="module")
def toy(weights):
    return e3d_jax.load(weights)


@pytest.fixture
def picture():
    rgba = np.ones((40, 60, 4), np.float32)
    rgba[..., 3] = 0
    rgba[10:30, 20:50] = [0.8, 0.2, 0.1, 1]
    return rgba


# -- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["", "smoke"])
def test_own_configs_are_accepted(variant):
    config = get_config(variant).to_dict()
    settings.check(config)
    settings.check(json.loads(json.dumps(config)))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("anchor.sampling.num_steps", 0, "num_steps is 0; expected 1 to 999"),
        ("interpolation.sampling.num_steps", 1000, "interpolation.sampling.num_steps is 1000"),
        ("anchor.sampling.sampler", "magic", "expected one of ddim, euler, dpm_solver"),
        ("interpolation.sampling.noise_max", float("nan"), "noise_max is nan"),
        ("interpolation.sampling.anchor_noise", -0.1, "anchor_noise is -0.1"),
        ("anchor.sampling.guidance", 3.0, "guidance is 3.0; expected no such setting"),
        ("anchor.loss.last_level_share", 1.0, "last_level_share is 1.0; expected 0 or more, below 1"),
        (
            "anchor.model.unet.in_channels",
            6,
            "anchor.model.unet.in_channels is 6; expected 16, as the autoencoder has 8",
        ),
        ("interpolation.model.unet.out_channels", 4, "out_channels is 4; expected 8, as the autoencoder has 8"),
        ("anchor.model.image_encoder.projection_dim", 5, "cross_attention_dim is .*; expected 5, the image_encoder's"),
        ("size", 100, "size is 100; expected a multiple of 16"),
        ("size", 0, "size is 0"),
        ("reconstruction.resolution", 4, "resolution is 4; expected 8 to 1024"),
        ("reconstruction.fit.steps", 15, "steps is 15; expected a positive multiple of steps_per_chunk, 10"),
        ("reconstruction.fit.steps_per_chunk", 0, "multiple of steps_per_chunk, 0"),
        ("reconstruction.fit.rays", 0, "rays is 0; expected 1 or more"),
        ("reconstruction.fit.color_weight", float("inf"), "color_weight is inf"),
        ("reconstruction.fit.magic", 1, "unknown settings: magic"),
    ],
)
def test_refused_settings(path, value, said):
    with pytest.raises(ValueError, match=said):
        settings.check(changed(path, value))


def test_a_config_without_a_part():
    config = get_config("smoke").to_dict()
    del config["anchor"]
    with pytest.raises(ValueError, match="expected anchor too"):
        settings.check(config)


def test_settings_from_json_are_hashable():
    config = changed("reconstruction.fit.levels", [8, 16])
    assert hash(settings.fit_config(config)) and settings.fit_config(config).levels == (8, 16)


# -- Loading ----------------------------------------------------------------------------------------------------------


def test_no_such_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        system.load(tmp_path)


def test_weights_of_another_config(weights):
    other = smoke_config()
    other["anchor"]["model"]["unet"]["block_out_channels"] = (32, 64)
    with pytest.raises(ValueError, match=r"another config: anchor.model.unet.block_out_channels.1 is 32 there and 64"):
        system.load(weights, other)


def test_weights_of_pictures_of_another_size(weights):
    with pytest.raises(ValueError, match=r"another config: size is \d+ there and 256"):
        system.load(weights, smoke_config() | {"size": 256})


def test_weights_of_another_prediction(weights):
    other = smoke_config()
    other["anchor"]["loss"] |= {"prediction": "epsilon", "zero_terminal_snr": False}
    with pytest.raises(ValueError, match=r"anchor.loss.prediction is v there and epsilon"):
        system.load(weights, other)


def test_epsilon_is_refused_at_pure_noise(weights):
    other = smoke_config()
    other["anchor"]["loss"]["prediction"] = "epsilon"
    with pytest.raises(ValueError, match=r"anchor.loss.prediction is 'epsilon'; expected v"):
        system.load(weights, other)


def test_a_weights_folder_without_a_component(weights, tmp_path):
    for file in weights.iterdir():
        if not file.name.startswith("normals"):
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(FileNotFoundError, match="no weights of the normals"):
        system.load(tmp_path)


def test_sampling_may_differ_from_that_of_the_weights(weights):
    config = smoke_config()
    config["anchor"]["sampling"]["num_steps"] = 2
    assert system.load(weights, config).config["anchor"]["sampling"]["num_steps"] == 2


# -- Pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((32, 32, 3), np.float32), "expected .h, w, 4."),
        (np.zeros((1, 1, 4), np.float32), "at least 16 px"),
        (np.full((32, 32, 4), 255, np.uint8), "divide bytes by 255"),
        (np.full((32, 32, 4), 255.0, np.float32), r"not floats in \[0, 1\]"),
        (np.full((32, 32, 4), np.nan, np.float32), r"not floats in \[0, 1\]"),
        (np.zeros((32, 32, 4), np.float32), "shows no object"),
    ],
)
def test_arrays_that_are_no_picture(toy, array, said):
    with pytest.raises(ValueError, match=said):
        toy.prepare(array)


def test_prepared_picture_and_normals(toy, picture):
    cropped, encoded = toy.prepare(picture)
    assert cropped.shape == encoded.shape == (32, 32, 4)
    np.testing.assert_array_equal(encoded[..., 3], cropped[..., 3])
    length = np.linalg.norm(2 * encoded[cropped[..., 3] == 1][:, :3] - 1, axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)
    np.testing.assert_array_equal(encoded[0, 0], [1, 1, 1, 0])


def test_a_given_normal_map_is_framed_as_the_picture(toy, picture):
    normal = np.ones_like(picture)
    normal[:, :35, :3] = [1.0, 0.5, 0.5]
    normal[:, 35:, :3] = [0.5, 0.5, 1.0]
    _, encoded = toy.prepare(picture, normal)
    np.testing.assert_allclose(encoded[16, 14], [1.0, 0.5, 0.5, 1], atol=0.1)
    np.testing.assert_allclose(encoded[16, 17], [0.5, 0.5, 1.0, 1], atol=0.1)


def test_a_normal_map_of_another_size(toy, picture):
    with pytest.raises(ValueError, match="the normal map is 60 x 39 px, the picture 60 x 40"):
        toy.prepare(picture, picture[:-1])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(toy, picture, seed):
    with pytest.raises(ValueError, match="out of range"):
        toy(picture, seed=seed)


# -- Stages -----------------------------------------------------------------------------------------------------------


def sample_views(toy, picture, seed):
    pair = jnp.asarray(np.stack(toy.prepare(picture)))[None]
    keys = jax.random.split(jax.random.key(seed))
    color, normals = toy.anchors(pair, keys[0])[0]
    return color, toy.assemble(color, normals, toy.interpolate(jnp.asarray(color)[None], keys[1])[0])


def test_views(toy, picture):
    color, views = sample_views(toy, picture, 0)
    assert views.rgba.shape == (32, 32, 32, 4) and np.isfinite(views.rgba).all()
    np.testing.assert_array_equal(views.rgba[cameras.ANCHORS], color)
    length = np.linalg.norm(views.normals, axis=-1)
    assert (np.isclose(length, 1, atol=1e-3) | (length < 1 - 1e-3)).all()
    _, again = sample_views(toy, picture, 0)
    np.testing.assert_array_equal(again.rgba, views.rgba, err_msg="same seed, same views")
    _, other = sample_views(toy, picture, 1)
    assert np.abs(other.rgba - views.rgba).max() > 1e-4


def test_views_over_white_are_cut_out():
    views = np.ones((1, 2, 32, 32, 3), np.float32)
    views[:, :, 8:24, 8:24] = [0.8, 0.1, 0.1]
    alpha = system._with_alpha(views)[..., 3]
    assert alpha.shape == views.shape[:-1] and (alpha[..., 12:20, 12:20] == 1).all() and (alpha[..., :6, :] == 0).all()


def test_views_without_an_object_are_not_blamed_on_the_picture(monkeypatch):
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)  # no rembg
    noise = np.random.default_rng(0).random((1, 2, 32, 32, 3), np.float32)
    with pytest.raises(ValueError, match="the models drew a view without an object"):
        system._with_alpha(noise)


def test_assembled_ring(toy):
    color = np.full((8, 32, 32, 4), 1.0, np.float32)
    normals = np.zeros_like(color)
    normals[..., :] = [1.0, 0.5, 0.5, 1]
    normals[:, :16, :, 3] = 0
    between = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None, None] / 100, (24, 32, 32, 4))
    views = toy.assemble(color, normals, between)
    np.testing.assert_allclose(views.rgba[[1, 2, 3, 5, 31], 0, 0, 0], [0, 0.01, 0.02, 0.03, 0.23])
    np.testing.assert_allclose(views.normals[:, 16:], np.broadcast_to([1, 0, 0], (8, 16, 32, 3)), atol=1e-6)
    assert not views.normals[:, :16].any(), "unknown where the map is transparent"


@pytest.mark.parametrize(("variant", "radius"), [("", 1.5), ("released", 1.3)])
def test_views_of_released_weights_are_of_nearer_cameras(toy, variant, radius):
    reconstruction = envision3d.get_config(variant).to_dict()["reconstruction"]
    model = system.System(
        toy.config | {"reconstruction": reconstruction}, dict.fromkeys(build.COMPONENTS, nnx.Module())
    )
    blank = np.zeros((cameras.NUM_VIEWS, 8, 8, 4), np.float32)
    views = model.assemble(blank[:8], blank[:8], blank[8:])
    np.testing.assert_allclose(np.linalg.norm(views.cameras.world_from_cam[:, :3, 3], axis=-1), radius, rtol=1e-6)
