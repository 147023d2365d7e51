"""The train step that all stages share, and what it is put together from."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e3d_jax.training import losses, sharding
from e3d_jax.training import state as state_lib

# (parameters in training, frozen arrays, batch, key) to the loss, and metrics that include it.
Objective = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, losses.Metrics]]


@dataclasses.dataclass(frozen=True)
class Assembly:
    """A stage ready to train, or with abstract modules ready to be compiled.

    Attributes:
      graph: of the module in training; merge it with parameters and ``frozen["rest"]``.
      frozen_graphs: of the frozen components, by role.
      params: the module's parameters in training, as they start.
      frozen: arrays of the frozen components, by role, and under ``rest`` what of the module is not trained.
      optimizer: see :func:`e3d_jax.training.state.make_optimizer`.
      objective: the loss of parameters and frozen arrays as they are stored.
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


def assemble(
    config: Mapping[str, Any],
    stage: str,
    model: nnx.Module,
    components: Mapping[Any, nnx.Module],
    mesh: Mesh,
    dtype: Any,
) -> Assembly:
    """The train step of a config's stage on a mesh.

    Args:
      config: a whole system's.
      stage: the component to train.
      model: its module.
      components: the frozen components by role (:data:`e3d_jax.training.losses.NEEDS`).
      mesh: see :func:`e3d_jax.training.sharding.make_mesh`.
      dtype: type of the computation.

    Raises:
      ValueError: what is not to be trained, or to be trained faster, does not exist.
    """
    training = config[stage]["train"]
    if unknown := [name for name in training["freeze"] if not hasattr(model, name)]:
        raise ValueError(f"{stage}.train.freeze names {', '.join(unknown)}, which the {stage} does not have")
    graph, *states = nnx.split(model, state_lib.in_training(training["freeze"]), ...)
    params, rest = states
    if unknown := [name for name in training["faster"] if not any(jax.tree.leaves(state_lib.named(name)(params)))]:
        raise ValueError(f"{stage}.train.faster names {', '.join(unknown)}, of which the {stage} trains nothing")
    frozen, frozen_graphs = {"rest": rest}, {}
    for role, module in components.items():
        frozen_graphs[role], frozen[role] = nnx.split(module)
    frozen = jax.tree.map(functools.partial(_compute_type, dtype), frozen)
    optimizer = state_lib.make_optimizer(training)
    stored = sharding.shardings(state_lib.abstract(params, optimizer), mesh, config["sharding"])
    frozen_stored = sharding.shardings(frozen, mesh, config["sharding"])
    loss = functools.partial(losses.LOSSES[stage], **config[stage]["loss"])

    def objective(params, frozen, batch, key):
        frozen = sharding.gathered(frozen, dtype, frozen_stored)
        model = nnx.merge(graph, sharding.gathered(params, dtype, stored.params), frozen["rest"])
        modules = {name: nnx.merge(graph, frozen[name]) for name, graph in frozen_graphs.items()}
        value, metrics = loss(model, modules, batch, key)
        return value, {"loss": value, **metrics}

    train_step = make_train_step(
        objective, optimizer, stored, frozen_stored, ema=training["ema"], accumulate=training["accumulate"]
    )
    return Assembly(graph, frozen_graphs, params, frozen, optimizer, objective, stored, frozen_stored, train_step)


def averaged(assembly: Assembly, state: state_lib.TrainState, frozen: Any) -> nnx.Module:
    """The module with its averaged parameters, whole in every process and rounded as weights folders keep them."""

    @functools.partial(jax.jit, out_shardings=NamedSharding(state.step.sharding.mesh, PartitionSpec()))
    def whole(tree):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    return nnx.merge(assembly.graph, *whole((state.ema, frozen["rest"])))


def _compute_type(dtype: Any, array: Any) -> Any:
    """A frozen kernel needs no more digits than the computation."""
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
    ema: float,
    accumulate: int = 1,
):
    """The jitted update ``(state, frozen, batch, key, rate) -> (state, metrics)`` on a mesh.

    Its result does not depend on the mesh, rounding aside: random numbers belong to the place of an example in the
    batch. An update whose loss or gradient is not finite changes nothing but the counts. The learning rate is an
    argument, so that runs of other lengths and rates share one compiled program.

    Args:
      objective: the loss.
      optimizer: gradients to updates, before the learning rate.
      stored: shardings of the state.
      frozen_stored: shardings of the frozen arrays.
      ema: decay of the moving average of the parameters, reached gradually.
      accumulate: the batch is taken in so many parts one after another, to save memory.
    """
    mesh = stored.step.mesh
    copied, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, sharding.BATCH)

    def gradients(params, frozen, batch, key):
        grads, metrics = jax.grad(objective, has_aux=True)(params, frozen, batch, key)
        return jax.lax.with_sharding_constraint(grads, stored.params), metrics

    def accumulated(params, frozen, batch, key):
        # Part m takes every accumulate-th example, so that a device's examples stay on it.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        one = lambda part, key: gradients(params, frozen, part, key)  # noqa: E731
        keys = jax.random.split(key, accumulate)
        total = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts), keys[0])
        )
        add = lambda total, inputs: (jax.tree.map(jnp.add, total, one(*inputs)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, total, (parts, keys))
        return jax.tree.map(lambda x: x / accumulate, total)

    def train_step(state: state_lib.TrainState, frozen, batch, key, rate):
        compute = accumulated if accumulate > 1 else gradients
        grads, metrics = compute(state.params, frozen, batch, jax.random.fold_in(key, state.step))
        metrics["gradient_norm"] = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda param, update: param - rate * update, state.params, updates)
        decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        before, after = (state.params, state.ema, state.optimizer), (params, average, moments)
        params, average, moments = jax.tree.map(functools.partial(jnp.where, good), after, before)
        in_a_row = jnp.where(good, 0, state.in_a_row + 1)
        metrics |= {"skipped": state.skipped + ~good, "skipped_in_a_row": in_a_row}
        return state_lib.TrainState(state.step + 1, params, average, moments, metrics["skipped"], in_a_row), metrics

    return jax.jit(
        train_step,
        in_shardings=(stored, frozen_stored, split, copied, copied),
        out_shardings=(stored, copied),
        donate_argnums=0,
    )
