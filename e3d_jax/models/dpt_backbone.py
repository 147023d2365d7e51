"""The ResNet under the transformer of DPT-hybrid: standardized convolutions and group norm (BiT, arXiv 1912.11370)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from e3d_jax.models import layers


class StandardizedConv(nnx.Module):
    """Convolution without bias whose kernel has mean 0 and variance 1 per output channel (arXiv 1903.10520)."""

    def __init__(self, inputs: int, outputs: int, size: int, types: layers.Types, *, stride: int = 1):
        self.stride, self.dtype = stride, types.dtype
        shape = (size, size, inputs, outputs)
        self.kernel = nnx.Param(layers.fan_in_normal(types.rngs.params(), shape, types.param_dtype))

    def __call__(self, x: Float[jax.Array, "b h w i"]) -> Float[jax.Array, "b h2 w2 o"]:
        """Convolve, padded as in TensorFlow, where BiT was trained: an odd pixel goes after the image."""
        kernel = self.kernel[...].astype(jnp.promote_types(self.dtype, jnp.float32))
        centered = kernel - kernel.mean((0, 1, 2))
        kernel = centered * jax.lax.rsqrt((centered**2).mean((0, 1, 2)) + 1e-8)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class ConvNorm(nnx.Module):
    """Convolution, then group norm."""

    def __init__(self, inputs: int, outputs: int, size: int, types: layers.Types, *, stride: int = 1, norm_groups: int):
        self.conv = StandardizedConv(inputs, outputs, size, types, stride=stride)
        self.norm = layers.GroupNorm(outputs, types, groups=norm_groups)

    def __call__(self, x: Float[jax.Array, "b h w i"]) -> Float[jax.Array, "b h2 w2 o"]:
        """Transform."""
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """Residual block of a ResNet: 1x1 down to a quarter of the width, 3x3 with the stride, 1x1 up.

    Args:
      inputs: width of the input.
      outputs: width of the output.
      types: of the layers.
      stride: of the 3x3 convolution.
      first: whether it is the first block of its stage, whose shortcut is a convolution.
      norm_groups: groups of the norms.
    """

    def __init__(self, inputs: int, outputs: int, types: layers.Types, *, stride: int, first: bool, norm_groups: int):
        norm: Callable[..., Any] = functools.partial(layers.GroupNorm, types=types, groups=norm_groups)
        width = outputs // 4
        if first:
            self.downsample = ConvNorm(inputs, outputs, 1, types, stride=stride, norm_groups=norm_groups)
        self.first = first
        self.conv1, self.norm1 = StandardizedConv(inputs, width, 1, types), norm(width)
        self.conv2, self.norm2 = StandardizedConv(width, width, 3, types, stride=stride), norm(width)
        self.conv3, self.norm3 = StandardizedConv(width, outputs, 1, types), norm(outputs)

    def __call__(self, x: Float[jax.Array, "b h w i"]) -> Float[jax.Array, "b h2 w2 o"]:
        """Transform."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        shortcut = self.downsample(x) if self.first else x
        return nnx.relu(shortcut + self.norm3(self.conv3(y)))


class ResNet(nnx.Module):
    """Stem and all stages but the last of a ResNet, at 1/4, 1/8 and 1/16 of the resolution."""

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        types: layers.Types,
        *,
        stem_width: int,
        norm_groups: int,
    ):
        self.stem = ConvNorm(3, stem_width, 7, types, stride=2, norm_groups=norm_groups)
        block = functools.partial(Bottleneck, types=types, norm_groups=norm_groups)
        stages = []
        for i, (inputs, outputs, depth) in enumerate(zip((stem_width, *widths), widths, depths, strict=False)):
            first = block(inputs, outputs, stride=1 if i == 0 else 2, first=True)
            rest = [block(outputs, outputs, stride=1, first=False) for _ in range(depth - 1)]
            stages.append(nnx.Sequential(first, *rest))
        self.stages = nnx.List(stages)

    def __call__(self, x: Float[jax.Array, "b h w 3"]) -> list[Float[jax.Array, "b ... c"]]:
        """Return the feature maps of images, one per stage."""
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), (2, 2), "SAME")
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
