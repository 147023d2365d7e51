"""What all U-Nets share: the levels and how they are put together (arXiv 2112.10752, appendix E)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from e3d_jax.models import attention, blocks, layers


class SpatialTransformer(nnx.Module):
    """Transformer block on the positions of feature maps, with projections around it and a residual.

    Args:
      channels: width of the feature maps.
      heads: number of attention heads.
      norm_groups: groups of the first norm.
      **block: further arguments of :class:`attention.TransformerBlock`.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        norm_groups: int = 32,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: layers.Rngs,
        **block: Any,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = layers.GroupNorm(channels, groups=norm_groups, epsilon=1e-6, **types)
        self.proj_in = layers.linear(channels, channels, **types)
        self.transformer_blocks = nnx.List([attention.TransformerBlock(channels, heads, **block, **types)])
        # The whole branch starts at zero.
        self.proj_out = layers.linear(channels, channels, kernel_init=layers.zeros, **types)

    def transform(
        self, x: Float[jax.Array, "*lead n c"], context: Float[jax.Array, "... m e"] | None
    ) -> Float[jax.Array, "*lead n c"]:
        """Transform tokens between the projections."""
        return self.transformer_blocks[0](x, context)

    def __call__(
        self, x: Float[jax.Array, "*lead h w c"], context: Float[jax.Array, "... m e"] | None = None
    ) -> Float[jax.Array, "*lead h w c"]:
        """Transform; ``context`` broadcasts over the leading axes."""
        tokens = self.proj_in(self.norm(x)).reshape(*x.shape[:-3], -1, x.shape[-1])
        return x + self.proj_out(self.transform(tokens, context)).reshape(x.shape)


class SpatioTemporalTransformer(SpatialTransformer):
    """Spatial transformer block, then one along frames, blended (arXiv 2311.15127); arguments as its parent's."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        context_dim: int,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: layers.Rngs,
        **kwargs: Any,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(channels, heads, context_dim=context_dim, **kwargs, **types)
        temporal = attention.TransformerBlock(channels, heads, context_dim=context_dim, leading_ff=True, **types)
        self.temporal_transformer_blocks = nnx.List([temporal])
        self.time_pos_embed = blocks.EmbeddingMLP(channels, 4 * channels, channels, **types)
        self.time_mixer = blocks.TimeMixer(0.5, param_dtype=param_dtype)

    def temporal_context(
        self, context: Float[jax.Array, "b 1 m e"] | None, positions: int
    ) -> Float[jax.Array, "b _ m e"] | None:
        """The context of each of ``positions`` image positions in the block along frames: that of its window."""
        del positions
        return context

    def transform(
        self, x: Float[jax.Array, "b t n c"], context: Float[jax.Array, "b 1 m e"] | None
    ) -> Float[jax.Array, "b t n c"]:
        """Transform tokens between the projections."""
        x = self.transformer_blocks[0](x, context)
        frames = blocks.sinusoids(jnp.arange(x.shape[1]), x.shape[-1])
        context = self.temporal_context(context, x.shape[2])
        moved = attention.over_axes(
            lambda y: self.temporal_transformer_blocks[0](y, context),
            x + self.time_pos_embed(frames)[:, None],
            attention.TEMPORAL,
        )
        return self.time_mixer(x, moved)


class UNet(nnx.Module):
    """Descending stages, a middle and ascending stages with skips; subclasses add embeddings and ends.

    Args:
      in_channels: width of the input.
      block_out_channels: width of each level, from full resolution down; each further level halves the resolution.
      attention: whether each level has attention.
      heads: number of attention heads of each level, or one number for all.
      layers_per_block: residual blocks of a descending stage; an ascending one has one more.
      resnet: makes a residual block from (in_channels, out_channels, epsilon=...).
      transformer: makes an attention from (channels, heads).
      norm_groups: groups of every group norm.
      down_epsilon: norm epsilon of the descending residual blocks of levels with attention.
      up_epsilon: norm epsilon of the ascending residual blocks.
      remat: see :func:`e3d_jax.models.blocks.apply`.

    Raises:
      ValueError: the sequences differ in length.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        block_out_channels: Sequence[int],
        attention: Sequence[bool],
        heads: int | Sequence[int],
        layers_per_block: int,
        resnet: blocks.Factory,
        transformer: blocks.Factory,
        norm_groups: int,
        down_epsilon: float = 1e-5,
        up_epsilon: float = 1e-5,
        remat: str = "none",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: layers.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths, levels = tuple(block_out_channels), len(block_out_channels)
        heads = (heads,) * levels if isinstance(heads, int) else tuple(heads)
        if not len(attention) == len(heads) == levels:
            raise ValueError(
                f"got {levels} block_out_channels, {len(attention)} attention flags and {len(heads)} heads; "
                "give one of each per level"
            )

        def attentions(level: int, count: int) -> list[nnx.Module]:
            return [transformer(widths[level], heads[level]) for _ in range(count if attention[level] else 0)]

        self.conv_in = layers.conv3x3(in_channels, widths[0], **types)
        self.down_blocks: nnx.List[blocks.Stage] = nnx.List([])
        skips = [widths[0]]
        for i, width in enumerate(widths):
            epsilon = down_epsilon if attention[i] else 1e-5
            sources = [skips[-1], *[width] * (layers_per_block - 1)]
            resnets = [resnet(source, width, epsilon=epsilon) for source in sources]
            down = [blocks.Downsample(width, **types)] if i < levels - 1 else []
            skips += [width] * (layers_per_block + len(down))
            stage = blocks.Stage(resnets, attentions(i, layers_per_block), downsamplers=down, remat=remat)
            self.down_blocks.append(stage)
        middle = [resnet(widths[-1], widths[-1], epsilon=1e-5) for _ in range(2)]
        self.mid_block = blocks.MidStage(middle, [transformer(widths[-1], heads[-1])], remat=remat)
        self.up_blocks: nnx.List[blocks.Stage] = nnx.List([])
        last = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            resnets = []
            for _ in range(layers_per_block + 1):
                resnets.append(resnet(last + skips.pop(), width, epsilon=up_epsilon))
                last = width
            up = [blocks.Upsample(width, **types)] if i > 0 else []
            stage = blocks.Stage(resnets, attentions(i, layers_per_block + 1), upsamplers=up, remat=remat)
            self.up_blocks.append(stage)
        self.conv_norm_out = layers.GroupNorm(widths[0], groups=norm_groups, **types)

    def trunk(
        self,
        x: Float[jax.Array, "*lead h w c"],
        embedding: Float[jax.Array, "... e"] | None = None,
        context: Float[jax.Array, "... m f"] | None = None,
    ) -> Float[jax.Array, "*lead h w c"]:
        """From after the first convolution to before the last one.

        Raises:
          ValueError: height or width cannot be halved as often as there are levels.
        """
        factor = 2 ** (len(self.down_blocks) - 1)
        if x.shape[-3] % factor or x.shape[-2] % factor:
            raise ValueError(
                f"height {x.shape[-3]} and width {x.shape[-2]} must be multiples of {factor} for a network of "
                f"{len(self.down_blocks)} levels"
            )
        skips = [x]
        for stage in self.down_blocks:
            x, outputs = stage(x, embedding, context)
            skips += outputs
        x = self.mid_block(x, embedding, context)
        for stage in self.up_blocks:
            x, _ = stage(x, embedding, context, skips)
        return nnx.silu(self.conv_norm_out(x))


# An untrained denoiser or estimator starts by predicting zero.
conv_out = functools.partial(layers.conv3x3, kernel_init=layers.zeros)
