"""Components with random weights, made where they are used: full-size ones at once, and never on the host.

    python benchmarks/random_weights.py --out=DIR [--config=configs/envision3d.py]

writes a weights folder of a whole system, to time what starts from one.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from e3d_jax import commands
from e3d_jax.models import build
from e3d_jax.weights import folder

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _kernel(index: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    # XLA's own generator, which compiles fast.
    values = jax.random.normal(jax.random.key(index, impl="unsafe_rbg"), shape, jnp.float32)
    return (values / math.sqrt(math.prod(shape[:-1]))).astype(dtype)


def random_component(name: build.Component, arguments: Mapping[str, Any], dtype: Any) -> nnx.Module:
    """A component of a system, see :func:`random_module`."""
    return random_module(functools.partial(build.build, name, arguments), dtype)


def random_module(make: Callable[..., nnx.Module], dtype: Any) -> nnx.Module:
    """A module whose kernels are random, norms one and biases zero.

    Every shape is a program of its own: one program that makes all of a large U-Net's thousand and more parameters
    takes a GPU's compiler many minutes.

    Args:
      make: what returns the module, from ``dtype``, ``param_dtype`` and ``rngs``.
      dtype: of its computation and parameters.
    """
    module = nnx.eval_shape(lambda: make(dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)))
    for index, (path, parameter) in enumerate(nnx.to_flat_state(nnx.state(module, nnx.Param))):
        if path[-1] in ("scale", "bias"):
            value = jnp.full(parameter.shape, float(path[-1] == "scale"), parameter.dtype)
        else:
            value = _kernel(jnp.uint32(index), parameter.shape, parameter.dtype)
        parameter.set_value(value)
    return jax.block_until_ready(module)


def main(_) -> None:
    """Writes one component after another."""
    config = flags.FLAGS.config.to_dict()
    for name in build.components_of(config):
        folder.save(flags.FLAGS.out, name, random_component(name, config[name]["model"], jnp.bfloat16), config)


if __name__ == "__main__":
    # Not at the top, as others import this file.
    flags.DEFINE_string("out", None, "Weights folder.", required=True)
    commands.run(main, "random_weights.py", str(REPOSITORY / "configs/envision3d.py"))
