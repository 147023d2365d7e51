"""Low-rank adaptation (arXiv 2106.09685): kernels stay, and the product of two small matrices is added to each.

The matrices are what a run trains, keeps the EMA and optimizer state of, and saves. A kernel and its product are summed
before the layer uses them, so that layers need not know, and merging them for good changes nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3d_jax import config as config_lib
from e3d_jax.models import layers
from e3d_jax.training import state

# By dotted path of the kernel [i o]: its matrices "a" [i r] and "b" [r o].
Adapters = dict[str, dict[str, Any]]


def create(params: Any, lora: config_lib.LoraSettings, seed: int) -> Adapters:
    """Return the matrices that a run starts with, whose products are zero; shapes alone for abstract parameters.

    Args:
      params: parameters of a module.
      lora: rank, and which layers have adapters.
      seed: of the random matrices.

    Raises:
      ValueError: a part of a path is in none of a linear layer.
    """
    paths = {name: leaf for name, leaf in _named(params) if name.endswith("kernel") and len(leaf.shape) == 2}
    chosen = {name for part in lora.layers for name in paths if state.contains(name, part)}
    if unknown := [part for part in lora.layers if not any(state.contains(name, part) for name in paths)]:
        raise ValueError(f"train.lora.layers names {', '.join(unknown)}, but no linear layer in training has that name")
    rng, adapters = np.random.default_rng(seed), Adapters()
    for name, kernel in paths.items():
        if name not in chosen:
            continue
        first, second = (kernel.shape[0], lora.rank), (lora.rank, kernel.shape[1])
        if isinstance(kernel, jax.ShapeDtypeStruct):
            adapters[name] = {
                "a": jax.ShapeDtypeStruct(first, jnp.float32),
                "b": jax.ShapeDtypeStruct(second, jnp.float32),
            }
        else:
            adapters[name] = {
                "a": np.asarray(layers.fan_in_normal(rng, first, jnp.float32)),
                "b": np.zeros(second, np.float32),
            }
    return adapters


def applied(params: Any, adapters: Adapters) -> Any:
    """Return parameters with the products added to their kernels, in the types that they have."""

    def add(path, kernel):
        if (adapter := adapters.get(state.dotted(path))) is None:
            return kernel
        product = jnp.matmul(adapter["a"], adapter["b"], preferred_element_type=jnp.float32)
        return (kernel.astype(jnp.float32) + product).astype(kernel.dtype)

    return jax.tree_util.tree_map_with_path(add, params)


def _named(params: Any) -> list[tuple[str, Any]]:
    return [(state.dotted(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
