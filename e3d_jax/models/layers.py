"""Elementary layers: quick initial values, and norms whose statistics are in at least float32."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float


class ParamKeys:
    """Stands in for ``nnx.Rngs`` while a network is built: one source of randomness per parameter, counted in Python.

    Under ``jit`` these are keys; ``nnx.Rngs`` itself would count in an array that is looked up in everything traced
    so far, which takes time quadratic in the number of layers. Elsewhere they are NumPy generators, because compiling
    a draw for each shape takes a minute for a U-Net. The initial values of a seed therefore depend on which it is.
    """

    def __init__(self, rngs: nnx.Rngs):
        self._key, self._count = rngs.params(), 0
        self._traced = isinstance(self._key, jax.core.Tracer)

    def params(self) -> jax.Array | np.random.Generator:
        """Return the next source."""
        self._count += 1
        if self._traced:
            return jax.random.fold_in(self._key, self._count)
        return np.random.default_rng([*np.asarray(jax.random.key_data(self._key)).tolist(), self._count])


# Layers take either, so that they can be built on their own.
Rngs = nnx.Rngs | ParamKeys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Types:
    """What all layers of a network share: number types, source of initial values, and what is recomputed.

    Attributes:
      dtype: of the computation.
      param_dtype: of the parameters.
      rngs: source of randomness of the initial values.
      remat: what the backward pass recomputes instead of keeping, see :func:`e3d_jax.models.blocks.apply`; networks
        without blocks keep everything.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    rngs: Rngs
    remat: str = "none"

    def of_network(self) -> "Types":
        """Return the types of one network, whose layers draw from a source of their own (:class:`ParamKeys`)."""
        assert isinstance(self.rngs, nnx.Rngs), "networks are not nested"
        return dataclasses.replace(self, rngs=ParamKeys(self.rngs))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of Flax layers."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


def normal(source: jax.Array | np.random.Generator, shape: tuple[int, ...], dtype: Any, scale: float) -> jax.Array:
    """Draw normal values of standard deviation ``scale`` from a source of :meth:`ParamKeys.params`."""
    if isinstance(source, np.random.Generator):
        return jnp.asarray(scale * source.standard_normal(shape, np.float32), dtype)
    return scale * jax.random.normal(source, shape, dtype)


def fan_in_normal(source: jax.Array | np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draw a kernel that keeps the variance: standard deviation 1 / sqrt(inputs per output)."""
    return normal(source, shape, dtype, 1 / math.sqrt(math.prod(shape[:-1])))


zeros = nnx.initializers.zeros
embedding_init = functools.partial(normal, scale=0.02)


def linear(inputs: int, outputs: int, types: Types, *, kernel_init: Any = fan_in_normal, **options: Any) -> nnx.Linear:
    """Build a linear layer; ``options`` are those of ``nnx.Linear``."""
    return nnx.Linear(inputs, outputs, kernel_init=kernel_init, **options, **types.arguments())


def linear_halves(
    layer: nnx.Linear, x: Float[jax.Array, "*s c"]
) -> tuple[Float[jax.Array, "*s half"], Float[jax.Array, "*s half"]]:
    """Apply a linear layer with a bias and return both halves of its outputs.

    The kernel is split, not the product: to put the gradients of split products together takes a copy, which is much
    larger than the kernel.
    """
    assert layer.bias is not None
    x, kernel, bias = (y.astype(layer.dtype) for y in (x, layer.kernel[...], layer.bias[...]))
    kernels, biases = jnp.split(kernel, 2, axis=-1), jnp.split(bias, 2)
    return x @ kernels[0] + biases[0], x @ kernels[1] + biases[1]


def conv(
    inputs: int, outputs: int, window: int, types: Types, *, kernel_init: Any = fan_in_normal, **options: Any
) -> nnx.Conv:
    """Build a convolution with a square window; ``options`` are those of ``nnx.Conv``."""
    return nnx.Conv(inputs, outputs, (window, window), kernel_init=kernel_init, **options, **types.arguments())


def conv3x3(inputs: int, outputs: int, types: Types, **options: Any) -> nnx.Conv:
    """Build a 3x3 convolution padded by one pixel on every side (SAME padding is asymmetric at stride 2)."""
    return conv(inputs, outputs, 3, types, padding=1, **options)


def conv1x1(inputs: int, outputs: int, types: Types, **options: Any) -> nnx.Conv:
    """Build a 1x1 convolution."""
    return conv(inputs, outputs, 1, types, padding=0, **options)


def layer_norm(channels: int, types: Types, *, epsilon: float = 1e-5) -> nnx.LayerNorm:
    """Build a layer norm; the fast variance E[x^2] - E[x]^2, not used here, loses digits when the mean is large."""
    return nnx.LayerNorm(channels, epsilon=epsilon, use_fast_variance=False, **types.arguments())


@jax.checkpoint  # The backward pass keeps only the input, not its wider intermediates.
def gelu(x: Float[jax.Array, "*s"]) -> Float[jax.Array, "*s"]:
    """Compute GELU with the exact normal distribution (arXiv 1606.08415).

    It uses erf. JAX's own uses erfc, which keeps more digits where the result is nearly 0 and takes 1.5 times as long.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / 2 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@jax.custom_vjp  # The backward pass keeps the inputs alone, and reads and writes everything once.
def geglu(value: Float[jax.Array, "*s c"], gate: Float[jax.Array, "*s c"]) -> Float[jax.Array, "*s c"]:
    """Multiply values by :func:`gelu` of their gates (arXiv 2002.05202)."""
    return value * gelu(gate)


def _geglu_forward(value, gate):
    return geglu(value, gate), (value, gate)


def _geglu_backward(inputs, gradient):
    wide = jnp.promote_types(gradient.dtype, jnp.float32)
    value, gate, scaled = (x.astype(wide) for x in (*inputs, gradient))
    below = (1 + jax.lax.erf(gate * math.sqrt(0.5))) / 2
    density = jnp.exp(jnp.square(gate) / -2) / math.sqrt(2 * math.pi)
    gradients = scaled * gate * below, scaled * value * (below + gate * density)
    return tuple(x.astype(gradient.dtype) for x in gradients)


geglu.defvjp(_geglu_forward, _geglu_backward)


class TimeConv(nnx.Conv):
    """Convolution along frames, kernel 3x1x1.

    All positions of an image become one axis of a two-dimensional convolution, for which libraries have faster kernels
    than for a three-dimensional one.
    """

    def __init__(self, in_channels: int, out_channels: int, types: Types, *, kernel_init: Any = fan_in_normal):
        super().__init__(in_channels, out_channels, (3, 1, 1), kernel_init=kernel_init, **types.arguments())

    def __call__(  # type: ignore[override]
        self, x: Float[jax.Array, "*lead t h w i"]
    ) -> Float[jax.Array, "*lead t h w o"]:
        """Convolve."""
        assert self.bias is not None
        *lead, frames, height, width, channels = x.shape
        flat = x.reshape(-1, frames, height * width, channels).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)[:, :, 0]
        flat = jax.lax.conv_general_dilated(
            flat, kernel, (1, 1), ((1, 1), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return (flat + self.bias[...].astype(flat.dtype)).reshape(*lead, frames, height, width, -1)


class GroupNorm(nnx.Module):
    """Group normalization (arXiv 1803.08494) over the last spatial axes and the channels of a group.

    Args:
      channels: width of the input.
      types: of the layer.
      groups: number of groups; divides ``channels``.
      epsilon: added to the variance.
      spatial_axes: how many axes before the channels share statistics: 2 for images, 3 for frames of images.

    Raises:
      ValueError: ``groups`` does not divide ``channels``.
    """

    def __init__(self, channels: int, types: Types, *, groups: int = 32, epsilon: float = 1e-5, spatial_axes: int = 2):
        if channels % groups:
            raise ValueError(f"{groups} norm groups do not divide {channels} channels; choose widths that they divide")
        self.groups, self.epsilon, self.spatial_axes, self.dtype = groups, epsilon, spatial_axes, types.dtype
        self.scale = nnx.Param(jnp.ones(channels, types.param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, types.param_dtype))

    def __call__(self, x: Float[jax.Array, "*lead h w c"]) -> Float[jax.Array, "*lead h w c"]:
        """Normalize; the result has the type of the computation."""
        accumulate = jnp.promote_types(x.dtype, jnp.float32)
        scale, bias = (p.astype(accumulate) for p in (self.scale[...], self.bias[...]))
        centered = x.astype(accumulate)
        centered -= self._group_mean(centered)
        variance = self._group_mean(jnp.square(centered))
        return (centered * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)

    def _group_mean(self, x):
        """Return each channel's group mean; channels are averaged first because their axis is contiguous."""
        channel_means = x.mean(range(-1 - self.spatial_axes, -1), keepdims=True)
        groups = channel_means.reshape(*channel_means.shape[:-1], self.groups, -1)
        return jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape).reshape(channel_means.shape)
