"""Losses that are zero for perfect networks, and what they do to pictures."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from e3d_jax.diffusion import schedules
from e3d_jax.evaluation import metrics
from e3d_jax.models import autoencoder, latents, stages
from e3d_jax.training import losses


def test_turning_normals_puts_the_input_view_on_x():
    normal = jnp.array([0.0, 1.0, 0.0])  # faces a camera at azimuth 90 degrees
    rgba = jnp.append(normal / 2 + 0.5, 1.0)[None, None, None]
    turned = latents.turn_normals(rgba, jnp.array([jnp.pi / 2]))
    np.testing.assert_allclose(turned[0, 0, 0], [1.0, 0.5, 0.5, 1.0], atol=1e-6)


def test_turning_leaves_the_background_white():
    rgba = jnp.array([1.0, 1.0, 1.0, 0.0])[None, None, None]
    np.testing.assert_array_equal(latents.turn_normals(rgba, jnp.ones(1)), rgba)


def test_jitter_keeps_the_silhouette():
    rgba = jax.random.uniform(jax.random.key(0), (2, 4, 4, 4))
    jittered = losses.jitter_colours(rgba, jax.random.key(1), 0.3)
    np.testing.assert_array_equal(jittered[..., 3], rgba[..., 3])
    assert jnp.abs(jittered - rgba).max() > 0.05


class _Oracle:
    """Knows the clean latents of the one example that it is asked about."""

    def __init__(self, clean):
        self.clean = clean

    def condition(self, images, latents):
        return stages.AnchorCondition(latents=latents, tokens=images[..., :1, 0, :])

    def __call__(self, noisy, time, condition):
        del condition
        level = schedules.discrete_levels(time.astype(int), zero_terminal_snr=True)
        alpha, sigma = (x[None, :, None, None, None, None] for x in (level.alpha, level.sigma))
        noise = (noisy - alpha * self.clean) / sigma
        return alpha * noise - sigma * self.clean


SETTINGS = {
    "prediction": "v",
    "zero_terminal_snr": True,
    "min_snr_gamma": 0.0,
    "last_level_share": 0.5,
    "estimated_normals": 0.5,
    "drop_condition": 0.5,
    "picture_weight": 0.0,
}


def test_a_perfect_anchor_network_has_no_loss():
    widths = {"block_out_channels": (32, 32), "layers_per_block": 1, "latent_channels": 2}
    module = autoencoder.Autoencoder(in_channels=4, out_channels=4, **widths, scaling_factor=2.0, rngs=nnx.Rngs(0))
    target = jax.random.randint(jax.random.key(0), (1, 2, 8, 8, 8, 4), 0, 256).astype(jnp.uint8)
    batch = {"condition": target[:, :, 0], "target": target, "azimuth": jnp.zeros(1)}
    upright = latents.turn_normals(target[:, 1] / 255.0, jnp.zeros(1))
    seen = jnp.stack([target[:, 0] / 255.0, upright], 0)
    clean = 2.0 * latents.encode(module, latents.network_image(seen, 4))
    frozen = {"autoencoder": module, "normals": lambda image: jnp.ones((*image.shape[:3], 3))}
    loss, _ = losses.anchor_loss(_Oracle(clean), frozen, batch, jax.random.key(1), **SETTINGS)
    assert loss < 1e-6


class _Copier:
    """An autoencoder whose latents have a given mean and unit variance, and whose pictures are off by something."""

    in_channels = 4

    def __init__(self, mean=0.0, off=0.0):
        self.mean, self.off = mean, off

    def encode(self, images):
        self.images = images
        return jnp.full((len(images), 2, 2, 1), self.mean), jnp.zeros((len(images), 2, 2, 1))

    def decode(self, latent):
        return self.images + self.off


def test_the_loss_of_an_autoencoder_is_what_pictures_are_off_by_and_its_divergence():
    batch = {"image": jax.random.randint(jax.random.key(0), (1, 2, 8, 8, 4), 0, 256).astype(jnp.uint8)}
    stripes = jnp.array([0.0, 0.5] * 4)[:, None, None]  # Off by 0.25, and their differences down by 0.5.
    cases = {0.0: _Copier(), 0.25: _Copier(off=0.25), 0.75: _Copier(off=stripes), 0.1 * 2.0: _Copier(mean=2.0)}
    for expected, model in cases.items():
        loss, _ = losses.autoencoder_loss(model, {}, batch, jax.random.key(1), kl_weight=0.1)
        np.testing.assert_allclose(loss, expected, atol=1e-6)


def test_the_loss_of_normals_is_one_minus_the_cosine_inside_the_silhouette():
    image = jax.random.randint(jax.random.key(0), (2, 8, 8, 4), 0, 256).astype(jnp.uint8)
    image = image.at[..., 3].set(255 * (image[..., 3] > 127))
    target = image[..., :3] / 127.5 - 1
    target = target / jnp.linalg.norm(target, axis=-1, keepdims=True)
    inside = image[..., 3:] > 127
    batch = {"image": image, "normal": image, "azimuth": jnp.zeros(2)}
    for sign, expected in ((1.0, 0.0), (-1.0, 2.0)):
        model = lambda _, sign=sign: jnp.where(inside, sign, -sign) * target  # noqa: E731
        loss, _ = losses.normals_loss(model, {}, batch, jax.random.key(1), colour_jitter=0.1)
        np.testing.assert_allclose(loss, expected, atol=1e-5)


class _WindowOracle:
    """Knows the clean latents of windows, and is off by a constant."""

    def __init__(self, clean, off=0.0):
        self.clean, self.off = clean, off

    def __call__(self, noisy, time, condition):
        self.log_noise = 4 * time
        level = schedules.edm_levels(jnp.exp(self.log_noise))
        alpha, sigma = (x[:, None, None, None, None] for x in (level.alpha, level.sigma))
        return alpha * (noisy - alpha * self.clean) / sigma - sigma * self.clean + self.off


def test_the_loss_of_an_interpolation_is_the_square_of_what_the_network_is_off_by():
    clean = jax.random.normal(jax.random.key(0), (256, 9, 2, 2, 1))
    batch = {"window": clean, "anchors": clean[:, :3], "token": jnp.zeros((256, 4)), "strength": jnp.ones(256)}
    levels = {"log_noise_mean": 0.7, "log_noise_std": 1.6, "log_augmentation_mean": -3.0}
    for off, expected in ((0.0, 0.0), (2.0, 4.0)):
        network = _WindowOracle(clean, off)
        loss, _ = losses.interpolation_loss(network, {}, batch, jax.random.key(1), **levels)
        np.testing.assert_allclose(loss, expected, atol=1e-3)
    np.testing.assert_allclose([network.log_noise.mean(), network.log_noise.std()], [0.7, 1.6], rtol=0.05)


def test_structural_similarity_is_the_one_that_views_are_scored_with():
    true = np.random.default_rng(0).random((1, 24, 30, 3)).astype(np.float32)
    pred = np.clip(true + 0.3 * np.random.default_rng(1).random(true.shape), 0, 1).astype(np.float32)
    found = losses.structural_similarity(jnp.asarray(pred), jnp.asarray(true))
    np.testing.assert_allclose(found.mean(), metrics.ssim(pred[0], true[0]), rtol=1e-5)


class _Painter(autoencoder.Autoencoder):
    """Its latents are pictures of the network's kind."""

    def __init__(self):
        self.in_channels, self.scaling_factor = 4, 2.0

    def encode(self, x):
        return x, x

    def decode(self, z, num_frames=1):
        return z


def _pictures():
    """Uint8 targets of two objects, and the latents that paint them."""
    target = jax.random.randint(jax.random.key(0), (2, 2, 8, 12, 12, 4), 0, 256).astype(jnp.uint8)
    batch = {"target": target, "azimuth": jnp.array([0.0, 1.0])}
    return batch, 2 * latents.network_image(losses.turned(target / 255.0, batch["azimuth"]), 4)


def test_views_that_are_decoded_to_the_true_pictures_have_no_picture_loss():
    batch, views = _pictures()
    assert losses.picture_loss(_Painter(), views, batch, jnp.array([3, 5])) < 1e-5


def test_the_picture_loss_is_of_the_chosen_view_of_each_object():
    batch, views = _pictures()
    gradient = jax.grad(lambda views: losses.picture_loss(_Painter(), views, batch, jnp.array([3, 5])))(views + 0.1)
    found = jnp.argwhere(jnp.abs(gradient).max((1, 3, 4, 5)) > 0)
    np.testing.assert_array_equal(found, [[0, 3], [1, 5]])


def test_a_network_that_finds_the_true_pictures_has_no_loss_of_either_kind():
    batch, views = _pictures()
    batch["condition"] = batch["target"][:, :, 0]
    frozen = {"autoencoder": _Painter(), "normals": lambda image: jnp.ones((*image.shape[:3], 3))}
    oracle = _Oracle(jnp.moveaxis(views, 1, 0))
    loss, parts = losses.anchor_loss(oracle, frozen, batch, jax.random.key(1), **SETTINGS | {"picture_weight": 2.0})
    assert loss < 1e-5 and "loss_picture" in parts


def test_the_last_level_gets_its_share():
    steps = losses.training_steps(jax.random.key(0), 40, 0.25)
    assert (steps == 999).sum() == 10
    np.testing.assert_array_equal(jnp.floor(steps[:30] * 30 / 1000), jnp.arange(30))


def test_noise_levels_spread_evenly_over_a_batch():
    drawn = losses.stratified(jax.random.key(0), 10)
    np.testing.assert_array_equal(jnp.floor(drawn * 10), jnp.arange(10))
