"""Convolutional building blocks: residual blocks, resampling, embeddings, and the levels of U-Nets.

Activations are ``[*lead h w c]``: convolutions and norms treat each image of the leading axes on its own, except those
of the temporal residual block, which run along the axis before ``h``.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Num

from e3d_jax.models import layers

# Builds a layer from its widths; all other arguments are bound.
Factory = Callable[..., Any]


def sinusoids(positions: Num[jax.Array, "*b"], dim: int) -> Float[jax.Array, "*b {dim}"]:
    """Return cosines, then sines, at ``dim / 2`` frequencies from 1 down to 1/10000 (arXiv 2006.11239)."""
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class EmbeddingMLP(nnx.Module):
    """Linear, SiLU, linear: turns sinusoids or labels into an embedding."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, types: layers.Types):
        self.linear_1 = layers.linear(in_dim, hidden, types)
        self.linear_2 = layers.linear(hidden, out_dim, types)

    def __call__(self, x: Float[jax.Array, "*b i"]) -> Float[jax.Array, "*b o"]:
        """Embed."""
        return self.linear_2(nnx.silu(self.linear_1(x)))


class Downsample(nnx.Module):
    """Stride-2 convolution that halves height and width; ``padding`` is (before, after) on both axes."""

    def __init__(self, channels: int, types: layers.Types, *, padding: tuple[int, int] = (1, 1)):
        self.conv = layers.conv(channels, channels, 3, types, strides=2, padding=(padding, padding))

    def __call__(self, x: Float[jax.Array, "*lead h w c"]) -> Float[jax.Array, "*lead h2 w2 c"]:
        """Halve."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest-neighbor enlargement that doubles height and width, then a 3x3 convolution.

    Together they equal a 2x2 convolution for each of the four pixels that one becomes, and are computed as such: with
    4/9 of the FLOPs and without storing the enlarged input (sub-pixel convolution, arXiv 1609.05158).
    """

    def __init__(self, channels: int, types: layers.Types):
        self.conv = layers.conv3x3(channels, channels, types)

    def __call__(self, x: Float[jax.Array, "*lead h w c"]) -> Float[jax.Array, "*lead h2 w2 c"]:
        """Double."""
        height, width, channels = x.shape[-3:]
        assert self.conv.bias is not None
        kernel = self.conv.kernel[...].astype(jnp.promote_types(x.dtype, jnp.float32))
        # Enlarged rows 2i and 2i + 1 see rows i - 1, i, i and i, i, i + 1; columns likewise.
        kernels = [part for rows in _halves(kernel, 0) for part in _halves(rows, 1)]
        kernel = jnp.concatenate(kernels, -1).astype(self.conv.dtype)
        flat = x.reshape(-1, height, width, channels).astype(self.conv.dtype)
        windows = jax.lax.conv_general_dilated(
            flat, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        # Window (i, j) starts at pixel (i - 1, j - 1).
        parts = jnp.split(windows, 4, -1)
        rows = [jnp.stack([parts[2 * a + b][:, a : a + height, b : b + width] for b in (0, 1)], 3) for a in (0, 1)]
        doubled = jnp.stack(rows, 2).reshape(*x.shape[:-3], 2 * height, 2 * width, channels)
        return doubled + self.conv.bias[...].astype(doubled.dtype)


def _halves(kernel, axis):
    """Reduce a kernel of three taps to two, for an input that repeats each value: for even and for odd positions."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return [jnp.concatenate(taps, axis) for taps in ((first, middle + last), (first + middle, last))]


class ResBlock(nnx.Module):
    """Residual block: twice norm, SiLU, convolution; an embedding is added in between.

    Args:
      in_channels: width of the input.
      out_channels: width of the output; a 1x1 convolution adapts the residual if it differs.
      types: of the layers.
      embed_dim: width of the embedding; None for a block without one.
      epsilon: of both norms.
      temporal: whether to convolve along frames (kernel 3x1x1 on ``[*lead t h w c]``) rather than along the image.
      norm_groups: groups of both norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        types: layers.Types,
        *,
        embed_dim: int | None = None,
        epsilon: float = 1e-5,
        temporal: bool = False,
        norm_groups: int = 32,
    ):
        norm: Factory = functools.partial(
            layers.GroupNorm, types=types, groups=norm_groups, epsilon=epsilon, spatial_axes=3 if temporal else 2
        )
        conv: Factory = layers.TimeConv if temporal else layers.conv3x3
        self.adapts = in_channels != out_channels
        self.norm1 = norm(in_channels)
        self.conv1 = conv(in_channels, out_channels, types)
        if embed_dim is not None:
            self.time_emb_proj = layers.linear(embed_dim, out_channels, types)
        self.norm2 = norm(out_channels)
        # The block starts as the identity.
        self.conv2 = conv(out_channels, out_channels, types, kernel_init=layers.zeros)
        if self.adapts:
            self.conv_shortcut = layers.conv1x1(in_channels, out_channels, types)

    def __call__(
        self, x: Float[jax.Array, "*lead h w i"], embedding: Float[jax.Array, "... e"] | None = None
    ) -> Float[jax.Array, "*lead h w o"]:
        """Transform; the embedding's leading axes broadcast to those of ``x``."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        if embedding is not None:
            y = y + self.time_emb_proj(nnx.silu(embedding))[..., None, None, :]
        y = self.conv2(nnx.silu(self.norm2(y)))
        return (self.conv_shortcut(x) if self.adapts else x) + y


class TimeMixer(nnx.Module):
    """Learned blend of the outputs of the image layers and of the frame layers.

    Args:
      start: initial logit of the weight.
      types: of the weight.
      weighs_temporal: whether the weight belongs to the temporal branch rather than to the spatial one.
    """

    def __init__(self, start: float, types: layers.Types, *, weighs_temporal: bool = False):
        self.weighs_temporal = weighs_temporal
        self.mix_factor = nnx.Param(jnp.full(1, start, types.param_dtype))

    def __call__(self, spatial: Float[jax.Array, "*s"], temporal: Float[jax.Array, "*s"]) -> Float[jax.Array, "*s"]:
        """Blend."""
        weight = nnx.sigmoid(self.mix_factor[...].astype(jnp.promote_types(spatial.dtype, jnp.float32)))
        weight = weight.astype(spatial.dtype)
        weight = 1 - weight if self.weighs_temporal else weight
        return weight * spatial + (1 - weight) * temporal


class SpatioTemporalResBlock(nnx.Module):
    """Residual block on each image, then one along frames, blended (Stable Video Diffusion, arXiv 2311.15127).

    Args:
      in_channels: width of the input.
      out_channels: width of the output.
      types: of the layers.
      epsilon: of the norms of the image block.
      temporal_epsilon: of the norms of the frame block; by default ``epsilon``.
      mix_start: see :class:`TimeMixer`.
      weighs_temporal: see :class:`TimeMixer`.
      **kwargs: further arguments of both :class:`ResBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        types: layers.Types,
        *,
        epsilon: float = 1e-5,
        temporal_epsilon: float | None = None,
        mix_start: float = 0.5,
        weighs_temporal: bool = False,
        **kwargs: Any,
    ):
        block: Factory = functools.partial(ResBlock, types=types, **kwargs)
        temporal_epsilon = epsilon if temporal_epsilon is None else temporal_epsilon
        self.spatial_res_block = block(in_channels, out_channels, epsilon=epsilon)
        self.temporal_res_block = block(out_channels, out_channels, epsilon=temporal_epsilon, temporal=True)
        self.time_mixer = TimeMixer(mix_start, types, weighs_temporal=weighs_temporal)

    def __call__(
        self, x: Float[jax.Array, "b t h w i"], embedding: Float[jax.Array, "b t e"] | None = None
    ) -> Float[jax.Array, "b t h w o"]:
        """Transform."""
        spatial = self.spatial_res_block(x, embedding)
        return self.time_mixer(spatial, self.temporal_res_block(spatial, embedding))


# What a layer keeps for the backward pass; everything else is recomputed there (arXiv 1604.06174).
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def apply(layer: nnx.Module, *args: Any, remat: str) -> Any:
    """Call a layer.

    Args:
      layer: the module; if it is recomputed, it must not change its own variables.
      *args: its arguments.
      remat: what its backward pass recomputes: nothing ("none"), everything ("full"), or everything except matrix
        products ("dots").
    """
    if remat == "none":
        return layer(*args)  # type: ignore[operator]
    graph, state = nnx.split(layer)
    run = jax.checkpoint(lambda state, args: nnx.merge(graph, state)(*args), policy=REMAT_POLICIES[remat])
    return run(*_together((state, args)))


@jax.custom_vjp
def _together(inputs):
    """Return the inputs; none of their gradients is used before all are computed.

    Otherwise XLA leaves those of parameters to the end of a program for several devices, and until then keeps what
    each layer recomputed for them.
    """
    return inputs


_together.defvjp(lambda inputs: (inputs, None), lambda _, gradients: (jax.lax.optimization_barrier(gradients),))


class Level(nnx.Module):
    """One resolution of a U-Net: residual blocks, each followed by its attention if there is one, then resampling.

    The descending levels of a U-Net use what ``__call__`` returns besides the result as skips; its ascending levels
    take them as input.

    Args:
      resnets: residual blocks, called with (x, embedding).
      attentions: one per residual block, or none; called with (x, *given).
      downsamplers: one :class:`Downsample`, or none.
      upsamplers: one :class:`Upsample`, or none.
      remat: see :func:`apply`.
    """

    def __init__(
        self,
        resnets: Sequence[nnx.Module],
        attentions: Sequence[nnx.Module] = (),
        *,
        downsamplers: Sequence[Downsample] = (),
        upsamplers: Sequence[Upsample] = (),
        remat: str = "none",
    ):
        self.resnets, self.attentions = nnx.List(resnets), nnx.List(attentions)
        self.downsamplers, self.upsamplers = nnx.List(downsamplers), nnx.List(upsamplers)
        self.remat = remat

    def __call__(
        self,
        x: Float[jax.Array, "*lead h w i"],
        embedding: Float[jax.Array, "... e"] | None = None,
        given: Sequence[Any] = (),
        skips: list[jax.Array] | None = None,
    ) -> tuple[Float[jax.Array, "*lead h2 w2 o"], list[jax.Array]]:
        """Transform.

        Args:
          x: activations.
          embedding: added inside the residual blocks.
          given: further arguments of the attentions.
          skips: activations of the descending levels; each block pops the last one and joins it to its input.

        Returns:
          The result, and the activation after each layer.
        """
        outputs = []
        for i, resnet in enumerate(self.resnets):
            if skips is not None:
                x = jnp.concatenate([x, skips.pop()], -1)
            x = apply(resnet, x, embedding, remat=self.remat)
            if self.attentions:
                x = apply(self.attentions[i], x, *given, remat=self.remat)
            outputs.append(x)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x)
            outputs.append(x)
        return x, outputs


class MidLevel(nnx.Module):
    """The lowest level: a residual block, then attentions and residual blocks in turn.

    Args:
      resnets: residual blocks, called with (x, embedding).
      attentions: attention i comes before residual block i + 1; a block without one follows directly.
      remat: see :func:`apply`.
    """

    def __init__(self, resnets: Sequence[nnx.Module], attentions: Sequence[nnx.Module], *, remat: str = "none"):
        self.resnets, self.attentions = nnx.List(resnets), nnx.List(attentions)
        self.remat = remat

    def __call__(
        self,
        x: Float[jax.Array, "*lead h w c"],
        embedding: Float[jax.Array, "... e"] | None = None,
        given: Sequence[Any] = (),
    ) -> Float[jax.Array, "*lead h w c"]:
        """Transform; see :meth:`Level.__call__`."""
        x = apply(self.resnets[0], x, embedding, remat=self.remat)
        for i, resnet in enumerate(self.resnets[1:]):
            if i < len(self.attentions):
                x = apply(self.attentions[i], x, *given, remat=self.remat)
            x = apply(resnet, x, embedding, remat=self.remat)
        return x
