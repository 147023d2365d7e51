"""Between images in memory and what the networks see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import autoencoder, latents, layers

SIZES = {"block_out_channels": (4, 4), "layers_per_block": 1, "norm_groups": 2, "mid_attention": False}


def build(**sizes):
    return autoencoder.Autoencoder(autoencoder.AutoencoderSpec(**SIZES | sizes), layers.Types(rngs=nnx.Rngs(0)))


def test_turning_normals_puts_the_input_view_on_x():
    normal = jnp.array([0.0, 1.0, 0.0])  # Faces a camera at azimuth 90 degrees.
    rgba = jnp.append(normal / 2 + 0.5, 1.0)[None, None, None]
    turned = latents.turn_normals(rgba, jnp.array([jnp.pi / 2]))
    np.testing.assert_allclose(turned[0, 0, 0], [1.0, 0.5, 0.5, 1.0], atol=1e-6)


def test_turning_normals_leaves_the_background_white():
    rgba = jnp.array([1.0, 1.0, 1.0, 0.0])[None, None, None]
    np.testing.assert_array_equal(latents.turn_normals(rgba, jnp.ones(1)), rgba)


def test_a_temporal_decoder_sees_the_frames_of_each_window_together():
    module = build(temporal_decoder=True)
    z = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 4))
    alone = jax.jit(lambda module, z: latents.memory_image(module.decode(z, num_frames=3)))(
        module, z[1] / module.scaling_factor
    )
    np.testing.assert_allclose(jax.jit(latents.decode)(module, z)[1], alone, atol=1e-5)


def test_images_that_are_encoded_in_turns_do_not_see_each_other():
    module = build()
    images = jax.random.normal(jax.random.key(0), (1, 5, 8, 8, 3))  # One is left over.
    together = jax.jit(latents.encode)(module, images)
    assert together.shape == (1, 5, 4, 4, 4)
    np.testing.assert_allclose(jax.jit(latents.encode_in_turns)(module, images), together, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 4])
def test_images_come_back_from_the_networks_range(channels):
    rgba = jax.random.uniform(jax.random.key(0), (2, 4, 4, 4), minval=0.2)
    found = latents.memory_image(latents.network_image(rgba, channels))
    over_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    np.testing.assert_allclose(found, rgba if channels == 4 else over_white, atol=1e-5)
