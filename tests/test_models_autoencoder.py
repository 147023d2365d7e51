import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import autoencoder, image_encoder

TINY = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_groups": 4}


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@functools.cache
def tiny(**kwargs):
    return autoencoder.Autoencoder(**TINY, rngs=nnx.Rngs(0), **kwargs)


# Compiling takes nearly all of the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
encode = jit(autoencoder.Autoencoder.encode)
decode = jit(autoencoder.Autoencoder.decode, static_argnames="num_frames")


@pytest.mark.parametrize("mid_attention", [True, False])
def test_any_number_of_channels(mid_attention):
    module = tiny(in_channels=4, out_channels=4, latent_channels=8, mid_attention=mid_attention)
    mean, logvar = encode(module, jnp.ones((2, 8, 8, 4)))
    assert mean.shape == logvar.shape == (2, 4, 4, 8)
    assert decode(module, mean).shape == (2, 8, 8, 4)


def test_log_variance_is_bounded():
    module = autoencoder.Autoencoder(**TINY, rngs=nnx.Rngs(0))
    module.quant_conv.bias[...] = jnp.full(8, -1e3)
    np.testing.assert_array_equal(encode(module, jnp.ones((1, 8, 8, 3)))[1], -30)


def test_images_are_decoded_alone():
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


def test_bfloat16_runs():
    mean, _ = encode(tiny(dtype=jnp.bfloat16), jnp.ones((1, 8, 8, 3)))
    assert mean.dtype == jnp.bfloat16 and jnp.isfinite(mean).all()


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="images of 7 x 8 pixels; both must be multiples of 2"):
        tiny().encode(jnp.ones((1, 7, 8, 3)))


def test_broken_windows_are_refused():
    with pytest.raises(ValueError, match="5 latents are not whole windows of 3 frames"):
        tiny().decode(jnp.ones((5, 4, 4, 4)), num_frames=3)


ENCODER = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 16, "num_layers": 1, "heads": 2}


def test_an_image_encoder_of_any_size():
    module = image_encoder.ImageEncoder(**ENCODER, projection_dim=5, rngs=nnx.Rngs(0))
    x = noise(0, 2, 8, 8, 3)
    got = jit(lambda m, x: m(x))(module, x)
    assert got.shape == (2, 5)
    assert jnp.abs(got[0] - got[1]).max() > 1e-3


def test_images_of_another_size_are_refused():
    module = image_encoder.ImageEncoder(**ENCODER, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="images of 6 x 8 pixels; resize them to 8 x 8"):
        module(jnp.ones((1, 6, 8, 3)))


@pytest.mark.parametrize("change, message", [({"activation": "relu"}, "unknown activation 'relu'")])
def test_impossible_encoders_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        image_encoder.ImageEncoder(**ENCODER | change, rngs=nnx.Rngs(0))


def test_patches_must_tile():
    with pytest.raises(ValueError, match="patches of 3 pixels do not tile images of 8"):
        image_encoder.ImageEncoder(**ENCODER | {"patch_size": 3}, rngs=nnx.Rngs(0))
