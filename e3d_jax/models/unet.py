"""What all U-Nets share: their settings, their levels and how these are put together (arXiv 2112.10752, appendix E)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from e3d_jax import settings
from e3d_jax.models import attention, blocks, layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetSpec(settings.Settings):
    """Size of a U-Net. Sequences have one element per level, from full resolution down; each level halves it."""

    in_channels: int = settings.setting(
        "Channels of the input; a denoiser's are those of the noisy latent and of the condition latent stacked on it.",
        8,
        at_least=1,
    )
    block_out_channels: tuple[int, ...] = settings.setting("Width of each level.", (320, 640, 1280, 1280), at_least=1)
    attention_levels: tuple[bool, ...] = settings.setting(
        "Whether each level has attention; the middle always has.", (True, True, True, False)
    )
    layers_per_block: int = settings.setting(
        "Residual blocks of a descending level; an ascending level has one more.", 2, at_least=1
    )
    heads: int | tuple[int, ...] = settings.setting(
        "Attention heads: one number for all levels, or one per level.", 8, at_least=1
    )
    norm_groups: int = settings.setting("Groups of the norms; must divide every width.", 32, at_least=1)

    @property
    def factor(self) -> int:
        """By how much the lowest level is smaller; divides height and width of the input."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def level_heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return (self.heads,) * len(self.block_out_channels) if isinstance(self.heads, int) else self.heads

    def check(self) -> None:
        """Refuse sequences of different lengths.

        Raises:
          ValueError: names the settings.
        """
        levels = len(self.block_out_channels)
        if levels == 0 or not len(self.attention_levels) == len(self.level_heads) == levels:
            raise ValueError(
                f"got {levels} block_out_channels, {len(self.attention_levels)} attention_levels and "
                f"{len(self.level_heads)} heads; expected one of each per level"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiserSpec(UNetSpec):
    """Size of the U-Net of a denoiser; the defaults are those of Stable Diffusion."""

    out_channels: int = settings.setting("Channels of the prediction.", 4, at_least=1)
    cross_attention_dim: int = settings.setting("Width of the context tokens.", 768, at_least=1)
    class_embed_dim: int = settings.setting("Width of the labels of each view's camera (and domain).", 12, at_least=1)


def inherited(base: type[UNetSpec], name: str, default: Any) -> Any:
    """Return a setting of a base class with another default."""
    return dataclasses.field(default=default, metadata=base.__dataclass_fields__[name].metadata)


class SpatialTransformer(nnx.Module):
    """Transformer block on the positions of feature maps, with projections around it and a residual.

    Args:
      channels: width of the feature maps.
      heads: number of attention heads.
      types: of the layers.
      norm_groups: groups of the first norm.
      **block: further arguments of :class:`attention.TransformerBlock`.
    """

    def __init__(self, channels: int, heads: int, types: layers.Types, *, norm_groups: int = 32, **block: Any):
        self.norm = layers.GroupNorm(channels, types, groups=norm_groups, epsilon=1e-6)
        self.proj_in = layers.linear(channels, channels, types)
        self.transformer_blocks = nnx.List([attention.TransformerBlock(channels, heads, types, **block)])
        # The whole branch starts at zero.
        self.proj_out = layers.linear(channels, channels, types, kernel_init=layers.zeros)

    def transform(
        self,
        x: Float[jax.Array, "*lead n c"],
        context: Float[jax.Array, "... m e"] | None,
        num_views: Int[jax.Array, " b"] | None = None,
    ) -> Float[jax.Array, "*lead n c"]:
        """Transform tokens between the projections."""
        return self.transformer_blocks[0](x, context, num_views)

    def __call__(
        self,
        x: Float[jax.Array, "*lead h w c"],
        context: Float[jax.Array, "... m e"] | None = None,
        num_views: Int[jax.Array, " b"] | None = None,
    ) -> Float[jax.Array, "*lead h w c"]:
        """Transform; arguments as of :class:`attention.TransformerBlock`."""
        tokens = self.proj_in(self.norm(x)).reshape(*x.shape[:-3], -1, x.shape[-1])
        return x + self.proj_out(self.transform(tokens, context, num_views)).reshape(x.shape)


# From the contexts of windows [b 1 m e] and the number of image positions to those of every position [b n m e].
ContextOrder = Callable[[jax.Array, int], jax.Array]


class SpatioTemporalTransformer(SpatialTransformer):
    """Spatial transformer block, then one along frames, blended (arXiv 2311.15127).

    Args:
      channels: width of the feature maps.
      heads: number of attention heads.
      types: of the layers.
      context_dim: width of the context.
      **kwargs: further arguments of :class:`SpatialTransformer`.

    Attributes:
      context_order: gives each image position its context in the block along frames; None gives every position that of
        its window.
    """

    def __init__(self, channels: int, heads: int, types: layers.Types, *, context_dim: int, **kwargs: Any):
        super().__init__(channels, heads, types, context_dim=context_dim, **kwargs)
        temporal = attention.TransformerBlock(channels, heads, types, context_dim=context_dim, leading_ff=True)
        self.temporal_transformer_blocks = nnx.List([temporal])
        self.time_pos_embed = blocks.EmbeddingMLP(channels, 4 * channels, channels, types)
        self.time_mixer = blocks.TimeMixer(0.5, types)
        self.context_order: ContextOrder | None = None

    def transform(
        self,
        x: Float[jax.Array, "b t n c"],
        context: Float[jax.Array, "b 1 m e"] | None,
        num_views: Int[jax.Array, " b"] | None = None,
    ) -> Float[jax.Array, "b t n c"]:
        """Transform tokens between the projections; all frames exist."""
        del num_views
        x = self.transformer_blocks[0](x, context)
        frames = blocks.sinusoids(jnp.arange(x.shape[1]), x.shape[-1])
        if self.context_order is not None and context is not None:
            context = self.context_order(context, x.shape[2])
        moved = attention.over_axes(
            lambda y: self.temporal_transformer_blocks[0](y, context),
            x + self.time_pos_embed(frames)[:, None],
            attention.TEMPORAL,
        )
        return self.time_mixer(x, moved)


class UNet(nnx.Module):
    """Descending levels, a middle and ascending levels with skips; subclasses add embeddings and ends.

    Args:
      spec: size of the network.
      types: of the layers.
      resnet: builds a residual block from (in_channels, out_channels, epsilon=...).
      transformer: builds an attention from (channels, heads).
      down_epsilon: norm epsilon of the descending residual blocks of levels with attention.
      up_epsilon: norm epsilon of the ascending residual blocks.
    """

    def __init__(
        self,
        spec: UNetSpec,
        types: layers.Types,
        *,
        resnet: blocks.Factory,
        transformer: blocks.Factory,
        down_epsilon: float = 1e-5,
        up_epsilon: float = 1e-5,
    ):
        widths, heads, levels = spec.block_out_channels, spec.level_heads, len(spec.block_out_channels)

        def attentions(level: int, count: int) -> list[nnx.Module]:
            return [
                transformer(widths[level], heads[level]) for _ in range(count if spec.attention_levels[level] else 0)
            ]

        self.conv_in = layers.conv3x3(spec.in_channels, widths[0], types)
        self.down_blocks: nnx.List[blocks.Level] = nnx.List([])
        skips = [widths[0]]
        for i, width in enumerate(widths):
            epsilon = down_epsilon if spec.attention_levels[i] else 1e-5
            sources = [skips[-1], *[width] * (spec.layers_per_block - 1)]
            resnets = [resnet(source, width, epsilon=epsilon) for source in sources]
            down = [blocks.Downsample(width, types)] if i < levels - 1 else []
            skips += [width] * (spec.layers_per_block + len(down))
            level = blocks.Level(resnets, attentions(i, spec.layers_per_block), downsamplers=down, remat=types.remat)
            self.down_blocks.append(level)
        middle = [resnet(widths[-1], widths[-1], epsilon=1e-5) for _ in range(2)]
        self.mid_block = blocks.MidLevel(middle, [transformer(widths[-1], heads[-1])], remat=types.remat)
        self.up_blocks: nnx.List[blocks.Level] = nnx.List([])
        last = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            resnets = []
            for _ in range(spec.layers_per_block + 1):
                resnets.append(resnet(last + skips.pop(), width, epsilon=up_epsilon))
                last = width
            up = [blocks.Upsample(width, types)] if i > 0 else []
            level = blocks.Level(resnets, attentions(i, spec.layers_per_block + 1), upsamplers=up, remat=types.remat)
            self.up_blocks.append(level)
        self.conv_norm_out = layers.GroupNorm(widths[0], types, groups=spec.norm_groups)

    def trunk(
        self,
        x: Float[jax.Array, "*lead h w c"],
        embedding: Float[jax.Array, "... e"] | None = None,
        context: Float[jax.Array, "... m f"] | None = None,
        num_views: Int[jax.Array, " b"] | None = None,
    ) -> Float[jax.Array, "*lead h w c"]:
        """Compute everything between the first and the last convolution.

        Args:
          x: activations.
          embedding: added inside the residual blocks.
          context: of the attentions, see :class:`attention.TransformerBlock`.
          num_views: of the attentions, likewise.

        Raises:
          ValueError: height or width cannot be halved at every level.
        """
        factor = 2 ** (len(self.down_blocks) - 1)
        if x.shape[-3] % factor or x.shape[-2] % factor:
            raise ValueError(
                f"height {x.shape[-3]} and width {x.shape[-2]} must be multiples of {factor} for a network of "
                f"{len(self.down_blocks)} levels"
            )
        skips = [x]
        for level in self.down_blocks:
            x, outputs = level(x, embedding, (context, num_views))
            skips += outputs
        x = self.mid_block(x, embedding, (context, num_views))
        for level in self.up_blocks:
            x, _ = level(x, embedding, (context, num_views), skips)
        return nnx.silu(self.conv_norm_out(x))


# An untrained denoiser or estimator starts by predicting zero.
conv_out = functools.partial(layers.conv3x3, kernel_init=layers.zeros)
