"""Four sampling steps against the released system, conditions included: ``fixtures/released_topology/samplers.npz``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released
from e3d_jax.sampling import anchors, interpolation
from flax import nnx

from e3d_jax.diffusion import samplers, schedules
from e3d_jax.models import build, latents, stages

ARRAYS = np.load(released.FIXTURE / "samplers.npz")
TOLERANCE = 1e-3  # of the largest magnitude


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
    stage = stages.AnchorStage(load("anchor_unet"), load("image_encoder"))
    autoencoder = load("autoencoder")
    pair = np.stack([channels_last(name)[0] / 255 for name in ("image", "normal")])
    condition = anchors.make_condition(stage, autoencoder, opaque(pair)[None])
    start = samplers.begin(jnp.asarray(channels_last("anchor_init_latents").reshape(2, 1, 8, 8, 8, 4)))
    plan = samplers.plan(schedules.ddim_grid(4), samplers.ORDERS["ddim"])
    return anchors.take_steps(stage, condition, start, plan, prediction="epsilon").sample, autoencoder


def test_anchor_latents(anchor_latents):
    sample, _ = anchor_latents
    assert relative_error(sample.reshape(16, 8, 8, 4), channels_last("anchor_latents_4steps")) < TOLERANCE


def test_anchor_pictures(anchor_latents):
    sample, autoencoder = anchor_latents
    pictures = jax.jit(latents.decode)(autoencoder, sample[0, 0, :3])
    assert relative_error(pictures, channels_last("anchor_images_4steps")) < TOLERANCE


@pytest.fixture(scope="module")
def ring(load):
    """What the condition of windows is made of: the stage, its autoencoder and the anchors 0, 1 and 2."""
    stage = stages.InterpolationStage(load("interpolation_unet"), load("interpolation_image_encoder"))
    # The ring's first window runs from anchor 7 over 0 to 1.
    pictures = (
        jnp.zeros((1, 8, 64, 64, 4)).at[0, jnp.array([7, 0, 1])].set(opaque(channels_last("anchor_images_4steps")))
    )
    return stage, load("temporal_autoencoder"), pictures


@pytest.fixture(scope="module")
def window(ring):
    """The interpolation stage, and its condition for the first window."""
    condition = interpolation.make_condition(*ring, jax.random.key(0), 0.0, 0.02)
    return ring[0], jax.tree.map(lambda x: x[:1], condition)


def test_image_token_of_a_window(window):
    _, condition = window
    assert relative_error(condition.token, ARRAYS["interp_clip_embed"]) < 1e-4


def test_noise_is_added_to_the_latents_of_anchors_alone(ring, window):
    noisy = interpolation.make_condition(*ring, jax.random.key(0), 0.5, 0.02)
    np.testing.assert_allclose(noisy.token[:1], window[1].token, atol=1e-5)
    assert jnp.abs(noisy.latents[:1] - window[1].latents).mean() > 0.01


def test_window_latents(window):
    stage, condition = window
    plan = samplers.plan(schedules.karras_grid(4, noise_max=700.0), samplers.ORDERS["euler"])
    start = samplers.begin(jnp.asarray(channels_last("interp_init_latents")))
    sample = interpolation.take_steps(stage, condition, start, plan).sample
    assert relative_error(sample, channels_last("interp_latents_4steps")) < TOLERANCE


def test_a_temporal_decoder_sees_the_frames_of_each_window_together():
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_groups": 4, "temporal_decoder": True}
    module = build.build("interpolation_autoencoder", sizes, rngs=nnx.Rngs(0))
    z = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 4))
    alone = jax.jit(lambda module, z: latents.picture(module.decode(z, num_frames=3)))(
        module, z[1] / module.scaling_factor
    )
    np.testing.assert_allclose(jax.jit(latents.decode)(module, z)[1], alone, atol=1e-5)


def test_images_that_are_encoded_in_turns_do_not_see_each_other():
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_groups": 4}
    module = build.build("autoencoder", sizes, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (1, 5, 8, 8, 3))  # One is left over.
    together = jax.jit(latents.encode)(module, images)
    assert together.shape == (1, 5, 4, 4, 4)
    np.testing.assert_allclose(jax.jit(latents.encode_in_turns)(module, images), together, atol=1e-5)
