"""Between images in memory (RGBA in [0, 1]) and what the networks see (images over white in [-1, 1], latents)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3d_jax.models import autoencoder


def network_image(rgba: Float[Array, "*b h w 4"], channels: int = 3) -> Float[Array, "*b h w {channels}"]:
    """Return images over white in [-1, 1]; with four channels the last one is alpha."""
    alpha = rgba[..., 3:]
    image = rgba[..., :3] * alpha + (1 - alpha)
    if channels == 4:
        image = jnp.concatenate([image, alpha], -1)
    return 2 * image - 1


def memory_image(image: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Invert :func:`network_image`: RGBA with straight alpha, or RGB over white from three channels."""
    image = jnp.clip(image.astype(jnp.float32) / 2 + 0.5, 0, 1)
    if image.shape[-1] == 3:
        return image
    over_white, alpha = image[..., :3], image[..., 3:]
    # Where the object covers little of a pixel, its color drowns in rounding; the color over white is used there.
    rgb = jnp.where(alpha > 0.1, 1 - (1 - over_white) / jnp.maximum(alpha, 0.1), over_white)
    return jnp.concatenate([jnp.clip(rgb, 0, 1), alpha], -1)


def turn_normals(rgba: Float[Array, "b *n h w 4"], azimuth: Float[Array, " b"]) -> Float[Array, "b *n h w 4"]:
    """Turn encoded world normals about z by ``-azimuth``: into the world whose view 0 stands at that azimuth."""
    angle = azimuth.reshape(-1, *(1,) * (rgba.ndim - 2))
    x, y, z = (2 * rgba[..., i] - 1 for i in range(3))
    turned = jnp.stack([jnp.cos(angle) * x + jnp.sin(angle) * y, jnp.cos(angle) * y - jnp.sin(angle) * x, z], -1)
    # White stands for "no normal" and does not turn.
    rgb = jnp.where(rgba[..., 3:] > 0, turned / 2 + 0.5, 1.0)
    return jnp.concatenate([rgb, rgba[..., 3:]], -1)


def encode(module: autoencoder.Autoencoder, image: Float[Array, "*b h w c"]) -> Float[Array, "*b hl wl z"]:
    """Return posterior modes of network images, not scaled, float32; no gradient flows into the autoencoder."""
    mean, _ = module.encode(image.reshape(-1, *image.shape[-3:]))
    return jax.lax.stop_gradient(mean.reshape(*image.shape[:-3], *mean.shape[1:]).astype(jnp.float32))


def encode_in_turns(module: autoencoder.Autoencoder, image: Float[Array, "*b h w c"]) -> Float[Array, "*b hl wl z"]:
    """Do what :func:`encode` does, a few images at a time; a batch that is split over devices is gathered for it."""
    found = _in_turns(functools.partial(encode, module), image.reshape(-1, 1, *image.shape[-3:]))
    return found.reshape(*image.shape[:-3], *found.shape[-3:])


def decode(module: autoencoder.Autoencoder, latents: Float[Array, "*b hl wl z"]) -> Float[Array, "*b h w c"]:
    """Decode scaled latents to images in memory, a few at a time.

    A temporal decoder sees the frames of each window, the fourth axis from the end, together.
    """
    together = latents.shape[-4] if module.temporal_decoder else 1
    groups = latents.reshape(-1, together, *latents.shape[-3:]) / module.scaling_factor
    images = _in_turns(lambda z: memory_image(module.decode(z, num_frames=together)), groups)
    return images.reshape(*latents.shape[:-3], *images.shape[-3:])


def _in_turns(function, groups):
    """Map groups of images [g n h w c], on a CPU as many at a time as its caches hold; elsewhere more, but not all, so
    that memory does not grow with their number."""
    images = 2 if jax.default_backend() == "cpu" else 8
    at_once = max(1, min(images // groups.shape[1], len(groups)))
    return jax.lax.map(function, groups, batch_size=at_once)
