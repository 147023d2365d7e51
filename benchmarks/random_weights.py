"""Components with random weights, made on the device that uses them rather than on the host.

    python benchmarks/random_weights.py --out=DIR [--config=envision3d]

writes a weights folder of a whole system, to time programs that start from one.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax import presets, stages
from e3d_jax.models import layers
from e3d_jax.weights import folder


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _kernel(index: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    # XLA's own generator, which compiles fast.
    values = jax.random.normal(jax.random.key(index, impl="unsafe_rbg"), shape, jnp.float32)
    return (values / math.sqrt(math.prod(shape[:-1]))).astype(dtype)


def random_component(config: config_lib.SystemConfig, name: str, dtype: Any) -> nnx.Module:
    """Return a component of a system, see :func:`random_module`."""
    return random_module(functools.partial(stages.build, config, name), dtype)


def random_module(make: Callable[[layers.Types], nnx.Module], dtype: Any) -> nnx.Module:
    """Return a module whose kernels are random, norms one and biases zero.

    Each shape is a program of its own: one program for the more than thousand parameters of a large U-Net takes a GPU's
    compiler many minutes.

    Args:
      make: builds the module.
      dtype: of its computation and parameters.
    """
    module = nnx.eval_shape(lambda: make(layers.Types(dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))))
    for index, (path, parameter) in enumerate(nnx.to_flat_state(nnx.state(module, nnx.Param))):
        if path[-1] in ("scale", "bias"):
            value = jnp.full(parameter.shape, float(path[-1] == "scale"), parameter.dtype)
        else:
            value = _kernel(jnp.uint32(index), parameter.shape, parameter.dtype)
        parameter.set_value(value)
    return jax.block_until_ready(module)


def main(_) -> None:
    """Write one component after another."""
    config = stages.parse_config(presets.load(flags.FLAGS.config).to_dict())
    for name in config.components:
        folder.save(flags.FLAGS.out, name, random_component(config, name, jnp.bfloat16), config)


if __name__ == "__main__":
    # Not at the top, because other benchmarks import this file.
    flags.DEFINE_string("out", None, "Weights folder.", required=True)
    flags.DEFINE_string("config", "envision3d", "Preset or config file, NAME or NAME:VARIANT.")
    app.run(main)
