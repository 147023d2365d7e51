"""Examples and loss of the autoencoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import cameras, config, stages
from e3d_jax.stages import autoencoder

STAGE = stages.get("autoencoder")


def test_examples_hold_color_views_and_normal_maps(ball):
    images = STAGE.sources["images"].example(ball, np.random.default_rng(0), None).images
    colors = [len(np.unique(x[x[..., 3] == 255][:, :3], axis=0)) for x in images]
    assert max(colors[:4]) <= 2 < min(colors[4:]), "views of the ball have two colors, normal maps many"


class Copier:
    """An autoencoder whose latents have a given mean and unit variance, and whose images are off by something."""

    in_channels = 4

    def __init__(self, mean=0.0, off=0.0):
        self.mean, self.off = mean, off

    def encode(self, images):
        self.images = images
        return jnp.full((len(images), 2, 2, 1), self.mean), jnp.zeros((len(images), 2, 2, 1))

    def decode(self, latent):
        return self.images + self.off


STRIPES = jnp.array([0.0, 0.5] * 4)[:, None, None]


@pytest.mark.parametrize(
    ("expected", "model"),
    [
        (0.0, Copier()),
        (0.25, Copier(off=0.25)),
        (0.25 + 0.5, Copier(off=STRIPES)),  # Off by 0.25, and their differences down by 0.5.
        (0.1 * 2.0, Copier(mean=2.0)),
    ],
    ids=["perfect", "brighter", "striped", "diverging"],
)
def test_the_loss_is_what_images_and_their_differences_are_off_by_and_the_divergence_of(expected, model):
    images = jax.random.randint(jax.random.key(0), (1, 2, 8, 8, 4), 0, 256).astype(jnp.uint8)
    chosen = config.ComponentConfig(model=None, loss=autoencoder.Loss(kl_weight=0.1))
    loss, _ = STAGE.loss(model, {}, autoencoder.Batch(images), jax.random.key(1), chosen, cameras.RELEASED)
    np.testing.assert_allclose(loss, expected, atol=1e-6)


class WrongAtHalfSize(Copier):
    """An autoencoder that is right, except that half-size latents become images that are too bright."""

    def decode(self, latent):
        if latent.shape[1] == 2:
            return self.images
        return autoencoder.halve(self.images[::2]) + 0.5


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 0.0), (0.25, 0.25 * 0.5)])
def test_half_size_latents_are_compared_with_half_size_images(weight, expected):
    images = jax.random.randint(jax.random.key(0), (1, 2, 8, 8, 4), 0, 256).astype(jnp.uint8)
    chosen = config.ComponentConfig(model=None, loss=autoencoder.Loss(kl_weight=0.0, scale_weight=weight))
    loss, _ = STAGE.loss(WrongAtHalfSize(), {}, autoencoder.Batch(images), jax.random.key(1), chosen, cameras.RELEASED)
    np.testing.assert_allclose(loss, expected, atol=1e-6)


class Smoother(Copier):
    """An autoencoder whose images have one color each."""

    def decode(self, latent):
        return jnp.broadcast_to(self.images.mean((1, 2), keepdims=True), self.images.shape)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 0.0), (2.0, 2.0 * 0.75**0.5 * 128 / 255)])
def test_contrast_that_is_missing_counts_by_its_weight(monkeypatch, weight, expected):
    monkeypatch.setattr(autoencoder, "image_error", lambda difference: 0.0)
    stripes = np.full((1, 1, 24, 24, 4), 255, np.uint8)
    stripes[..., ::2, :, :3] -= 64  # In three of the four channels.
    chosen = config.ComponentConfig(model=None, loss=autoencoder.Loss(kl_weight=0.0, contrast_weight=weight))
    loss, _ = STAGE.loss(Smoother(), {}, autoencoder.Batch(stripes), jax.random.key(1), chosen, cameras.RELEASED)
    np.testing.assert_allclose(loss, expected, rtol=0.01)


def test_equal_contrast_in_other_places_is_no_error():
    checkers = (jnp.indices((25, 25)).sum(0) % 2.0)[None, :, :, None]
    np.testing.assert_allclose(autoencoder.contrast_error(checkers, 1 - checkers), 0, atol=1e-6)


def test_uniform_images_have_a_finite_gradient_of_contrast():
    uniform = jnp.ones((1, 17, 17, 4))
    assert jnp.isfinite(jax.grad(autoencoder.contrast_error)(uniform, uniform)).all()


def test_halving_takes_means_of_four_pixels():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(autoencoder.halve(image)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])


class Watched(Copier):
    """An autoencoder whose latents are 0, almost without variance; it remembers what it decoded."""

    def encode(self, images):
        self.images = images
        return jnp.zeros((len(images), 64, 64, 1)), jnp.full((len(images), 64, 64, 1), -60.0)

    def decode(self, latent):
        self.decoded = latent
        return self.images


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (0.1, 0.1), (0.1, 0.9)])
def test_the_noise_on_latents_is_as_strong_as_drawn_for_each_image(low, high):
    model, images = Watched(), jnp.zeros((1, 64, 8, 8, 4), jnp.uint8)
    chosen = config.ComponentConfig(model=None, loss=autoencoder.Loss(latent_noise=(low, high)))
    STAGE.loss(model, {}, autoencoder.Batch(images), jax.random.key(1), chosen, cameras.RELEASED)
    strength = model.decoded.std((1, 2, 3))
    np.testing.assert_allclose([strength.min(), strength.max()], [low, high], atol=0.06)
    np.testing.assert_allclose(strength.mean(), (low + high) / 2, atol=0.06)


def test_a_range_of_noise_with_swapped_ends_is_refused():
    with pytest.raises(ValueError, match=r"latent_noise is 0\.2, 0\.1; expected the smaller number first"):
        autoencoder.Loss(latent_noise=(0.2, 0.1))
