"""The autoencoder: images and normal maps to latents and back."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from e3d_jax import settings
from e3d_jax.data import records
from e3d_jax.models import autoencoder, latents, layers
from e3d_jax.stages import base, common

NETWORKS = {"kl": autoencoder.Autoencoder}
IMAGES_PER_MAP = 4
# Width and height in pixels of the blocks whose contrast is compared.
CONTRAST_BLOCK = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(base.ModelSettings):
    """The network of the autoencoder."""

    architecture: str = settings.setting("Which network.", "kl", choices=tuple(NETWORKS))
    kl: autoencoder.AutoencoderSpec = settings.setting("Stable Diffusion's autoencoder.", autoencoder.AutoencoderSpec())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(settings.Settings):
    """The loss of the autoencoder."""

    kl_weight: float = settings.setting("Weight of the KL divergence to the unit Gaussian.", 3e-4, at_least=0)
    scale_weight: float = settings.setting(
        "Weight of the error of half-size latents, which must decode to half-size images. What latents hold beyond "
        "that is fine detail, as in images, which a diffusion model finds easier (arXiv 2502.09509, 2502.14831).",
        0.0,
        at_least=0,
    )
    contrast_weight: float = settings.setting(
        "Weight of the error of the contrast in blocks of pixels. The L1 norm alone asks for the median of all images "
        "that a latent may stand for, which lacks their fine texture.",
        0.0,
        at_least=0,
    )
    latent_noise: tuple[float, float] = settings.setting(
        "Range of the standard deviation of noise on the latents that are decoded, drawn for each image. What a "
        "diffusion model samples is not exact, either. Meant for a decoder in training alone: an encoder evades the "
        "noise by larger latents.",
        (0.0, 0.0),
        at_least=0,
    )

    def check(self) -> None:
        """Refuse a range whose ends are swapped."""
        low, high = self.latent_noise
        if low > high:
            raise ValueError(f"latent_noise is {low}, {high}; expected the smaller number first")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Images of several objects: color views and normal maps."""

    images: UInt8[Any, "*b n h w 4"]


class Images(base.ImageSource):
    """Color views and normal maps, as many of each, chosen at random."""

    def check(self, record: records.Record, config: Any) -> None:
        """Refuse records of another size or without enough normal maps."""
        common.check_images(record, config, "autoencoder")

    def example(self, record: records.Record, rng: np.random.Generator, config: Any) -> Batch:
        """Choose the images of one object."""
        del config
        chosen = []
        for name in ("color", "normal"):
            views = rng.choice(record.views_with(name), IMAGES_PER_MAP, replace=False)
            chosen += [record.image(view, name) for view in views]
        return Batch(np.stack(chosen))

    def spec(self, config: Any) -> Batch:
        """Return the shape of one object's images."""
        return Batch(jax.ShapeDtypeStruct((2 * IMAGES_PER_MAP, config.size, config.size, 4), jnp.uint8))


class Autoencoder(base.Stage):
    """A variational autoencoder of single images (arXiv 2112.10752)."""

    name = "autoencoder"
    sources: ClassVar = {"images": Images()}
    model = Model
    loss_settings = Loss

    def build(self, model: Model, types: layers.Types) -> nnx.Module:
        """Make the autoencoder."""
        return NETWORKS[model.architecture](model.network, types)

    def loss(
        self, model: Any, frozen: base.Modules, batch: Batch, key: jax.Array, settings: Any, layout: Any
    ) -> tuple[Float[Array, ""], base.Metrics]:
        """Return L1 of pixels and of their differences plus KL (arXiv 2112.10752, App. G, without the GAN).

        With ``scale_weight``, every second image is also compared at half its size; with ``contrast_weight``, the
        contrast of blocks is compared, too.
        """
        del frozen, layout
        rgba = common.unit(batch.images)
        target = latents.network_image(rgba.reshape(-1, *rgba.shape[2:]), model.in_channels)
        mean, logvar = model.encode(target)
        variance = jnp.exp(logvar)
        if settings.loss.latent_noise[1]:
            key, key_noise = jax.random.split(key)
            low, high = settings.loss.latent_noise
            variance += jax.random.uniform(key_noise, (len(mean), 1, 1, 1), mean.dtype, low, high) ** 2
        latent = mean + jnp.sqrt(variance) * jax.random.normal(key, mean.shape, mean.dtype)
        decoded = model.decode(latent)
        difference = decoded - target
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
        loss = image_error(difference) + settings.loss.kl_weight * kl
        metrics = {"psnr": psnr(difference), "kl": kl, "latent_std": mean.std()}
        if settings.loss.scale_weight:
            halved = model.decode(halve(latent[::2])) - halve(target[::2])
            loss = loss + settings.loss.scale_weight * image_error(halved)
            metrics["psnr_half_size"] = psnr(halved)
        if settings.loss.contrast_weight:
            metrics["contrast"] = contrast_error(decoded, target)
            loss = loss + settings.loss.contrast_weight * metrics["contrast"]
        return loss, metrics


def image_error(difference: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Return the L1 norm of the differences of pixels, and of their differences to the next pixel."""
    return jnp.abs(difference).mean() + sum(jnp.abs(jnp.diff(difference, axis=axis)).mean() for axis in (1, 2))


def contrast_error(pred: Float[Array, "b h w c"], gt: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Return the L1 norm of the differences in contrast: the root mean square gradient of blocks of pixels.

    Where the gradients run in a block does not matter, only how strong they are.
    """
    return jnp.abs(_contrast(pred) - _contrast(gt)).mean()


def _contrast(image: Float[Array, "b h w c"]) -> Float[Array, "b n m"]:
    """Return the root mean square gradient of whole blocks of :data:`CONTRAST_BLOCK` pixels."""
    image = image.astype(jnp.float32)
    corner = image[:, :-1, :-1]
    energy = ((image[:, 1:, :-1] - corner) ** 2 + (image[:, :-1, 1:] - corner) ** 2).mean(-1)
    rows, columns = (size // CONTRAST_BLOCK for size in energy.shape[1:])
    whole = energy[:, : rows * CONTRAST_BLOCK, : columns * CONTRAST_BLOCK]
    blocks = whole.reshape(-1, rows, CONTRAST_BLOCK, columns, CONTRAST_BLOCK).mean((2, 4))
    return jnp.sqrt(blocks + 1e-6)  # Added for a bounded gradient where a block is uniform.


def psnr(difference: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Return the PSNR in dB of images in [-1, 1]."""
    return -10 * jnp.log10((difference**2).mean() / 4)


def halve(image: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Return the means of two by two pixels."""
    return image.reshape(len(image), image.shape[1] // 2, 2, image.shape[2] // 2, 2, -1).mean((2, 4))
