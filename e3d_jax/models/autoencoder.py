"""The KL autoencoder of latent diffusion (arXiv 2112.10752), with an optional decoder that sees all frames."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from e3d_jax.models import attention, blocks, layers


class ImageAttention(attention.Attention):
    """Self-attention of one head over the positions of an image, with its norm and a residual."""

    def __init__(self, channels: int, *, norm_groups: int, **types: Any):
        super().__init__(channels, 1, use_bias=True, **types)
        self.group_norm = layers.GroupNorm(channels, groups=norm_groups, epsilon=1e-6, **types)

    def __call__(
        self, x: Float[jax.Array, "*lead h w c"], context: Float[jax.Array, "... m e"] | None = None
    ) -> Float[jax.Array, "*lead h w c"]:
        """Transform; with ``context`` the keys and values come from there."""
        tokens = self.group_norm(x).reshape(*x.shape[:-3], -1, x.shape[-1])
        return x + super().__call__(tokens, context).reshape(x.shape)


class Encoder(nnx.Module):
    """Image to the moments of its latent."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        layers_per_block: int,
        *,
        resnet: blocks.Factory,
        attentions: Sequence[nnx.Module],
        norm_groups: int,
        **types: Any,
    ):
        self.conv_in = layers.conv3x3(in_channels, widths[0], **types)
        self.down_blocks: nnx.List[blocks.Stage] = nnx.List([])
        last = widths[0]
        for i, width in enumerate(widths):
            resnets = [resnet(source, width) for source in (last, *[width] * (layers_per_block - 1))]
            # Padded only after, as the released weights expect.
            down = [blocks.Downsample(width, padding=(0, 1), **types)] if i < len(widths) - 1 else []
            self.down_blocks.append(blocks.Stage(resnets, downsamplers=down))
            last = width
        self.mid_block = blocks.MidStage([resnet(last, last) for _ in range(2)], attentions)
        self.conv_norm_out = layers.GroupNorm(last, groups=norm_groups, epsilon=1e-6, **types)
        self.conv_out = layers.conv3x3(last, out_channels, **types)

    def __call__(self, x: Float[jax.Array, "*lead h w c"]) -> Float[jax.Array, "*lead h2 w2 z"]:
        """Encode."""
        x = self.conv_in(x)
        for stage in self.down_blocks:
            x, _ = stage(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latent to image; with ``temporal`` frames of a window are ``[b t h w c]`` and end in a convolution over time."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        layers_per_block: int,
        *,
        temporal: bool,
        resnet: blocks.Factory,
        attentions: Sequence[nnx.Module],
        norm_groups: int,
        **types: Any,
    ):
        self.temporal, last = temporal, widths[-1]
        self.conv_in = layers.conv3x3(in_channels, last, **types)
        # The temporal decoder of Stable Video Diffusion has one middle block a layer, the image decoder always two.
        middle = [resnet(last, last) for _ in range(layers_per_block if temporal else 2)]
        self.mid_block = blocks.MidStage(middle, attentions)
        self.up_blocks: nnx.List[blocks.Stage] = nnx.List([])
        for i, width in reversed(list(enumerate(widths))):
            resnets = [resnet(source, width) for source in (last, *[width] * layers_per_block)]
            up = [blocks.Upsample(width, **types)] if i > 0 else []
            self.up_blocks.append(blocks.Stage(resnets, upsamplers=up))
            last = width
        self.conv_norm_out = layers.GroupNorm(last, groups=norm_groups, epsilon=1e-6, **types)
        self.conv_out = layers.conv3x3(last, out_channels, **types)
        if temporal:
            self.time_conv_out = layers.TimeConv(out_channels, out_channels, **types)

    def __call__(self, z: Float[jax.Array, "*lead h w z"]) -> Float[jax.Array, "*lead h2 w2 c"]:
        """Decode."""
        x = self.mid_block(self.conv_in(z))
        for stage in self.up_blocks:
            x, _ = stage(x)
        x = self.conv_out(nnx.silu(self.conv_norm_out(x)))
        return self.time_conv_out(x) if self.temporal else x


class Autoencoder(nnx.Module):
    """KL autoencoder; each level but the last halves the resolution.

    Args:
      in_channels: channels of the images.
      out_channels: channels of the decoded images.
      latent_channels: channels of the latents.
      block_out_channels: width of each level, from full resolution down.
      layers_per_block: residual blocks of an encoder level; a decoder level has one more.
      norm_groups: groups of the norms; divides every width.
      scaling_factor: latents times this have about unit variance; applied by the caller.
      temporal_decoder: decode all frames of a window together (arXiv 2311.15127).
      mid_attention: whether the lowest level has attention.
      dtype: of the computation.
      param_dtype: of the weights.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_groups: int = 32,
        scaling_factor: float = 0.18215,
        temporal_decoder: bool = False,
        mid_attention: bool = True,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": layers.ParamKeys(rngs)}
        self.in_channels, self.scaling_factor, self.temporal_decoder = in_channels, scaling_factor, temporal_decoder
        widths, moments = tuple(block_out_channels), 2 * latent_channels
        resnet = functools.partial(blocks.ResBlock, epsilon=1e-6, norm_groups=norm_groups, **types)
        decoder_resnet: blocks.Factory = resnet
        if temporal_decoder:
            decoder_resnet = functools.partial(
                blocks.SpatioTemporalResBlock,
                epsilon=1e-6,
                temporal_epsilon=1e-5,
                mix_start=0.0,
                weighs_temporal=True,
                norm_groups=norm_groups,
                **types,
            )

        def attentions() -> list[nnx.Module]:
            return [ImageAttention(widths[-1], norm_groups=norm_groups, **types)] if mid_attention else []

        common = {"norm_groups": norm_groups, **types}
        self.encoder = Encoder(
            in_channels, moments, widths, layers_per_block, resnet=resnet, attentions=attentions(), **common
        )
        self.decoder = Decoder(
            latent_channels,
            out_channels,
            widths,
            layers_per_block,
            temporal=temporal_decoder,
            resnet=decoder_resnet,
            attentions=attentions(),
            **common,
        )
        self.quant_conv = layers.conv1x1(moments, moments, **types)
        if not temporal_decoder:
            self.post_quant_conv = layers.conv1x1(latent_channels, latent_channels, **types)

    def encode(
        self, x: Float[jax.Array, "b h w c"]
    ) -> tuple[Float[jax.Array, "b h2 w2 z"], Float[jax.Array, "b h2 w2 z"]]:
        """Mean and log variance of the latents of images in [-1, 1], not multiplied by the scaling factor.

        Raises:
          ValueError: height or width cannot be halved as often as there are levels.
        """
        factor = 2 ** (len(self.encoder.down_blocks) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"images of {x.shape[1]} x {x.shape[2]} pixels; both must be multiples of {factor}")
        mean, logvar = jnp.split(self.quant_conv(self.encoder(x)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Float[jax.Array, "b h w z"], num_frames: int = 1) -> Float[jax.Array, "b h2 w2 c"]:
        """Images, about in [-1, 1], of latents that are already divided by the scaling factor.

        Args:
          z: latents; for a temporal decoder all frames of the first window, then of the second, and so on.
          num_frames: frames of a window; a decoder without temporal layers treats every image alone.

        Raises:
          ValueError: the latents are not whole windows.
        """
        if z.shape[0] % num_frames:
            raise ValueError(f"{z.shape[0]} latents are not whole windows of {num_frames} frames")
        if not self.temporal_decoder:
            return self.decoder(self.post_quant_conv(z))
        x = self.decoder(z.reshape(-1, num_frames, *z.shape[1:]))
        return x.reshape(-1, *x.shape[2:])
