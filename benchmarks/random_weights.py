"""Components with random weights, made where they are used: full-size ones at once, and never on the host."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from e3d_jax.models import build


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _kernel(index: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    # XLA's own generator, which compiles fast.
    values = jax.random.normal(jax.random.key(index, impl="unsafe_rbg"), shape, jnp.float32)
    return (values / math.sqrt(math.prod(shape[:-1]))).astype(dtype)


def random_module(name: build.Component, arguments: Mapping[str, Any], dtype: Any) -> nnx.Module:
    """A component whose kernels are random, norms one and biases zero.

    Every shape is a program of its own: one program that makes all of a large U-Net's thousand and more parameters
    takes a GPU's compiler many minutes.
    """
    module = nnx.eval_shape(lambda: build.build(name, arguments, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)))
    for index, (path, parameter) in enumerate(nnx.to_flat_state(nnx.state(module, nnx.Param))):
        if path[-1] in ("scale", "bias"):
            value = jnp.full(parameter.shape, float(path[-1] == "scale"), parameter.dtype)
        else:
            value = _kernel(jnp.uint32(index), parameter.shape, parameter.dtype)
        parameter.set_value(value)
    return jax.block_until_ready(module)
