"""The loss of each stage, and the one train step that they share.

A stage's loss takes the module in training, the frozen components that it needs, a batch of its loader
(:mod:`e3d_jax.data.loader`) and a key, and returns a scalar and scalar metrics.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from e3d_jax.diffusion import denoiser, schedules
from e3d_jax.models import build, latents

DATA = "data"
Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run changes: step count, parameters, their moving average, optimiser state."""

    step: Any
    params: Any
    ema: Any
    optimizer: Any


def turn_normals(rgba: Float[Array, "b *n h w 4"], azimuth: Float[Array, " b"]) -> Float[Array, "b *n h w 4"]:
    """Encoded world normals, turned about z by ``-azimuth``: into the world whose view 0 stands at that azimuth."""
    angle = denoiser.expand(azimuth, rgba[..., 0])
    x, y, z = (2 * rgba[..., i] - 1 for i in range(3))
    turned = jnp.stack([jnp.cos(angle) * x + jnp.sin(angle) * y, jnp.cos(angle) * y - jnp.sin(angle) * x, z], -1)
    # White stands for "no normal" and does not turn.
    rgb = jnp.where(rgba[..., 3:] > 0, turned / 2 + 0.5, 1.0)
    return jnp.concatenate([rgb, rgba[..., 3:]], -1)


def autoencoder_loss(model, frozen, batch, key, *, kl_weight: float) -> tuple[jax.Array, Metrics]:
    """L1 of pixels and of their differences, and KL to the unit Gaussian (arXiv 2112.10752, App. G, without GAN)."""
    del frozen
    rgba = _scale(batch["image"])
    target = latents.network_image(rgba.reshape(-1, *rgba.shape[2:]), model.in_channels)
    mean, logvar = model.encode(target)
    latent = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape, mean.dtype)
    difference = model.decode(latent) - target
    edges = sum(jnp.abs(jnp.diff(difference, axis=axis)).mean() for axis in (1, 2))
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    loss = jnp.abs(difference).mean() + edges + kl_weight * kl
    metrics = {"psnr": -10 * jnp.log10((difference**2).mean() / 4), "kl": kl, "latent_std": mean.std()}
    return loss, metrics


def normals_loss(model, frozen, batch, key, *, colour_jitter: float) -> tuple[jax.Array, Metrics]:
    """One minus the cosine inside the silhouette, on pictures with jittered colours."""
    del frozen
    rgba = jitter_colours(_scale(batch["image"]), key, colour_jitter)
    normal = turn_normals(_scale(batch["normal"]), batch["azimuth"])
    target, inside = 2 * normal[..., :3] - 1, normal[..., 3] > 0.5
    target = target / jnp.maximum(jnp.linalg.norm(target, axis=-1, keepdims=True), 1e-6)
    cosine = (model(latents.network_image(rgba, 4)) * target).sum(-1)
    mean = lambda x: (x * inside).sum() / jnp.maximum(inside.sum(), 1)  # noqa: E731
    angle = jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))
    return mean(1 - cosine), {"angle_deg": jax.lax.stop_gradient(mean(angle))}


def anchor_loss(model, frozen, batch, key, *, prediction, min_snr_gamma, estimated_normals, drop_condition):
    """Squared error of the U-Net's output on eight noisy views of both domains, see :func:`denoiser.loss_weight`.

    ``estimated_normals`` is the share of examples whose condition normal map comes from the frozen normal estimator, as
    at inference, rather than from the renderer; ``drop_condition`` the share whose condition is blank.
    """
    autoencoder, estimator = frozen["autoencoder"], frozen["normals"]
    key_noise, key_time, key_estimate, key_drop = jax.random.split(key, 4)
    condition, target = _scale(batch["condition"]), _scale(batch["target"])
    condition = condition.at[:, 1].set(turn_normals(condition[:, 1], batch["azimuth"]))
    target = target.at[:, 1].set(turn_normals(target[:, 1], batch["azimuth"]))
    size = len(condition)
    estimated = jnp.where(
        condition[:, 1, ..., 3:] > 0, estimator(latents.network_image(condition[:, 0], 4)) / 2 + 0.5, 1.0
    )
    use = denoiser.expand(jax.random.bernoulli(key_estimate, estimated_normals, (size,)), estimated)
    condition = condition.at[:, 1, ..., :3].set(jnp.where(use, estimated, condition[:, 1, ..., :3]))
    drop = denoiser.expand(jax.random.bernoulli(key_drop, drop_condition, (size,)), condition)
    condition = jnp.where(drop, jnp.array([1.0, 1.0, 1.0, 0.0]), condition)

    channels, scale = autoencoder.in_channels, autoencoder.scaling_factor
    clean = jnp.moveaxis(latents.encode(autoencoder, latents.network_image(target, channels)) * scale, 1, 0)
    known_latents = latents.encode(autoencoder, latents.network_image(condition, channels)) * scale
    time = jax.random.randint(key_time, (size,), 0, schedules.NUM_TRAIN_STEPS)
    level = schedules.discrete_levels(time)
    # The batch is the second axis of the sample; the same level for all views of an object.
    spread = jax.tree.map(lambda x: x[None, :, None], level)
    noise = jax.random.normal(key_noise, clean.shape)
    known = model.condition(latents.network_image(condition), known_latents)
    output = model(denoiser.add_noise(clean, noise, spread), level.time, known)
    error = (output - denoiser.target(prediction, clean, noise, spread)) ** 2
    weight = denoiser.loss_weight(prediction, level, min_snr_gamma)
    per_object = error.mean((0, 2, 3, 4, 5))
    metrics = {"loss_colour": error[0].mean(), "loss_normal": error[1].mean()}
    for third, name in enumerate(("low_noise", "middle_noise", "high_noise")):
        chosen = time * 3 // schedules.NUM_TRAIN_STEPS == third
        metrics[f"loss_{name}"] = (per_object * chosen).sum() / jnp.maximum(chosen.sum(), 1)
    return (weight * per_object).mean(), metrics


def interpolation_loss(model, frozen, batch, key, *, log_noise_mean, log_noise_std, log_augmentation_mean):
    """Stable Video Diffusion's objective (arXiv 2311.15127, App. D): EDM noise, v prediction, noisy anchors.

    The anchors that condition the window get Gaussian noise of a log-normal standard deviation, of which the network
    is told: generated anchors are not clean either.
    """
    autoencoder = frozen["autoencoder"]
    key_noise, key_level, key_strength, key_augment = jax.random.split(key, 4)
    window = latents.network_image(_scale(batch["window"]), autoencoder.in_channels)
    size = len(window)
    strength = jnp.exp(log_augmentation_mean + 0.5 * jax.random.normal(key_strength, (size,)))
    anchors = window[:, [0, 4, 8]]
    anchors = anchors + denoiser.expand(strength, anchors) * jax.random.normal(key_augment, anchors.shape)
    clean = latents.encode(autoencoder, window) * autoencoder.scaling_factor
    anchor_latents = latents.encode(autoencoder, anchors)

    level = schedules.edm_levels(jnp.exp(log_noise_mean + log_noise_std * jax.random.normal(key_level, (size,))))
    noise = jax.random.normal(key_noise, clean.shape)
    known = model.condition(anchors[:, 0, ..., :3], anchor_latents, strength)
    output = model(denoiser.add_noise(clean, noise, level), level.time, known)
    error = (output - denoiser.target("v", clean, noise, level)) ** 2
    return error.mean(), {"loss_new_views": error[:, jnp.array([1, 2, 3, 5, 6, 7])].mean()}


LOSSES: dict[str, Loss] = {
    "autoencoder": autoencoder_loss,
    "normals": normals_loss,
    "anchor": anchor_loss,
    "interpolation": interpolation_loss,
}
# Components that a stage uses without training them.
NEEDS: dict[str, tuple[build.Component, ...]] = {
    "autoencoder": (),
    "normals": (),
    "anchor": ("autoencoder", "normals"),
    "interpolation": ("autoencoder",),
}


def jitter_colours(rgba: Float[Array, "b h w 4"], key: jax.Array, strength: float) -> Float[Array, "b h w 4"]:
    """Pictures with random gain, gamma and channel balance, so that shape is not read off one renderer's lights."""
    gain, gamma, balance = jax.random.split(key, 3)
    size = len(rgba)
    exponent = jnp.exp(strength * jax.random.normal(gamma, (size, 1, 1, 1)))
    scale = jnp.exp(strength * jax.random.normal(gain, (size, 1, 1, 1)))
    scale = scale * jnp.exp(strength / 2 * jax.random.normal(balance, (size, 1, 1, 3)))
    rgb = jnp.clip(jnp.maximum(rgba[..., :3], 1e-4) ** exponent * scale, 0, 1)
    return jnp.concatenate([rgb, rgba[..., 3:]], -1)


def make_train_step(
    graphdef, frozen_graphdefs, loss: Loss, optimizer: optax.GradientTransformation, mesh: Mesh, ema: float
):
    """The jitted update ``(state, frozen, batch, key, rate) -> (state, metrics)``, data parallel over the mesh.

    The learning rate is an argument, so that runs of other lengths and rates share one compiled program.

    Args:
      graphdef: of the module in training.
      frozen_graphdefs: of the frozen components, by name.
      loss: a stage's loss with its settings bound.
      optimizer: gradients to updates, before the learning rate.
      mesh: one axis, ``data``; the batch's first axis is split over it, all else is replicated.
      ema: decay of the moving average of the parameters, reached gradually.
    """

    def gradients(params, frozen, batch, key):
        # Each device draws its own noise for its own examples.
        key = jax.random.fold_in(key, jax.lax.axis_index(DATA))
        modules = {name: nnx.merge(frozen_graphdefs[name], state) for name, state in frozen.items()}
        compute = lambda params: loss(nnx.merge(graphdef, params), modules, batch, key)  # noqa: E731
        (value, metrics), grads = jax.value_and_grad(compute, has_aux=True)(params)
        return jax.lax.pmean((grads, {"loss": value, **metrics}), DATA)

    everywhere, split = PartitionSpec(), PartitionSpec(DATA)
    gradients = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(everywhere, everywhere, split, everywhere),
        out_specs=everywhere,
        check_vma=False,
    )

    def train_step(state: TrainState, frozen, batch, key, rate):
        grads, metrics = gradients(state.params, frozen, batch, jax.random.fold_in(key, state.step))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda param, update: param - rate * update, state.params, updates)
        decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        return TrainState(state.step + 1, params, average, optimizer_state), metrics

    return jax.jit(train_step, donate_argnums=0)


def _scale(image: Array) -> Float[Array, "..."]:
    """uint8 images in [0, 1]."""
    return image.astype(jnp.float32) / 255
