"""Four sampling steps and their conditions compared with the release (``fixtures/released_topology/samplers.npz``)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released

from e3d_jax import cameras
from e3d_jax.diffusion import samplers, schedules
from e3d_jax.models import denoisers, latents
from e3d_jax.stages import anchor, conditions, interpolation

# Whole samplers of four networks, compiled in all: what they consist of has quick tests of its own.
pytestmark = pytest.mark.slow

ARRAYS = np.load(released.FIXTURE / "samplers.npz")
TOLERANCE = 1e-3  # of the largest magnitude
LAYOUT = cameras.RELEASED


def channels_last(name):
    return np.moveaxis(ARRAYS[name], -3, -1)


def opaque(rgb):
    return jnp.concatenate([jnp.asarray(rgb, jnp.float32), jnp.ones((*rgb.shape[:-1], 1))], -1)


def relative_error(got, expected):
    assert got.shape == expected.shape
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return lambda name: released.load(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def anchor_latents(load):
    model = denoisers.AnchorDenoiser("unet", load("anchor_unet"), load("image_encoder"))
    autoencoder = load("autoencoder")
    pair = np.stack([channels_last(name)[0] / 255 for name in ("image", "normal")])
    poses = np.asarray(LAYOUT.cameras(1).world_from_cam)[None, LAYOUT.anchors]
    labels = jnp.asarray(conditions.view_labels(poses, poses[:, :1]))
    condition = anchor.start(model, autoencoder, opaque(pair)[None, :, None], labels)
    start = samplers.begin(jnp.asarray(channels_last("anchor_init_latents").reshape(1, 2, 8, 8, 8, 4)))
    plan = samplers.plan(schedules.ddim_grid(4), samplers.ORDERS["ddim"])
    return anchor.take_steps(model, condition, start, plan, prediction="epsilon").sample, autoencoder


def test_anchor_latents(anchor_latents):
    sample, _ = anchor_latents
    assert relative_error(sample.reshape(16, 8, 8, 4), channels_last("anchor_latents_4steps")) < TOLERANCE


def test_anchor_images(anchor_latents):
    sample, autoencoder = anchor_latents
    images = jax.jit(latents.decode)(autoencoder, sample[0, 0, :3])
    assert relative_error(images, channels_last("anchor_images_4steps")) < TOLERANCE


@pytest.fixture(scope="module")
def ring(load):
    """The inputs of a condition of windows: the denoiser, its autoencoder and the anchors 0, 1 and 2."""
    networks = load("interpolation_unet"), load("interpolation_image_encoder")
    model = denoisers.InterpolationDenoiser("unet", *networks)
    # The ring's first window runs from anchor 7 over 0 to 1.
    images = jnp.zeros((1, 8, 64, 64, 4)).at[0, jnp.array([7, 0, 1])].set(opaque(channels_last("anchor_images_4steps")))
    return model, load("temporal_autoencoder"), images


@pytest.fixture(scope="module")
def window(ring):
    """The denoiser, and its condition for the first window."""
    condition = interpolation.start(*ring, jax.random.key(0), 0.0, 0.02, layout=LAYOUT)
    return ring[0], jax.tree.map(lambda x: x[:1], condition)


def test_image_token_of_a_window(window):
    _, condition = window
    assert relative_error(condition.token, ARRAYS["interp_clip_embed"]) < 1e-4


def test_noise_is_added_only_to_the_latents_of_anchors(ring, window):
    noisy = interpolation.start(*ring, jax.random.key(0), 0.5, 0.02, layout=LAYOUT)
    np.testing.assert_allclose(noisy.token[:1], window[1].token, atol=1e-5)
    assert jnp.abs(noisy.latents[:1] - window[1].latents).mean() > 0.01


def test_window_latents(window):
    model, condition = window
    plan = samplers.plan(schedules.karras_grid(4, noise_max=700.0), samplers.ORDERS["euler"])
    start = samplers.begin(jnp.asarray(channels_last("interp_init_latents")))
    sample = interpolation.take_steps(model, condition, start, plan).sample
    assert relative_error(sample, channels_last("interp_latents_4steps")) < TOLERANCE
