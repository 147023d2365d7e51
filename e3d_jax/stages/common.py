"""What stages share: images as networks see them, checks, the order of views, and noise levels over a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from e3d_jax import cameras, settings, structs
from e3d_jax.data import records
from e3d_jax.diffusion import schedules
from e3d_jax.models import latents


def unit(image: Any) -> Float[Array, "..."]:
    """Scale uint8 images to [0, 1]."""
    return jnp.asarray(image).astype(jnp.float32) / 255


def check_size(record: records.Record, config: Any) -> None:
    """Refuse records of another size.

    Raises:
      ValueError: says which size they have and should have.
    """
    if record.size != config.size:
        raise ValueError(f"holds images of {record.size} px, but the config wants {config.size} px; draw them again")


def check_images(record: records.Record, config: Any, stage: str) -> None:
    """Refuse records of another size, or without normal maps of the anchors and inputs.

    Raises:
      ValueError: says which, and how to draw better ones.
    """
    check_size(record, config)
    if not {*record.anchors, *record.inputs} <= set(record.views_with("normal")):
        raise ValueError(
            f"holds no normal maps of the anchors and inputs, from which the {stage} learns; draw them without "
            "--nonormals"
        )


def encode_scaled(autoencoder: Any, rgba: Float[Array, "*b h w 4"]) -> Float[Array, "*b hl wl c"]:
    """Return the scaled latents of images, as the denoisers see them."""
    return (
        latents.encode(autoencoder, latents.network_image(rgba, autoencoder.in_channels)) * autoencoder.scaling_factor
    )


def stratified(key: jax.Array, size: int) -> Float[Array, " {size}"]:
    """Return uniform numbers in [0, 1), one in each of ``size`` equal parts, in order.

    Noise levels that are spread evenly over a batch make its loss less noisy (arXiv 2107.00630, App. I.1).
    """
    return (jnp.arange(size) + jax.random.uniform(key, (size,))) / size


def camera_spec(views: int, size: int) -> structs.Cameras:
    """Return the shapes of the cameras of one example."""
    shapes = {"world_from_cam": (views, 4, 4), "focal": (views, 2), "center": (views, 2)}
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return structs.Cameras(**arrays, width=size, height=size)


def check_anchors(count: int, config: Any) -> None:
    """Refuse records of another layout.

    Raises:
      ValueError: says how many anchors there are and should be.
    """
    if count != config.layout.num_anchors:
        raise ValueError(
            f"holds {count} anchors per object, but the config's layout has {config.layout.num_anchors}; draw the "
            "objects with that layout"
        )


def check_latents(views: Any, config: Any, stage: str) -> None:
    """Refuse cached latents of another size.

    Raises:
      ValueError: says which size they have and should have.
    """
    side, wanted = views.shape[1], config.latent_size(stage)
    if side != wanted:
        raise ValueError(
            f"holds latents of {side} x {side}, but the config wants {wanted} x {wanted}; cache images of "
            f"{config.size} px"
        )


def check_denoiser(config: Any, component: str) -> None:
    """Refuse a denoiser that does not fit its autoencoder, its image encoder or the size of the views.

    Raises:
      ValueError: names the setting and the value that fits.
    """
    model = config[component].model
    prefix = f"{component}.model.{model.architecture}"
    autoencoder = config.autoencoder(component)
    channels, tokens = autoencoder.latent_channels, model.image_encoder.projection_dim
    # The condition's latents are stacked on the noisy ones.
    wanted = {
        "in_channels": (2 * channels, f"as the autoencoder has {channels} latent_channels"),
        "out_channels": (channels, f"as the autoencoder has {channels} latent_channels"),
        "cross_attention_dim": (tokens, "the image_encoder's projection_dim"),
    }
    for name, (value, reason) in wanted.items():
        if (got := getattr(model.network, name)) != value:
            raise ValueError(f"{prefix}.{name} is {got}; expected {value}, {reason}")
    multiple = autoencoder.factor * model.network.factor
    if config.size % multiple:
        raise ValueError(f"size is {config.size}; expected a multiple of {multiple} px for the {component}'s levels")


def guidance_setting() -> Any:
    """Return the setting of classifier-free guidance."""
    return settings.setting(
        "Scale of classifier-free guidance (arXiv 2207.12598); 1 is off, as released. Each step is then computed with "
        "and without the condition, which training must have dropped at times (loss.cond_dropout).",
        1.0,
        at_least=0,
    )


def check_guidance(config: Any, component: str) -> None:
    """Refuse guidance of a network that was not trained without its condition.

    Raises:
      ValueError: says so.
    """
    stage = config[component]
    if stage.sampling.guidance != 1 and not stage.loss.cond_dropout:
        raise ValueError(
            f"{component}.sampling.guidance is {stage.sampling.guidance}; expected 1, as {component}.loss.cond_dropout "
            "is 0, so that the network does not know what it does without its condition"
        )


def training_steps(key: jax.Array, size: int, terminal_fraction: float) -> Int[Array, " {size}"]:
    """Return steps of the discrete schedule in order: spread evenly, but for the fraction that is at the last one."""
    position = stratified(key, size) / (1 - terminal_fraction)
    return jnp.minimum(position * schedules.NUM_TRAIN_STEPS, schedules.NUM_TRAIN_STEPS - 1).astype(int)


def anchors_from(record: records.Record, first: int) -> np.ndarray:
    """Return the anchors in their order around the object, starting with the one nearest in azimuth to an input."""
    poses = np.asarray(record.cameras.world_from_cam)
    anchors = np.asarray(record.anchors)
    away = cameras.relative_azimuth(poses[anchors][None], poses[[record.inputs[first]]][None])[0]
    return np.roll(anchors, -int(np.argmin(np.minimum(away, 2 * np.pi - away))))
