"""The KL autoencoder of latent diffusion (arXiv 2112.10752), with an optional decoder that sees all frames."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from e3d_jax import settings
from e3d_jax.models import attention, blocks, layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderSpec(settings.Settings):
    """Size of an autoencoder; the defaults are those of Stable Diffusion."""

    in_channels: int = settings.setting("Channels of the images.", 3, at_least=1)
    out_channels: int = settings.setting("Channels of the decoded images.", 3, at_least=1)
    latent_channels: int = settings.setting("Channels of the latents.", 4, at_least=1)
    block_out_channels: tuple[int, ...] = settings.setting(
        "Width of each level, from full resolution down; each level but the last halves it.",
        (128, 256, 512, 512),
        at_least=1,
    )
    layers_per_block: int = settings.setting(
        "Residual blocks of an encoder level; a decoder level has one more.", 2, at_least=1
    )
    norm_groups: int = settings.setting("Groups of the norms; must divide every width.", 32, at_least=1)
    scaling_factor: float = settings.setting(
        "Factor that gives latents about unit variance; applied by the caller.", 0.18215, above=0
    )
    temporal_decoder: bool = settings.setting(
        "Whether all frames of a window are decoded together (arXiv 2311.15127).", False
    )
    mid_attention: bool = settings.setting("Whether the lowest level has attention.", True)

    @property
    def factor(self) -> int:
        """By how much latents are smaller than images."""
        return 2 ** (len(self.block_out_channels) - 1)

    def check(self) -> None:
        """Refuse a network without levels.

        Raises:
          ValueError: names the setting.
        """
        if not self.block_out_channels:
            raise ValueError("block_out_channels is empty; expected one width per level")


class ImageAttention(attention.Attention):
    """Self-attention of one head over the positions of an image, with its norm and a residual."""

    def __init__(self, channels: int, types: layers.Types, *, norm_groups: int):
        super().__init__(channels, 1, types, use_bias=True)
        self.group_norm = layers.GroupNorm(channels, types, groups=norm_groups, epsilon=1e-6)

    def __call__(
        self,
        x: Float[jax.Array, "*lead h w c"],
        context: Float[jax.Array, "... m e"] | None = None,
        lengths: Int[jax.Array, "*lead"] | None = None,
    ) -> Float[jax.Array, "*lead h w c"]:
        """Transform; with ``context`` the keys and values come from there."""
        tokens = self.group_norm(x).reshape(*x.shape[:-3], -1, x.shape[-1])
        return x + super().__call__(tokens, context, lengths).reshape(x.shape)


class Encoder(nnx.Module):
    """Image to the moments of its latent."""

    def __init__(
        self,
        spec: AutoencoderSpec,
        types: layers.Types,
        *,
        resnet: blocks.Factory,
        attentions: Sequence[nnx.Module],
    ):
        widths = spec.block_out_channels
        self.conv_in = layers.conv3x3(spec.in_channels, widths[0], types)
        self.down_blocks: nnx.List[blocks.Level] = nnx.List([])
        last = widths[0]
        for i, width in enumerate(widths):
            resnets = [resnet(source, width) for source in (last, *[width] * (spec.layers_per_block - 1))]
            # Padded only after the image, as the released weights expect.
            down = [blocks.Downsample(width, types, padding=(0, 1))] if i < len(widths) - 1 else []
            self.down_blocks.append(blocks.Level(resnets, downsamplers=down))
            last = width
        self.mid_block = blocks.MidLevel([resnet(last, last) for _ in range(2)], attentions)
        self.conv_norm_out = layers.GroupNorm(last, types, groups=spec.norm_groups, epsilon=1e-6)
        self.conv_out = layers.conv3x3(last, 2 * spec.latent_channels, types)

    def __call__(self, x: Float[jax.Array, "*lead h w c"]) -> Float[jax.Array, "*lead h2 w2 z"]:
        """Encode."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x, _ = level(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latent to image; a temporal decoder takes the frames of a window, ``[b t h w c]``, and ends in a convolution over
    time.
    """

    def __init__(
        self,
        spec: AutoencoderSpec,
        types: layers.Types,
        *,
        resnet: blocks.Factory,
        attentions: Sequence[nnx.Module],
    ):
        widths = spec.block_out_channels
        self.temporal, last = spec.temporal_decoder, widths[-1]
        self.conv_in = layers.conv3x3(spec.latent_channels, last, types)
        # The temporal decoder of Stable Video Diffusion has layers_per_block middle blocks, the image decoder always 2.
        middle = [resnet(last, last) for _ in range(spec.layers_per_block if self.temporal else 2)]
        self.mid_block = blocks.MidLevel(middle, attentions)
        self.up_blocks: nnx.List[blocks.Level] = nnx.List([])
        for i, width in reversed(list(enumerate(widths))):
            resnets = [resnet(source, width) for source in (last, *[width] * spec.layers_per_block)]
            up = [blocks.Upsample(width, types)] if i > 0 else []
            self.up_blocks.append(blocks.Level(resnets, upsamplers=up))
            last = width
        self.conv_norm_out = layers.GroupNorm(last, types, groups=spec.norm_groups, epsilon=1e-6)
        self.conv_out = layers.conv3x3(last, spec.out_channels, types)
        if self.temporal:
            self.time_conv_out = layers.TimeConv(spec.out_channels, spec.out_channels, types)

    def __call__(self, z: Float[jax.Array, "*lead h w z"]) -> Float[jax.Array, "*lead h2 w2 c"]:
        """Decode."""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x, _ = level(x)
        x = self.conv_out(nnx.silu(self.conv_norm_out(x)))
        return self.time_conv_out(x) if self.temporal else x


class Autoencoder(nnx.Module):
    """KL autoencoder."""

    def __init__(self, spec: AutoencoderSpec, types: layers.Types):
        types = types.of_network()
        self.in_channels, self.scaling_factor = spec.in_channels, spec.scaling_factor
        self.temporal_decoder = spec.temporal_decoder
        resnet: blocks.Factory = functools.partial(
            blocks.ResBlock, types=types, epsilon=1e-6, norm_groups=spec.norm_groups
        )
        decoder_resnet = resnet
        if spec.temporal_decoder:
            decoder_resnet = functools.partial(
                blocks.SpatioTemporalResBlock,
                types=types,
                epsilon=1e-6,
                temporal_epsilon=1e-5,
                mix_start=0.0,
                weighs_temporal=True,
                norm_groups=spec.norm_groups,
            )

        def attentions() -> list[nnx.Module]:
            width = spec.block_out_channels[-1]
            return [ImageAttention(width, types, norm_groups=spec.norm_groups)] if spec.mid_attention else []

        self.encoder = Encoder(spec, types, resnet=resnet, attentions=attentions())
        self.decoder = Decoder(spec, types, resnet=decoder_resnet, attentions=attentions())
        self.quant_conv = layers.conv1x1(2 * spec.latent_channels, 2 * spec.latent_channels, types)
        if not spec.temporal_decoder:
            self.post_quant_conv = layers.conv1x1(spec.latent_channels, spec.latent_channels, types)

    def encode(
        self, x: Float[jax.Array, "b h w c"]
    ) -> tuple[Float[jax.Array, "b h2 w2 z"], Float[jax.Array, "b h2 w2 z"]]:
        """Return mean and log variance of the latents of images in [-1, 1], not multiplied by the scaling factor.

        Raises:
          ValueError: height or width cannot be halved at every level.
        """
        factor = 2 ** (len(self.encoder.down_blocks) - 1)
        if x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"images are {x.shape[1]} x {x.shape[2]} pixels; both must be multiples of {factor}")
        mean, logvar = jnp.split(self.quant_conv(self.encoder(x)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, z: Float[jax.Array, "b h w z"], num_frames: int = 1) -> Float[jax.Array, "b h2 w2 c"]:
        """Return images, about in [-1, 1], of latents that are already divided by the scaling factor.

        Args:
          z: latents; for a temporal decoder all frames of the first window, then of the second, and so on.
          num_frames: frames per window; a decoder without temporal layers decodes each image on its own.

        Raises:
          ValueError: the last window is incomplete.
        """
        if z.shape[0] % num_frames:
            raise ValueError(f"got {z.shape[0]} latents; expected a multiple of the {num_frames} frames of a window")
        if not self.temporal_decoder:
            return self.decoder(self.post_quant_conv(z))
        x = self.decoder(z.reshape(-1, num_frames, *z.shape[1:]))
        return x.reshape(-1, *x.shape[2:])
