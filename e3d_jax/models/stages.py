"""The two diffusion stages as networks: a U-Net, its image encoder, and how the condition enters them.

Envision3D (arXiv 2403.08902) calls the first stage's conditioning *instruction representation injection*: the input
image and its normal map enter as a clean ninth view, as extra input channels, and as one image token a domain.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from e3d_jax import cameras
from e3d_jax.models import anchor, image_encoder, interpolation

NUM_DOMAINS = 2
# Micro-conditioning of Stable Video Diffusion: frames a second and motion bucket, as released.
FPS, MOTION_BUCKET = 7.0, 127.0
# Which of the window's three anchors each of its nine frames carries as condition latent.
FRAME_ANCHOR = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AnchorCondition:
    """What the anchor stage knows of the input: scaled latents and one image token of each domain."""

    latents: Float[Array, "d b h w c"]
    tokens: Float[Array, "d b 1 e"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowCondition:
    """What the interpolation stage knows of a window.

    Attributes:
      latents: of the first, middle and last anchor; the posterior mode, not scaled.
      token: image token of the first anchor.
      noise: standard deviation of the noise that was added to the anchor images.
    """

    latents: Float[Array, "b 3 h w c"]
    token: Float[Array, "b 1 e"]
    noise: Float[Array, " b"]


def anchor_labels() -> Float[np.ndarray, "d v 12"]:
    """Camera and domain of the eight anchors and, ninth, of the reference view (azimuth 0).

    Sine, then cosine, of [0, 0, azimuth, one-hot domain of 3]; colour is (1, 0, 0), normal (0, 1, 0).
    """
    azimuth = np.append(cameras.azimuths(cameras.NUM_ANCHORS), 0.0)
    label = np.zeros((NUM_DOMAINS, len(azimuth), 6), np.float32)
    label[..., 2] = azimuth
    label[0, :, 3] = label[1, :, 4] = 1.0
    return np.concatenate([np.sin(label), np.cos(label)], -1)


def window_labels() -> Float[np.ndarray, "t 6"]:
    """Cameras of a window's frames: sine, then cosine, of [0, 0, azimuth from the window's first frame]."""
    label = np.zeros((cameras.WINDOW_FRAMES, 3), np.float32)
    label[:, 2] = cameras.azimuths()[: cameras.WINDOW_FRAMES]
    return np.concatenate([np.sin(label), np.cos(label)], -1)


class AnchorStage(nnx.Module):
    """Denoises eight views in two domains together.

    Args:
      unet: the network.
      encoder: makes the image tokens.
      injection: whether the image-normal pair is injected as the paper does it. Without, there is no reference view,
        and both domains know of the picture alone, on their channels and as token, as in Wonder3D (arXiv 2310.15008).
    """

    def __init__(self, unet: anchor.AnchorUNet, encoder: image_encoder.ImageEncoder, injection: bool = True):
        self.unet = unet
        self.image_encoder = encoder
        self.injection = injection

    def condition(self, images: Float[Array, "b d h w 3"], latents: Float[Array, "b d hl wl c"]) -> AnchorCondition:
        """The condition of an image-normal pair.

        Args:
          images: colour image and normal map over white, [-1, 1].
          latents: their scaled latents, without noise.
        """
        tokens = self.image_encoder(
            image_encoder.clip_pixels(images.reshape(-1, *images.shape[2:]), self.image_encoder.image_size)
        )
        tokens = tokens.reshape(*images.shape[:2], 1, -1)
        return AnchorCondition(latents=jnp.moveaxis(latents, 1, 0), tokens=jnp.moveaxis(tokens, 1, 0))

    def __call__(
        self, noisy: Float[Array, "d b v h w c"], time: Float[Array, " b"], condition: AnchorCondition
    ) -> Float[Array, "d b v h w c"]:
        """The U-Net's output for the eight noisy views; a ninth, clean reference view is added and dropped here."""
        if not self.injection:
            condition = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), condition)
        _, batch, views = noisy.shape[:3]
        reference = condition.latents[:, :, None]
        sample = jnp.concatenate([noisy, reference], 2) if self.injection else noisy
        count = sample.shape[2]
        sample = jnp.concatenate([sample, jnp.broadcast_to(reference, sample.shape)], -1)
        labels = jnp.asarray(anchor_labels())[:, None, :count]
        labels = jnp.broadcast_to(labels, (labels.shape[0], batch, *labels.shape[2:]))
        tokens = condition.tokens[:, :, None]
        tokens = jnp.broadcast_to(tokens, (*tokens.shape[:2], count, *tokens.shape[3:]))
        sample, tokens, labels = (jnp.moveaxis(x, 0, 1) for x in (sample, tokens, labels))
        return jnp.moveaxis(self.unet(sample, time, tokens, labels), 1, 0)[:, :, :views]


class InterpolationStage(nnx.Module):
    """Denoises the nine frames of windows between anchors."""

    def __init__(self, unet: interpolation.InterpolationUNet, encoder: image_encoder.ImageEncoder):
        self.unet = unet
        self.image_encoder = encoder

    def condition(
        self, images: Float[Array, "b h w 3"], latents: Float[Array, "b 3 hl wl c"], noise: Float[Array, " b"]
    ) -> WindowCondition:
        """The condition of windows.

        Args:
          images: the first anchor of each window over white, [-1, 1].
          latents: posterior modes of the three anchors, not scaled.
          noise: standard deviation of noise in the anchors that ``latents`` encode; 0.02 as released.
        """
        pixels = image_encoder.antialiased_clip_pixels(images, self.image_encoder.image_size)
        token = self.image_encoder(pixels)[:, None]
        return WindowCondition(latents=latents, token=token, noise=noise)

    def __call__(
        self, noisy: Float[Array, "b t h w c"], time: Float[Array, " b"], condition: WindowCondition
    ) -> Float[Array, "b t h w c"]:
        """The U-Net's output for every frame."""
        batch = noisy.shape[0]
        sample = jnp.concatenate([noisy, condition.latents[:, FRAME_ANCHOR]], -1)
        ids = jnp.stack([jnp.full(batch, FPS), jnp.full(batch, MOTION_BUCKET), condition.noise], -1)
        labels = jnp.broadcast_to(jnp.asarray(window_labels()), (batch, cameras.WINDOW_FRAMES, 6))
        return self.unet(sample, time, condition.token, ids, labels)
