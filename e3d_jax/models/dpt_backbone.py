"""The ResNet under the transformer of DPT-hybrid: standardised convolutions and group norm (BiT, arXiv 1912.11370)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from e3d_jax.models import layers


class StandardizedConv(nnx.Module):
    """Convolution whose kernel has mean 0 and variance 1 for each output channel (arXiv 1903.10520); no bias."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, **types: Any):
        self.stride, self.dtype = stride, types["dtype"]
        key, shape = types["rngs"].params(), (size, size, inputs, outputs)
        self.kernel = nnx.Param(layers.fan_in_normal(key, shape, types["param_dtype"]))

    def __call__(self, x: Float[jax.Array, "b h w i"]) -> Float[jax.Array, "b h2 w2 o"]:
        """Convolve; the padding is that of TensorFlow, where BiT was trained: the odd pixel after the image."""
        kernel = self.kernel[...].astype(jnp.promote_types(self.dtype, jnp.float32))
        centred = kernel - kernel.mean((0, 1, 2))
        kernel = centred * jax.lax.rsqrt((centred**2).mean((0, 1, 2)) + 1e-8)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class ConvNorm(nnx.Module):
    """Convolution, then group norm."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, norm_groups: int, **types: Any):
        self.conv = StandardizedConv(inputs, outputs, size, stride=stride, **types)
        self.norm = layers.GroupNorm(outputs, groups=norm_groups, **types)

    def __call__(self, x: Float[jax.Array, "b h w i"]) -> Float[jax.Array, "b h2 w2 o"]:
        """Transform."""
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """Residual block of a ResNet: 1x1 down to a quarter of the width, 3x3 with the stride, 1x1 up.

    Args:
      inputs: width of the input.
      outputs: width of the output.
      stride: of the 3x3 convolution.
      first: whether it is its stage's first block, whose shortcut is a convolution.
      norm_groups: groups of the norms.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, first: bool, norm_groups: int, **types: Any):
        norm: Callable[..., Any] = functools.partial(layers.GroupNorm, groups=norm_groups, **types)
        width = outputs // 4
        if first:
            self.downsample = ConvNorm(inputs, outputs, 1, stride=stride, norm_groups=norm_groups, **types)
        self.first = first
        self.conv1, self.norm1 = StandardizedConv(inputs, width, 1, **types), norm(width)
        self.conv2, self.norm2 = StandardizedConv(width, width, 3, stride=stride, **types), norm(width)
        self.conv3, self.norm3 = StandardizedConv(width, outputs, 1, **types), norm(outputs)

    def __call__(self, x: Float[jax.Array, "b h w i"]) -> Float[jax.Array, "b h2 w2 o"]:
        """Transform."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        shortcut = self.downsample(x) if self.first else x
        return nnx.relu(shortcut + self.norm3(self.conv3(y)))


class ResNet(nnx.Module):
    """The stem and all stages but the last of a ResNet; returns what each stage makes, at 1/4, 1/8 and 1/16."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], *, stem_width: int, **options: Any):
        self.stem = ConvNorm(3, stem_width, 7, stride=2, **options)
        stages = []
        for i, (inputs, outputs, depth) in enumerate(zip((stem_width, *widths), widths, depths, strict=False)):
            first = Bottleneck(inputs, outputs, stride=1 if i == 0 else 2, first=True, **options)
            rest = [Bottleneck(outputs, outputs, stride=1, first=False, **options) for _ in range(depth - 1)]
            stages.append(nnx.Sequential(first, *rest))
        self.stages = nnx.List(stages)

    def __call__(self, x: Float[jax.Array, "b h w 3"]) -> list[Float[jax.Array, "b ... c"]]:
        """Features of pictures."""
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), (2, 2), "SAME")
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
