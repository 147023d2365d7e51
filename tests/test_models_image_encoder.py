"""CLIP's image encoder and the preprocessing of its images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import image_encoder, layers

TINY = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "intermediate_size": 16, "num_layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def encoder():
    spec = image_encoder.ImageEncoderSpec(**TINY, projection_dim=5)
    return image_encoder.ImageEncoder(spec, layers.Types(rngs=nnx.Rngs(0)))


def test_every_image_gets_an_embedding_of_its_own(encoder):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32))
    compiled = jax.jit(lambda m, x: m(x), compiler_options={"xla_backend_optimization_level": 0})
    got = compiled(encoder, x)
    assert got.shape == (2, 5)
    assert jnp.abs(got[0] - got[1]).max() > 1e-3


def test_images_of_another_size_are_refused(encoder):
    with pytest.raises(ValueError, match="images are 6 x 8 pixels; resize them to 8 x 8"):
        encoder(jnp.ones((1, 6, 8, 3)))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation is 'relu'; expected one of quick_gelu, gelu"):
        image_encoder.ImageEncoderSpec(activation="relu")


def test_patches_must_tile():
    with pytest.raises(ValueError, match="patch_size 3 does not divide image_size 8"):
        image_encoder.ImageEncoderSpec(**TINY | {"patch_size": 3})


def test_antialiased_resize_matches_pytorch():
    # PyTorch's interpolate(mode="bicubic", align_corners=True), float64, after the blur of three taps.
    i = np.arange(256)
    line = np.sin(0.7 * i) + np.cos(0.03 * i * i)
    image = np.broadcast_to(line[None, None, :, None] / 2, (1, 256, 256, 3))
    pixels = image_encoder.antialiased_clip_pixels(jnp.asarray(image, jnp.float32), 224)
    resized = 2 * (2 * (np.asarray(pixels) * image_encoder.CLIP_STD + image_encoder.CLIP_MEAN) - 1)[0, 100, :, 1]
    expected = [1.0, 1.7372661, 1.5940134, 1.7684041, -0.3335491, 1.8918995, -0.4437259]
    np.testing.assert_allclose(resized[[0, 1, 57, 111, 200, 222, 223]], expected, atol=1e-5)


@pytest.mark.parametrize("source, size", [(64, 24), (24, 64), (256, 224)])
def test_antialiased_resize_keeps_a_constant(source, size):
    matrix = image_encoder._antialiased_resize(source, size)
    assert matrix.shape == (size, source)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)


def test_antialiased_resize_removes_what_the_small_image_cannot_show():
    stripes = np.tile([1.0, -1.0], 64)
    assert np.abs(image_encoder._antialiased_resize(128, 16) @ stripes)[1:-1].max() < 0.02


def test_images_of_the_encoders_size_are_not_resized():
    images = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
    np.testing.assert_array_equal(
        image_encoder.clip_pixels(images, 8), image_encoder.antialiased_clip_pixels(images, 8)
    )
