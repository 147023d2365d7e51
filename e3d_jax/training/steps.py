"""The train step that all stages share, and how a stage is assembled for it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e3d_jax import config as config_lib
from e3d_jax import stages
from e3d_jax.training import lora, sharding
from e3d_jax.training import state as state_lib

Metrics = dict[str, jax.Array]
# From (parameters in training, frozen arrays, batch, key) to the loss, and metrics that include it.
Objective = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A stage that is ready to train; with abstract modules, ready to be compiled.

    Attributes:
      graph: of the module in training, see :meth:`merge`.
      frozen_graphs: of the frozen components by role.
      params: initial values of what is trained: the module's parameters or, with LoRA, the matrices of
        :mod:`e3d_jax.training.lora`.
      frozen: arrays of the frozen components by role, and those of the module that are not trained: under ``base`` the
        parameters that LoRA changes, under ``rest`` the others.
      optimizer: see :func:`e3d_jax.training.state.make_optimizer`.
      objective: the loss as a function of parameters and frozen arrays as they are stored.
      stored: shardings of the state.
      frozen_stored: shardings of ``frozen``.
      train_step: see :func:`make_train_step`.
    """

    graph: nnx.GraphDef
    frozen_graphs: Mapping[str, nnx.GraphDef]
    params: Any
    frozen: Any
    optimizer: optax.GradientTransformation
    objective: Objective
    stored: state_lib.TrainState
    frozen_stored: Any
    train_step: Any

    def merge(self, params: Any, frozen: Any) -> nnx.Module:
        """Return the module with what is trained and what is not."""
        return nnx.merge(self.graph, parameters(params, frozen), frozen["rest"])


def parameters(params: Any, frozen: Any) -> Any:
    """Return the module's parameters in training, with the changes of LoRA if that is what is trained."""
    return lora.applied(frozen["base"], params) if "base" in frozen else params


def assemble(
    config: config_lib.SystemConfig,
    stage: str,
    model: nnx.Module,
    components: Mapping[str, nnx.Module],
    mesh: Mesh,
    dtype: Any,
) -> Assembly:
    """Put together the train step of a stage on a mesh.

    Args:
      config: of the system.
      stage: the component to train.
      model: its module.
      components: the frozen components by role (:attr:`e3d_jax.stages.base.Stage.needs`).
      mesh: see :func:`e3d_jax.training.sharding.make_mesh`.
      dtype: type of the computation.

    Raises:
      ValueError: ``freeze``, ``lora.layers`` or ``lr_multipliers`` name what does not exist.
    """
    component, train = config[stage], config.training(stage)
    if unknown := [name for name in train.freeze if not hasattr(model, name)]:
        raise ValueError(f"{stage}.train.freeze names {', '.join(unknown)}, which the {stage} does not have")
    graph, *states = nnx.split(model, state_lib.in_training(train.freeze), ...)
    frozen, frozen_graphs = {"rest": states[1]}, {}
    params: Any = states[0]
    if train.lora.rank:
        frozen["base"] = params
        params = lora.create(params, train.lora, config.system.seed)
    if unknown := [
        name for name in train.lr_multipliers if not any(jax.tree.leaves(state_lib.path_contains(name)(states[0])))
    ]:
        raise ValueError(
            f"{stage}.train.lr_multipliers names {', '.join(unknown)}, but no parameter of the {stage} in training has "
            "that in its path"
        )
    for role, module in components.items():
        frozen_graphs[role], frozen[role] = nnx.split(module)
    frozen = jax.tree.map(functools.partial(_compute_type, dtype), frozen)
    optimizer = state_lib.make_optimizer(train)
    stored = sharding.shardings(state_lib.abstract(params, optimizer), mesh, config.system.sharding)
    frozen_stored = sharding.shardings(frozen, mesh, config.system.sharding)
    loss = stages.get(stage).loss

    def objective(params, frozen, batch, key):
        frozen = sharding.gathered(frozen, dtype, frozen_stored)
        params = sharding.gathered(params, dtype, stored.params)
        model = nnx.merge(graph, parameters(params, frozen), frozen["rest"])
        modules = {role: nnx.merge(graph, frozen[role]) for role, graph in frozen_graphs.items()}
        result = loss(model, modules, batch, key, component, config.layout)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"the loss of the {stage} stage returned {type(result).__name__}; expected (loss, metrics)")
        value, metrics = result
        return value, {"loss": value, **metrics}

    train_step = make_train_step(
        objective,
        optimizer,
        stored,
        frozen_stored,
        ema_decay=train.ema_decay,
        grad_accum_steps=train.grad_accum_steps,
    )
    return Assembly(graph, frozen_graphs, params, frozen, optimizer, objective, stored, frozen_stored, train_step)


def ema_module(assembly: Assembly, state: state_lib.TrainState, frozen: Any) -> nnx.Module:
    """Return the module with its EMA parameters, whole in every process and rounded as weights folders keep them."""

    @functools.partial(jax.jit, out_shardings=NamedSharding(state.step.sharding.mesh, PartitionSpec()))
    def whole(ema, frozen):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), (parameters(ema, frozen), frozen["rest"]))

    own = {name: frozen[name] for name in ("base", "rest") if name in frozen}
    return nnx.merge(assembly.graph, *whole(state.ema, own))


def _compute_type(dtype: Any, array: Any) -> Any:
    """Cast a frozen kernel: it needs no more digits than the computation has."""
    if array.ndim < 2:
        return array
    abstract = isinstance(array, jax.ShapeDtypeStruct)
    return array.update(dtype=jnp.dtype(dtype)) if abstract else array.astype(dtype)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    stored: state_lib.TrainState,
    frozen_stored: Any,
    *,
    ema_decay: float,
    grad_accum_steps: int = 1,
):
    """Return the jitted step ``(state, frozen, batch, key, learning_rate) -> (state, metrics)`` on a mesh.

    Its result does not depend on the mesh, except for rounding: random numbers belong to an example's place in the
    batch. A step whose loss or gradient is not finite changes nothing but the counts. The learning rate is an argument,
    so that runs of other lengths and rates share one compiled program.

    Args:
      objective: the loss.
      optimizer: from gradients to updates, without the learning rate.
      stored: shardings of the state.
      frozen_stored: shardings of the frozen arrays.
      ema_decay: decay of the parameters' EMA, reached gradually.
      grad_accum_steps: parts that the batch is divided into and that are taken one after another, to save memory.
    """
    mesh = stored.step.mesh
    copied, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, sharding.BATCH)

    def gradients(params, frozen, batch, key):
        grads, metrics = jax.grad(objective, has_aux=True)(params, frozen, batch, key)
        return jax.lax.with_sharding_constraint(grads, stored.params), metrics

    def accumulated(params, frozen, batch, key):
        # Part m takes every grad_accum_steps-th example from the m-th on, so that a device's examples stay on it.
        parts = jax.tree.map(lambda x: x.reshape(-1, grad_accum_steps, *x.shape[1:]).swapaxes(0, 1), batch)
        keys = jax.random.split(key, grad_accum_steps)

        def add(total, part_and_key):
            part, key = part_and_key
            return jax.tree.map(jnp.add, total, gradients(params, frozen, part, key)), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients, params, frozen, first, keys[0])
        total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), (parts, keys))
        return jax.tree.map(lambda x: x / grad_accum_steps, total)

    def train_step(state: state_lib.TrainState, frozen, batch, key, learning_rate):
        compute = accumulated if grad_accum_steps > 1 else gradients
        grads, metrics = compute(state.params, frozen, batch, jax.random.fold_in(key, state.step))
        metrics["gradient_norm"] = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, state.params)
        params = jax.tree.map(lambda param, update: param - learning_rate * update, state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        before, after = (state.params, state.ema, state.optimizer_state), (params, ema, optimizer_state)
        params, ema, optimizer_state = jax.tree.map(functools.partial(jnp.where, good), after, before)
        counts = {
            "skipped": state.skipped + ~good,
            "consecutive_skips": jnp.where(good, 0, state.consecutive_skips + 1),
        }
        metrics |= counts
        return state_lib.TrainState(state.step + 1, params, ema, optimizer_state, **counts), metrics

    return jax.jit(
        train_step,
        in_shardings=(stored, frozen_stored, split, copied, copied),
        out_shardings=(stored, copied),
        donate_argnums=0,
    )
