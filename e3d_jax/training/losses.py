"""The loss of each stage.

A stage's loss takes the module in training, the frozen components that it needs, a batch of its loader
(:mod:`e3d_jax.data.loader`) and a key, and returns a scalar and scalar metrics. Batches of the diffusion stages hold
pictures, or what the frozen components make of them (:mod:`e3d_jax.data.encoded`).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from e3d_jax.diffusion import denoiser, schedules
from e3d_jax.models import build, latents, stages

Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]
Modules = Mapping[str, Any]
Batch = Mapping[str, Array]
# A picture without an object, which stands for a dropped condition.
BLANK = np.array([1.0, 1.0, 1.0, 0.0], np.float32)


def autoencoder_loss(
    model: Any, frozen: Modules, batch: Batch, key: jax.Array, *, kl_weight: float
) -> tuple[jax.Array, Metrics]:
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


def normals_loss(
    model: Any, frozen: Modules, batch: Batch, key: jax.Array, *, colour_jitter: float
) -> tuple[jax.Array, Metrics]:
    """One minus the cosine inside the silhouette, on pictures with jittered colours."""
    del frozen
    rgba = jitter_colours(_scale(batch["image"]), key, colour_jitter)
    normal = latents.turn_normals(_scale(batch["normal"]), batch["azimuth"])
    target, inside = 2 * normal[..., :3] - 1, normal[..., 3] > 0.5
    target = target / jnp.maximum(jnp.linalg.norm(target, axis=-1, keepdims=True), 1e-6)
    cosine = (model(latents.network_image(rgba, 4)) * target).sum(-1)
    mean = lambda x: (x * inside).sum() / jnp.maximum(inside.sum(), 1)  # noqa: E731
    angle = jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))
    return mean(1 - cosine), {"angle_deg": jax.lax.stop_gradient(mean(angle))}


def anchor_loss(
    model: Any,
    frozen: Modules,
    batch: Batch,
    key: jax.Array,
    *,
    prediction: denoiser.Prediction,
    zero_terminal_snr: bool,
    min_snr_gamma: float,
    last_level_share: float,
    estimated_normals: float,
    drop_condition: float,
    picture_weight: float,
) -> tuple[jax.Array, Metrics]:
    """Squared error of the U-Net's output on eight noisy views of both domains, see :func:`denoiser.loss_weight`.

    ``last_level_share`` is the share of examples at the noisiest level, which sampling in one or two steps depends on;
    the others spread evenly over all levels. ``estimated_normals`` is the share of examples whose condition normal map
    comes from the frozen normal estimator, as at inference, rather than from the renderer; ``drop_condition`` the share
    whose condition is blank. The squared error asks for the mean of all latents that are possible, which is not decoded
    to the mean of the possible pictures; so ``picture_weight`` times :func:`picture_loss` is added, of one random view
    of each object in both domains.
    """
    key_noise, key_time, key_estimate, key_drop, key_view = jax.random.split(key, 5)
    size = len(batch["azimuth"])
    use = jax.random.bernoulli(key_estimate, estimated_normals, (size,))
    drop = jax.random.bernoulli(key_drop, drop_condition, (size,))
    views, known = (encoded_anchors if "tokens" in batch else anchors_of_images)(model, frozen, batch, use, drop)
    clean = jnp.moveaxis(views, 1, 0)
    time = training_steps(key_time, size, last_level_share)
    level = schedules.discrete_levels(time, zero_terminal_snr)
    # The batch is the second axis of the sample; the same level for all views of an object.
    spread = jax.tree.map(lambda x: x[None, :, None], level)
    noise = jax.random.normal(key_noise, clean.shape)
    noisy = denoiser.add_noise(clean, noise, spread)
    output = model(noisy, level.time, known)
    error = (output - denoiser.target(prediction, clean, noise, spread)) ** 2
    weight = denoiser.loss_weight(prediction, level, min_snr_gamma)
    per_object = error.mean((0, 2, 3, 4, 5))
    metrics = {"loss_colour": error[0].mean(), "loss_normal": error[1].mean()}
    for third, name in enumerate(("low_noise", "middle_noise", "high_noise")):
        chosen = time * 3 // schedules.NUM_TRAIN_STEPS == third
        metrics[f"loss_{name}"] = (per_object * chosen).sum() / jnp.maximum(chosen.sum(), 1)
    loss = (weight * per_object).mean()
    if picture_weight:
        found = denoiser.clean(prediction, output.astype(jnp.float32), noisy, spread)
        index = jax.random.randint(key_view, (size,), 0, found.shape[2])
        metrics["loss_picture"] = picture_loss(frozen["autoencoder"], jnp.moveaxis(found, 1, 0), batch, index)
        loss = loss + picture_weight * metrics["loss_picture"]
    return loss, metrics


def picture_loss(
    autoencoder: Any, sampled: Float[Array, "b 2 v hl wl c"], batch: Batch, index: Int[Array, " b"]
) -> Float[Array, ""]:
    """How one view of each object differs from the true picture: L1, and one minus structural similarity.

    Compared are a colour view over white and its normal map, with their silhouettes where the autoencoder has them.

    Args:
      autoencoder: frozen; the gradient passes through its decoder.
      sampled: scaled latents of all views.
      batch: see :func:`e3d_jax.data.loader.anchor_example`.
      index: which view of each object.
    """
    choose = jax.vmap(lambda pair, view: pair[:, view])
    rgba = turned(_scale(choose(batch["target"], index)), batch["azimuth"])
    true = latents.network_image(rgba, autoencoder.in_channels)
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    decoded = autoencoder.decode(flat(choose(sampled, index)) / autoencoder.scaling_factor)
    pred, true = decoded.astype(jnp.float32) / 2 + 0.5, flat(true) / 2 + 0.5
    return jnp.abs(pred - true).mean() + 1 - structural_similarity(pred, true).mean()


def structural_similarity(
    pred: Float[Array, "b h w c"], true: Float[Array, "b h w c"]
) -> Float[Array, "b h-10 w-10 c"]:
    """Structural similarity of pictures in [0, 1] around every pixel that is five or more from the border.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4), 2004, with
    its Gaussian window (1.5 pixels are one standard deviation); as :func:`e3d_jax.evaluation.metrics.ssim`, but not
    averaged, and differentiable.
    """
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    rows, columns = (
        np.stack([np.convolve(row, kernel / kernel.sum(), "valid") for row in np.eye(size)], 1).astype(np.float32)
        for size in pred.shape[1:3]
    )
    # Variances are small differences of large numbers, hence full precision.
    mean = lambda x: jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")  # noqa: E731
    mean_pred, mean_true = mean(pred), mean(true)
    variances = mean(pred**2) - mean_pred**2 + mean(true**2) - mean_true**2
    covariance = mean(pred * true) - mean_pred * mean_true
    brightness = (2 * mean_pred * mean_true + 0.01**2) / (mean_pred**2 + mean_true**2 + 0.01**2)
    return brightness * (2 * covariance + 0.03**2) / (variances + 0.03**2)


def anchors_of_images(
    model: Any, frozen: Modules, batch: Batch, use_estimate: Bool[Array, " b"], drop: Bool[Array, " b"]
) -> tuple[Float[Array, "b 2 8 hl wl c"], stages.AnchorCondition]:
    """Scaled latents of the eight views and the condition, from pictures.

    Args:
      model: the stage.
      frozen: ``autoencoder`` and ``normals``.
      batch: see :func:`e3d_jax.data.loader.anchor_example`.
      use_estimate: which examples' condition has estimated normals.
      drop: which examples have a blank condition.
    """
    autoencoder = frozen["autoencoder"]
    condition, target = (turned(_scale(batch[name]), batch["azimuth"]) for name in ("condition", "target"))
    estimated = estimate_normals(frozen["normals"], condition)
    normal = jnp.where(denoiser.expand(use_estimate, estimated), estimated, condition[:, 1])
    condition = jnp.where(denoiser.expand(drop, condition), BLANK, condition.at[:, 1].set(normal))
    encode = functools.partial(encode_scaled, autoencoder)
    return encode(target), model.condition(latents.network_image(condition), encode(condition))


def turned(pictures: Float[Array, "b 2 *n h w 4"], azimuth: Float[Array, " b"]) -> Float[Array, "b 2 *n h w 4"]:
    """Colour pictures and normal maps, the latter turned (:func:`latents.turn_normals`)."""
    return pictures.at[:, 1].set(latents.turn_normals(pictures[:, 1], azimuth))


def encode_scaled(autoencoder: Any, rgba: Float[Array, "*b h w 4"]) -> Float[Array, "*b hl wl c"]:
    """Scaled latents of pictures, as the U-Nets see them."""
    return (
        latents.encode(autoencoder, latents.network_image(rgba, autoencoder.in_channels)) * autoencoder.scaling_factor
    )


def encoded_anchors(
    model: Any, frozen: Modules, batch: Batch, use_estimate: Bool[Array, " b"], drop: Bool[Array, " b"]
) -> tuple[Float[Array, "b 2 8 hl wl c"], stages.AnchorCondition]:
    """The same from a batch of :func:`e3d_jax.data.encoded.anchor_example`; needs no frozen component."""
    del model, frozen

    def choose(pairs, blank):
        """Of colour, rendered and estimated normals the two that are wanted, or twice the blank."""
        normal = jnp.where(denoiser.expand(use_estimate, pairs[:, 2]), pairs[:, 2], pairs[:, 1])
        pair = jnp.stack([pairs[:, 0], normal], 1).astype(jnp.float32)
        return jnp.moveaxis(jnp.where(denoiser.expand(drop, pair), blank[:, None].astype(jnp.float32), pair), 1, 0)

    tokens = choose(batch["tokens"], batch["blank_token"])[:, :, None]
    condition = choose(batch["condition"], batch["blank"])
    return batch["target"].astype(jnp.float32), stages.AnchorCondition(latents=condition, tokens=tokens)


def estimate_normals(estimator: Any, pair: Float[Array, "b 2 h w 4"]) -> Float[Array, "b h w 4"]:
    """The normal map that inference would give the colour image of a pair, with the silhouette of the true one."""
    rgb = estimator(latents.network_image(pair[:, 0], 4)) / 2 + 0.5
    return jnp.concatenate([jnp.where(pair[:, 1, ..., 3:] > 0, rgb, 1.0), pair[:, 1, ..., 3:]], -1)


def interpolation_loss(
    model: Any,
    frozen: Modules,
    batch: Batch,
    key: jax.Array,
    *,
    log_noise_mean: float,
    log_noise_std: float,
    log_augmentation_mean: float,
) -> tuple[jax.Array, Metrics]:
    """Stable Video Diffusion's objective (arXiv 2311.15127, App. D): EDM noise, v prediction, noisy anchors.

    The latents of the anchors that condition the window are of pictures with Gaussian noise of a log-normal standard
    deviation, of which the network is told: generated anchors are not clean either. The image token is of the clean
    first anchor, as there.
    """
    key_noise, key_level, key_anchors = jax.random.split(key, 3)
    make = encoded_window if "token" in batch else functools.partial(window_of_images, mean=log_augmentation_mean)
    clean, known = make(model, frozen, batch, key_anchors)
    size = len(clean)
    quantile = jax.scipy.special.ndtri(jnp.clip(stratified(key_level, size), 1e-6, 1 - 1e-6))
    level = schedules.edm_levels(jnp.exp(log_noise_mean + log_noise_std * quantile))
    noise = jax.random.normal(key_noise, clean.shape)
    output = model(denoiser.add_noise(clean, noise, level), level.time, known)
    error = (output - denoiser.target("v", clean, noise, level)) ** 2
    return error.mean(), {"loss_new_views": error[:, jnp.array([1, 2, 3, 5, 6, 7])].mean()}


def window_of_images(
    model: Any, frozen: Modules, batch: Batch, key: jax.Array, *, mean: float | Float[Array, ""]
) -> tuple[Float[Array, "b 9 hl wl c"], stages.WindowCondition]:
    """Scaled latents of windows and their condition, from pictures; see :func:`interpolation_loss`."""
    autoencoder = frozen["autoencoder"]
    key_strength, key_augment = jax.random.split(key)
    window = latents.network_image(_scale(batch["window"]), autoencoder.in_channels)
    strength = jnp.exp(mean + 0.5 * jax.random.normal(key_strength, (len(window),)))
    anchors = window[:, [0, 4, 8]]
    noisy = anchors + denoiser.expand(strength, anchors) * jax.random.normal(key_augment, anchors.shape)
    clean = latents.encode(autoencoder, window) * autoencoder.scaling_factor
    return clean, model.condition(anchors[:, 0, ..., :3], latents.encode(autoencoder, noisy), strength)


def encoded_window(
    model: Any, frozen: Modules, batch: Batch, key: jax.Array
) -> tuple[Float[Array, "b 9 hl wl c"], stages.WindowCondition]:
    """The same from a batch of :func:`e3d_jax.data.encoded.interpolation_example`, whose noise was drawn before."""
    del model, frozen, key
    window, anchors, token = (batch[name].astype(jnp.float32) for name in ("window", "anchors", "token"))
    return window, stages.WindowCondition(latents=anchors, token=token[:, None], noise=batch["strength"])


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


def check_encoded(stage: build.Component, settings: Mapping[str, Any]) -> None:
    """Refuse a stage's settings that records of latents and image tokens cannot serve.

    Raises:
      ValueError: the stage trains on pictures alone, trains its image encoder, or compares decoded views with pictures.
    """
    if "image_encoder" not in settings["model"]:
        raise ValueError(f"the {stage} stage trains on pictures, which encoded records do not hold")
    if "image_encoder" not in settings["train"]["freeze"]:
        raise ValueError(
            f"the {stage} stage trains its image encoder, whose tokens encoded records hold already; freeze it with "
            f"--config.{stage}.train.freeze=\"('image_encoder',)\", or train from pictures"
        )
    if weight := settings["loss"].get("picture_weight"):
        raise ValueError(
            f"{stage}.loss.picture_weight is {weight}, but encoded records hold no pictures; set it to 0, or train "
            "from pictures"
        )


def stratified(key: jax.Array, size: int) -> Float[Array, " {size}"]:
    """Uniform numbers in [0, 1), one in each of ``size`` equal parts, in order.

    Noise levels spread evenly over a batch make its loss less noisy (arXiv 2107.00630, App. I.1).
    """
    return (jnp.arange(size) + jax.random.uniform(key, (size,))) / size


def training_steps(key: jax.Array, size: int, last_level_share: float) -> Int[Array, " {size}"]:
    """Steps of the discrete schedule in order: spread evenly, but for the share that is at the last one."""
    position = stratified(key, size) / (1 - last_level_share)
    return jnp.minimum(position * schedules.NUM_TRAIN_STEPS, schedules.NUM_TRAIN_STEPS - 1).astype(int)


def jitter_colours(rgba: Float[Array, "b h w 4"], key: jax.Array, strength: float) -> Float[Array, "b h w 4"]:
    """Pictures with random gain, gamma and channel balance, so that shape is not read off one renderer's lights."""
    gain, gamma, balance = jax.random.split(key, 3)
    size = len(rgba)
    exponent = jnp.exp(strength * jax.random.normal(gamma, (size, 1, 1, 1)))
    scale = jnp.exp(strength * jax.random.normal(gain, (size, 1, 1, 1)))
    scale = scale * jnp.exp(strength / 2 * jax.random.normal(balance, (size, 1, 1, 3)))
    rgb = jnp.clip(jnp.maximum(rgba[..., :3], 1e-4) ** exponent * scale, 0, 1)
    return jnp.concatenate([rgb, rgba[..., 3:]], -1)


def _scale(image: Array) -> Float[Array, "..."]:
    """uint8 images in [0, 1]."""
    return image.astype(jnp.float32) / 255
