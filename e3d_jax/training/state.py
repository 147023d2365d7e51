"""What a run changes, and how it comes to be where it belongs."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from e3d_jax import settings as settings_lib
from e3d_jax.models import build
from e3d_jax.training import muon
from e3d_jax.weights import folder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run changes.

    Attributes:
      step: updates that were tried.
      params: those in training, float32.
      ema: their moving average.
      optimizer: its state.
      skipped: updates that were left out because the loss or a gradient was not finite.
      in_a_row: how many of the last updates were left out without one in between that was not.
    """

    step: Any
    params: Any
    ema: Any
    optimizer: Any
    skipped: Any
    in_a_row: Any


def learning_rate(settings: Mapping[str, Any]) -> optax.Schedule:
    """Linear warm-up, then half a cosine to zero, or with ``decay`` "constant" the peak."""
    peak, num_steps = settings["learning_rate"], settings["steps"]
    warmup = min(settings["warmup"], num_steps // 2)
    if settings["decay"] == "constant":
        return optax.warmup_constant_schedule(0.0, peak, warmup)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, num_steps)


def make_optimizer(settings: Mapping[str, Any]) -> optax.GradientTransformation:
    """AdamW on clipped gradients without its rate; ``faster`` maps parts of names to a factor of their rate.

    With ``optimizer`` "muon", kernels follow :mod:`e3d_jax.training.muon` and only the rest Adam.
    """
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    direction = optax.scale_by_adam(b1=0.9, b2=settings["beta2"])
    if settings["optimizer"] == "muon":
        kinds = {True: muon.scale_by_muon(), False: direction}
        direction = optax.partition(kinds, named("kernel"))
    return optax.chain(
        optax.clip_by_global_norm(settings["clip"]),
        direction,
        # Not on biases and norms.
        optax.add_decayed_weights(settings["weight_decay"], mask=matrices),
        *(optax.masked(optax.scale(factor), named(part)) for part, factor in settings["faster"].items()),
    )


def in_training(frozen: Sequence[str]) -> nnx.filterlib.Filter:
    """Selects a module's parameters, but those of the ``frozen`` attributes."""
    return nnx.All(nnx.Param, nnx.Not(lambda path, _: path[0] in frozen))


def build_module(config: Mapping[str, Any], component: build.Component, *, dtype: Any, seed: int = 0) -> nnx.Module:
    """A component of a config with fresh parameters; its ``train`` section says what its U-Net recomputes.

    Parameters are made on the host: a large model must not pass through a single device.
    """
    arguments = dict(config[component]["model"])
    remat = config[component].get("train", {}).get("remat", "none")
    if "unet" in arguments:
        arguments["unet"] = {**arguments["unet"], "remat": remat}
    with on_host():
        return build.build(component, arguments, dtype=dtype, rngs=nnx.Rngs(seed))


def load(source: pathlib.Path, component: build.Component, config: Mapping[str, Any], module: nnx.Module) -> None:
    """Fill a module from a weights folder; see :func:`check_architecture`."""
    check_architecture(source, component, config)
    folder.load(source, component, module)


def check_architecture(source: pathlib.Path, component: build.Component, config: Mapping[str, Any]) -> None:
    """Whether a weights folder has a component of the config's architecture.

    Raises:
      FileNotFoundError: the folder lacks the component.
      ValueError: it is of another architecture there.
    """
    folder.read(source, component)  # A folder that lacks it is no other architecture.
    there, here = ({str(component): {"model": c[component]["model"]}} for c in (folder.read_config(source), config))
    if different := settings_lib.differences(there, here):
        raise ValueError(
            f"the {component} in {source} is of another architecture: {different[0]}; choose the folder or the config "
            "to match"
        )


def on_host() -> contextlib.AbstractContextManager:
    """New arrays are made in the host's memory inside this context, if JAX was not told to leave the host alone."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def abstract(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes of a fresh state."""
    count = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState(count, params, params, jax.eval_shape(optimizer.init, params), count, count)


def like(params: Any, optimizer: optax.GradientTransformation, stored: TrainState) -> TrainState:
    """Shapes and shardings of a state, as restoring wants them."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), abstract(params, optimizer), stored
    )


def create(params: Any, optimizer: optax.GradientTransformation, stored: TrainState) -> TrainState:
    """The first state of a run, from parameters that are the same in every process; ``stored`` says where it lives."""
    params = place(params, stored.params)
    zero = np.zeros((), np.int32)
    step, skipped, in_a_row = place((zero, zero, zero), (stored.step, stored.skipped, stored.in_a_row))
    # One program: compiling a copy of every shape takes a GPU longer than reading the weights.
    start = jax.jit(
        lambda params: (jax.tree.map(jnp.copy, params), optimizer.init(params)),
        out_shardings=(stored.ema, stored.optimizer),
    )
    ema, moments = start(params)
    return TrainState(step, params, ema, moments, skipped, in_a_row)


def place(tree: Any, stored: Any) -> Any:
    """Arrays of the host, each device's part of them on that device."""

    def put(array, where):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(put, tree, stored)


def named(part: str):
    """A function from parameters to a mask of those whose path contains ``part``."""
    pattern = re.compile(rf"\b{re.escape(part)}\b")
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: bool(pattern.search(jax.tree_util.keystr(path, simple=True, separator="."))), params
    )
