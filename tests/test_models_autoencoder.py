import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import autoencoder, layers

TINY = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_groups": 4}


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def build(dtype=jnp.float32, **settings):
    spec = autoencoder.AutoencoderSpec(**TINY | settings)
    return autoencoder.Autoencoder(spec, layers.Types(dtype=dtype, rngs=nnx.Rngs(0)))


tiny = functools.cache(build)


# Compiling takes nearly all of the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
encode = jit(autoencoder.Autoencoder.encode)
decode = jit(autoencoder.Autoencoder.decode, static_argnames="num_frames")


@pytest.mark.parametrize("mid_attention", [True, False])
def test_images_and_latents_may_have_any_number_of_channels(mid_attention):
    module = tiny(in_channels=4, out_channels=4, latent_channels=8, mid_attention=mid_attention)
    mean, logvar = encode(module, jnp.ones((2, 8, 8, 4)))
    assert mean.shape == logvar.shape == (2, 4, 4, 8)
    assert decode(module, mean).shape == (2, 8, 8, 4)


def test_log_variance_is_bounded():
    module = build()
    module.quant_conv.bias[...] = jnp.full(8, -1e3)
    np.testing.assert_array_equal(encode(module, jnp.ones((1, 8, 8, 3)))[1], -30)


def test_an_image_decoder_decodes_each_image_on_its_own():
    z = noise(0, 3, 4, 4, 4)
    change = np.abs(np.asarray(decode(tiny(), z.at[0].multiply(2)) - decode(tiny(), z))).max((1, 2, 3))
    assert (change > 1e-5).tolist() == [True, False, False]


def test_a_temporal_decoder_mixes_the_frames_of_a_window():
    module = tiny(temporal_decoder=True)
    z = noise(0, 6, 4, 4, 4)
    change = decode(module, z.at[0].add(1.0), num_frames=3) - decode(module, z, num_frames=3)
    reached = np.abs(np.asarray(change)).max((1, 2, 3)) > 1e-6
    # New blocks are the identity; the last convolution reaches one frame to either side.
    assert reached.tolist() == [True, True, False, False, False, False]


def test_gradients_are_finite_for_an_empty_image():
    def loss(module):
        return (module.decode(module.encode(jnp.zeros((1, 8, 8, 3)))[0]) ** 2).mean()

    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(jit(nnx.grad(loss))(tiny())))


def test_an_autoencoder_computes_in_bfloat16():
    mean, _ = encode(tiny(dtype=jnp.bfloat16), jnp.ones((1, 8, 8, 3)))
    assert mean.dtype == jnp.bfloat16 and jnp.isfinite(mean).all()


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="images are 7 x 8 pixels; both must be multiples of 2"):
        tiny().encode(jnp.ones((1, 7, 8, 3)))


def test_incomplete_windows_are_refused():
    with pytest.raises(ValueError, match="got 5 latents; expected a multiple of the 3 frames"):
        tiny().decode(jnp.ones((5, 4, 4, 4)), num_frames=3)


def test_an_autoencoder_without_levels_is_refused():
    with pytest.raises(ValueError, match="block_out_channels is empty"):
        autoencoder.AutoencoderSpec(block_out_channels=())
