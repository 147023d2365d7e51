"""The state that a run updates, its optimizer, and how parameters are made, loaded and placed on devices."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax import settings, stages
from e3d_jax.models import layers
from e3d_jax.training import muon
from e3d_jax.weights import folder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run updates.

    Attributes:
      step: steps taken, skipped ones included.
      params: parameters in training, float32.
      ema: their exponential moving average.
      optimizer_state: of :func:`make_optimizer`.
      skipped: steps that were skipped because the loss or a gradient was not finite.
      consecutive_skips: how many of these are the latest steps, without a finite one since.
    """

    step: Any
    params: Any
    ema: Any
    optimizer_state: Any
    skipped: Any
    consecutive_skips: Any


def learning_rate(train: config_lib.TrainSettings) -> optax.Schedule:
    """Return a linear warm-up, then half a cosine down to zero, or the peak with ``lr_schedule`` "constant"."""
    warmup = min(train.warmup_steps, train.steps // 2)
    if train.lr_schedule == "constant":
        return optax.warmup_constant_schedule(0.0, train.learning_rate, warmup)
    return optax.warmup_cosine_decay_schedule(0.0, train.learning_rate, warmup, train.steps)


def make_optimizer(train: config_lib.TrainSettings) -> optax.GradientTransformation:
    """Return AdamW on clipped gradients, without the learning rate but with its multipliers (``lr_multipliers``).

    With ``optimizer`` "muon", kernels follow :mod:`e3d_jax.training.muon` and only the rest follows Adam.
    """
    direction = optax.scale_by_adam(b1=0.9, b2=train.beta2)
    if train.optimizer == "muon":
        direction = optax.partition({True: muon.scale_by_muon(), False: direction}, path_contains("kernel"))
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        direction,
        # Not on biases and norms.
        optax.add_decayed_weights(train.weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        *(optax.masked(optax.scale(factor), path_contains(part)) for part, factor in train.lr_multipliers.items()),
    )


def dotted(path: Any) -> str:
    """Return the path of a parameter in a tree as weights folders name it."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def contains(name: str, part: str) -> bool:
    """Return whether a dotted path contains ``part``, as whole words."""
    return bool(re.search(rf"\b{re.escape(part)}\b", name))


def path_contains(part: str) -> Callable[[Any], Any]:
    """Return a function from parameters to a mask of those whose path :func:`contains` ``part``."""
    return lambda params: jax.tree_util.tree_map_with_path(lambda path, _: contains(dotted(path), part), params)


def in_training(frozen: Sequence[str]) -> nnx.filterlib.Filter:
    """Return a filter that selects a module's parameters except those of the ``frozen`` attributes."""
    return nnx.All(nnx.Param, nnx.Not(lambda path, _: path[0] in frozen))


def build_module(config: config_lib.SystemConfig, component: str, *, dtype: Any, seed: int = 0) -> nnx.Module:
    """Make a component with fresh parameters; its ``train.remat`` says what the backward pass recomputes.

    Parameters are made on the host: a large model must not pass through a single device.
    """
    train = config[component].train
    with on_host():
        remat = train.remat if train else "none"
        types = layers.Types(dtype=dtype, param_dtype=jnp.float32, rngs=nnx.Rngs(seed), remat=remat)
        return stages.build(config, component, types)


def load(source: pathlib.Path, component: str, config: config_lib.SystemConfig, module: nnx.Module) -> None:
    """Fill a module from a weights folder; see :func:`check_architecture`."""
    check_architecture(source, component, config)
    folder.load(source, component, module)


def check_architecture(source: pathlib.Path, component: str, config: config_lib.SystemConfig) -> None:
    """Refuse a weights folder that does not have a component of the config's architecture.

    Raises:
      FileNotFoundError: the folder lacks the component.
      ValueError: its architecture differs.
    """
    folder.read(source, component)  # A missing component is not a difference.
    stored, given = (
        {name: value for name, value in each.identity().items() if name.startswith(f"{component}.model.")}
        for each in (folder.read_config(source), config)
    )
    if different := settings.differences(stored, given):
        raise ValueError(
            f"the {component} in {source} has another architecture: {different[0]}; choose a folder and a config that "
            "match"
        )


def on_host() -> contextlib.AbstractContextManager:
    """Return a context in which new arrays are made in the host's memory, unless JAX was set to ignore the CPU."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def abstract(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the shapes of a fresh state."""
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(count, params, params, jax.eval_shape(optimizer.init, params), count, count)


def like(params: Any, optimizer: optax.GradientTransformation, stored: TrainState) -> TrainState:
    """Return the shapes and shardings of a state, from which a checkpoint is restored."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract(params, optimizer),
        stored,
    )


def create(params: Any, optimizer: optax.GradientTransformation, stored: TrainState) -> TrainState:
    """Return the first state of a run.

    Args:
      params: equal in every process.
      optimizer: of the run.
      stored: shardings of the state.
    """
    params = place(params, stored.params)
    zero = np.zeros((), np.int32)
    step, skipped, consecutive = place((zero, zero, zero), (stored.step, stored.skipped, stored.consecutive_skips))
    # One program: on a GPU, compiling a copy for every shape takes longer than reading the weights.
    start = jax.jit(
        lambda params: (jax.tree.map(jnp.copy, params), optimizer.init(params)),
        out_shardings=(stored.ema, stored.optimizer_state),
    )
    ema, optimizer_state = start(params)
    return TrainState(step, params, ema, optimizer_state, skipped, consecutive)


def place(tree: Any, stored: Any) -> Any:
    """Move arrays of the host to devices, to each device its part of them."""

    def put(array, sharding):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, stored)
