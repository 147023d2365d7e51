"""The two diffusion stages as networks: a denoiser, its image encoder, and how the condition enters them.

Envision3D (arXiv 2403.08902) calls the first stage's conditioning *instruction representation injection*: the input
image and its normal map enter as a clean reference view, as extra input channels, and as one image token per domain.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from e3d_jax.models import image_encoder

# Micro-conditioning of Stable Video Diffusion: frames per second and motion bucket, as released.
FPS, MOTION_BUCKET = 7.0, 127.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnchorCondition:
    """What the anchor stage knows of the input images and of the cameras.

    Attributes:
      latents: scaled latents of each input image and of its normal map, without noise.
      tokens: an image token of each.
      labels: camera and domain of each view, then of each input (:func:`e3d_jax.stages.conditions.view_labels`).
      count: how many of the inputs exist, from the first one on; all if None.
    """

    latents: Float[Array, "b d n h w c"]
    tokens: Float[Array, "b d n 1 e"]
    labels: Float[Array, "b d views 12"]
    count: Int[Array, " b"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowCondition:
    """What the interpolation stage knows of a window.

    Attributes:
      latents: for each frame those of an anchor; the posterior mode, not scaled.
      token: image token of the first anchor.
      noise: standard deviation of the noise that was added to the anchor images.
      labels: camera of each frame (:func:`e3d_jax.stages.conditions.frame_labels`).
    """

    latents: Float[Array, "b t h w c"]
    token: Float[Array, "b 1 e"]
    noise: Float[Array, " b"]
    labels: Float[Array, "b t 6"]


class Denoiser(nnx.Module):
    """A denoising network and an image encoder.

    Args:
      architecture: name of the network; its parameters are stored under it.
      network: the network.
      encoder: makes the image tokens.
    """

    def __init__(self, architecture: str, network: nnx.Module, encoder: image_encoder.ImageEncoder):
        self.architecture = architecture
        setattr(self, architecture, network)
        self.image_encoder = encoder

    @property
    def network(self) -> Any:
        """The denoising network."""
        return getattr(self, self.architecture)


class AnchorDenoiser(Denoiser):
    """Denoises the anchor views of both domains together.

    Args:
      architecture: see :class:`Denoiser`.
      network: takes and returns ``[b d v h w c]``, such as :class:`e3d_jax.models.anchor.AnchorUNet`.
      encoder: see :class:`Denoiser`.
      injection: whether the image-normal pair is injected as in the paper. Without it there is no reference view, and
        both domains know the first image alone, through their channels and as a token, as in Wonder3D
        (arXiv 2310.15008).
    """

    def __init__(
        self, architecture: str, network: nnx.Module, encoder: image_encoder.ImageEncoder, injection: bool = True
    ):
        super().__init__(architecture, network, encoder)
        self.injection = injection

    def tokens(self, images: Float[Array, "*b h w 3"]) -> Float[Array, "*b 1 e"]:
        """Return the image tokens of images and normal maps over white, in [-1, 1]."""
        pixels = image_encoder.clip_pixels(images.reshape(-1, *images.shape[-3:]), self.image_encoder.image_size)
        return self.image_encoder(pixels).reshape(*images.shape[:-3], 1, -1)

    def __call__(
        self, noisy: Float[Array, "b d v h w c"], time: Float[Array, " b"], condition: AnchorCondition
    ) -> Float[Array, "b d v h w c"]:
        """Return the network's output for the noisy views; the clean reference views are added and dropped here.

        A noisy view has latents and token of the first input, a reference view its own.
        """
        views = noisy.shape[2]
        latents, tokens = condition.latents, condition.tokens
        if not self.injection:
            latents, tokens = (jnp.broadcast_to(x[:, :1], x.shape) for x in (latents, tokens))
        latents, context = (self._by_view(x, views) for x in (latents, tokens))
        sample = noisy
        if self.injection:
            sample = jnp.concatenate([noisy, condition.latents], 2)
        sample = jnp.concatenate([sample, latents], -1)
        # A network for one input need not know how to leave others out.
        missing = {} if condition.count is None else {"num_views": views + condition.count}
        labels = condition.labels[:, :, : sample.shape[2]]
        return self.network(sample, time, context, labels, **missing)[:, :, :views]

    def _by_view(self, inputs: Float[Array, "b d n ..."], views: int) -> Float[Array, "b d v ..."]:
        """Return what each view has of the inputs: the noisy ones the first, then each reference view its own."""
        first = jnp.broadcast_to(inputs[:, :, :1], (*inputs.shape[:2], views, *inputs.shape[3:]))
        return jnp.concatenate([first, inputs], 2) if self.injection else first


class InterpolationDenoiser(Denoiser):
    """Denoises the frames of windows between anchors; arguments as for :class:`Denoiser`."""

    def token(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 1 e"]:
        """Return the image tokens of images over white, in [-1, 1]."""
        pixels = image_encoder.antialiased_clip_pixels(images, self.image_encoder.image_size)
        return self.image_encoder(pixels)[:, None]

    def __call__(
        self, noisy: Float[Array, "b t h w c"], time: Float[Array, " b"], condition: WindowCondition
    ) -> Float[Array, "b t h w c"]:
        """Return the network's output for every frame."""
        batch = noisy.shape[0]
        sample = jnp.concatenate([noisy, condition.latents], -1)
        ids = jnp.stack([jnp.full(batch, FPS), jnp.full(batch, MOTION_BUCKET), condition.noise], -1)
        return self.network(sample, time, condition.token, ids, condition.labels)
