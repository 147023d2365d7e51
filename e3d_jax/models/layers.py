"""Elementary layers: quick initial values, and norms whose statistics are in at least float32."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float


class ParamKeys:
    """Stands for ``nnx.Rngs`` while a module is built: a source of randomness for each parameter, counted in Python.

    Under ``jit`` these are keys; ``nnx.Rngs`` itself would count in an array that is looked up in all that was traced
    before, which takes time quadratic in the number of layers. Elsewhere they are NumPy generators, because compiling
    a draw for each shape takes a minute for a U-Net. The values of a seed hence depend on which of the two it is.
    """

    def __init__(self, rngs: nnx.Rngs):
        self._key, self._count = rngs.params(), 0
        self._traced = isinstance(self._key, jax.core.Tracer)

    def params(self) -> jax.Array | np.random.Generator:
        """The next source."""
        self._count += 1
        if self._traced:
            return jax.random.fold_in(self._key, self._count)
        return np.random.default_rng([*np.asarray(jax.random.key_data(self._key)).tolist(), self._count])


# What layers take, so that parts can be built alone too.
Rngs = nnx.Rngs | ParamKeys


def normal(source: jax.Array | np.random.Generator, shape: tuple[int, ...], dtype: Any, scale: float) -> jax.Array:
    """Normal values of standard deviation ``scale`` from what :meth:`ParamKeys.params` gives."""
    if isinstance(source, np.random.Generator):
        return jnp.asarray(scale * source.standard_normal(shape, np.float32), dtype)
    return scale * jax.random.normal(source, shape, dtype)


def fan_in_normal(source: jax.Array | np.random.Generator, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initial kernel that keeps the variance: standard deviation 1 / sqrt(inputs of an output)."""
    return normal(source, shape, dtype, 1 / math.sqrt(math.prod(shape[:-1])))


zeros = nnx.initializers.zeros
embedding_init = functools.partial(normal, scale=0.02)

linear = functools.partial(nnx.Linear, kernel_init=fan_in_normal)
conv = functools.partial(nnx.Conv, kernel_init=fan_in_normal)
# SAME padding is asymmetric where the stride is 2; explicit numbers are not.
conv3x3 = functools.partial(conv, kernel_size=(3, 3), padding=1)
conv1x1 = functools.partial(conv, kernel_size=(1, 1), padding=0)
# The fast variance E[x^2] - E[x]^2 loses digits when the mean is large.
layer_norm = functools.partial(nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False)


def _gelu(x):
    """Without a checkpoint, for functions that have their own: one inside another would compute it once more."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide / 2 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@jax.checkpoint  # The backward pass keeps the input alone, not its wider intermediates.
def gelu(x: Float[jax.Array, "*s"]) -> Float[jax.Array, "*s"]:
    """GELU without approximating its normal distribution (arXiv 1606.08415).

    By erf: JAX's own goes by erfc, which keeps more digits where the result is nearly 0, and takes half as long again.
    """
    return _gelu(x)


@jax.checkpoint  # As above.
def geglu(x: Float[jax.Array, "*s two_c"]) -> Float[jax.Array, "*s c"]:
    """The first half of the channels times :func:`gelu` of the second (arXiv 2002.05202)."""
    value, gate = jnp.split(x, 2, axis=-1)
    return value * _gelu(gate)


class TimeConv(nnx.Conv):
    """Convolution along frames, kernel 3x1x1.

    All positions of an image are one axis of a convolution in two dimensions, for which libraries have faster kernels
    than for three.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_init: Any = fan_in_normal,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(in_channels, out_channels, (3, 1, 1), kernel_init=kernel_init, **types)

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
    """Group normalisation (arXiv 1803.08494) over the last spatial axes and the channels of a group.

    Args:
      channels: width of the input.
      groups: number of groups; divides ``channels``.
      epsilon: added to the variance.
      spatial_axes: how many axes before the channels share statistics: 2 for images, 3 for frames of images.

    Raises:
      ValueError: ``groups`` does not divide ``channels``.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 32,
        epsilon: float = 1e-5,
        spatial_axes: int = 2,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: Rngs,
    ):
        if channels % groups:
            raise ValueError(f"{groups} norm groups do not divide {channels} channels; choose widths that they divide")
        del rngs  # Constant initial values; the argument keeps one signature for all layers.
        self.groups, self.epsilon, self.spatial_axes, self.dtype = groups, epsilon, spatial_axes, dtype
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))

    def __call__(self, x: Float[jax.Array, "*lead h w c"]) -> Float[jax.Array, "*lead h w c"]:
        """Normalise; the result has the compute type."""
        accumulate = jnp.promote_types(x.dtype, jnp.float32)
        scale, bias = (p.astype(accumulate) for p in (self.scale[...], self.bias[...]))
        centered = x.astype(accumulate)
        centered -= self._group_mean(centered)
        variance = self._group_mean(jnp.square(centered))
        return (centered * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)

    def _group_mean(self, x):
        """Means of the groups, for each of their channels: of channels first, as theirs is the axis in one piece."""
        of_channels = x.mean(range(-1 - self.spatial_axes, -1), keepdims=True)
        groups = of_channels.reshape(*of_channels.shape[:-1], self.groups, -1)
        return jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape).reshape(of_channels.shape)
