"""Labels, examples and loss of the interpolation stage."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import cameras, config, stages
from e3d_jax.diffusion import samplers, schedules
from e3d_jax.stages import conditions, interpolation
from tests import tiny

STAGE = stages.get("interpolation")
IMAGES = STAGE.sources["images"]
SIZE_32 = tiny.config()


def test_labels_of_the_released_cameras_are_those_of_the_release():
    label = np.zeros((9, 3), np.float32)
    label[:, 2] = cameras.azimuths(32)[:9]
    expected = np.concatenate([np.sin(label), np.cos(label)], -1)
    layout = cameras.RELEASED
    found = conditions.frame_labels(layout.cameras(32).world_from_cam[layout.windows])
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (4, 9, 6)))


def test_elevations_enter_the_labels():
    layout = cameras.ViewLayout(elevation=30.0)
    found = conditions.frame_labels(layout.cameras(32).world_from_cam[layout.windows])
    np.testing.assert_allclose(found[..., 1], 0.5, atol=1e-6)


def test_windows_are_consecutive_views(ball):
    example = IMAGES.example(ball, np.random.default_rng(3), SIZE_32)
    starts = [a for a in range(8) if np.array_equal(example.frames[0], ball.image(4 * a))]
    frames = cameras.RELEASED.window(starts[0])
    np.testing.assert_array_equal(example.frames, np.stack([ball.image(view) for view in frames]))
    np.testing.assert_array_equal(example.poses, ball.cameras.world_from_cam[frames])


def test_windows_start_at_every_anchor(ball):
    rng = np.random.default_rng(0)
    poses = [IMAGES.example(ball, rng, SIZE_32).poses[:1] for _ in range(60)]
    assert len(np.unique(np.round(cameras.azimuth_of(np.concatenate(poses)), 3))) == 8


def test_records_of_the_anchors_alone_are_refused(ball):
    said = "holds 8 views per object, but the interpolation learns from 32; draw them with --views=32"
    with pytest.raises(ValueError, match=said):
        IMAGES.check(dataclasses.replace(ball, ring=[]), SIZE_32)


def test_the_network_is_given_the_noise_of_the_anchors_if_no_other_level_is_set():
    assert interpolation.Sampling(anchor_noise=0.3).given_noise == 0.3


def test_the_network_may_be_given_another_noise_level():
    assert interpolation.Sampling(anchor_noise=0.3, noise_aug_level=0.0).given_noise == 0.0


class Oracle:
    """Knows the clean latents of windows, and is off by a constant."""

    def __init__(self, clean, off=0.0):
        self.clean, self.off = clean, off

    def __call__(self, noisy, time, condition):
        self.log_noise = 4 * time
        level = schedules.edm_levels(jnp.exp(self.log_noise))
        alpha, sigma = (x[:, None, None, None, None] for x in (level.alpha, level.sigma))
        return alpha * (noisy - alpha * self.clean) / sigma - sigma * self.clean + self.off


@pytest.fixture(scope="module")
def batch():
    """Random latents of 256 windows."""
    clean = jax.random.normal(jax.random.key(0), (256, 9, 2, 2, 1))
    poses = jnp.broadcast_to(cameras.ring(32).world_from_cam[:9], (256, 9, 4, 4))
    return interpolation.LatentBatch(clean, clean[:, :3], jnp.zeros((256, 4)), jnp.ones(256), poses)


def loss_of(network, batch):
    chosen = config.ComponentConfig(model=None, loss=interpolation.Loss(log_noise_mean=0.7, log_noise_std=1.6))
    return STAGE.loss(network, {}, batch, jax.random.key(1), chosen, cameras.RELEASED)


@pytest.mark.parametrize("off", [0.0, 2.0])
def test_the_loss_is_the_square_of_what_the_network_is_off_by(batch, off):
    loss, metrics = loss_of(Oracle(batch.frames, off), batch)
    np.testing.assert_allclose([loss, metrics["loss_new_views"]], off**2, atol=1e-3)


def test_noise_levels_are_log_normal(batch):
    network = Oracle(batch.frames)
    loss_of(network, batch)
    np.testing.assert_allclose([network.log_noise.mean(), network.log_noise.std()], [0.7, 1.6], rtol=0.05)


def test_a_stage_that_trains_its_image_encoder_has_no_cached_latents():
    chosen = config.ComponentConfig(model=None, train=config.TrainSettings(steps=1))
    with pytest.raises(ValueError, match="the interpolation stage trains its image encoder"):
        STAGE.check_source("latents", chosen)


def test_images_serve_any_settings():
    STAGE.check_source("images", config.ComponentConfig(model=None, train=config.TrainSettings(steps=1)))


@pytest.mark.parametrize("temporal", [False, True])
def test_sampled_views_are_in_the_order_of_the_ring(monkeypatch, temporal):
    layout = cameras.RELEASED
    numbers = jnp.asarray(layout.windows, jnp.float32)[..., None, None, None]

    class Autoencoder(tiny.Painter):
        temporal_decoder = temporal

    # The latents of a frame are the number of its view, and so is its image.
    monkeypatch.setattr(interpolation, "start", lambda *_, **__: types.SimpleNamespace(latents=numbers))
    monkeypatch.setattr(
        interpolation, "take_steps", lambda model, condition, *_, **__: samplers.begin(condition.latents)
    )
    monkeypatch.setattr(interpolation, "_decode", lambda autoencoder, latents: latents)
    model = interpolation.denoisers.InterpolationDenoiser.__new__(interpolation.denoisers.InterpolationDenoiser)
    found = interpolation.sample(
        model,
        Autoencoder(),
        jnp.zeros((1, 8, 1, 1, 4)),
        jax.random.key(0),
        layout=layout,
        sampling=interpolation.Sampling(num_steps=1),
    )
    np.testing.assert_array_equal(found[0, :, 0, 0, 0], layout.between)


class Listener(Oracle):
    """Keeps the condition."""

    def __call__(self, noisy, time, condition):
        self.condition = condition
        return super().__call__(noisy, time, condition)


@pytest.mark.parametrize(("fraction", "hidden"), [(0.0, 0), (0.5, 128), (1.0, 256)])
def test_the_anchors_of_a_fraction_of_windows_are_hidden(batch, fraction, hidden):
    network = Listener(batch.frames)
    shown = dataclasses.replace(batch, token=jnp.ones((256, 4)))
    chosen = config.ComponentConfig(model=None, loss=interpolation.Loss(cond_dropout=fraction))
    STAGE.loss(network, {}, shown, jax.random.key(1), chosen, cameras.RELEASED)
    missing = ~network.condition.token.any((1, 2))
    np.testing.assert_array_equal(missing, ~network.condition.latents.any((1, 2, 3, 4)))
    assert abs(int(missing.sum()) - hidden) <= (40 if fraction == 0.5 else 0)


def test_guidance_hides_the_anchors_of_all_windows():
    known = interpolation.denoisers.WindowCondition(
        jnp.ones((2, 9, 1, 1, 1)), jnp.ones((2, 1, 4)), jnp.ones(2), jnp.ones((2, 9, 6))
    )
    assert interpolation._guidance(known, interpolation.Sampling()) is None
    nothing, scale = interpolation._guidance(known, interpolation.Sampling(guidance=3.0))
    assert scale == 3 and not nothing.latents.any() and not nothing.token.any() and nothing.labels.all()
