"""A step learns alike on any number of devices and of parts, and survives what is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax.training import sharding, steps
from e3d_jax.training import state as state_lib


class Line(nnx.Module):
    """y = w x + b, as small as a model gets."""

    def __init__(self):
        self.weight, self.bias = nnx.Param(jnp.zeros(())), nnx.Param(jnp.ones(()))

    def __call__(self, x):
        return self.weight[...] * x + self.bias[...]


def _line_objective(graph):
    def objective(params, frozen, batch, key):
        model = nnx.merge(graph, params)
        loss = ((model(batch["x"]) - 3.0 * batch["x"]) ** 2).mean()
        return loss, {"loss": loss}

    return objective


def _line_step(devices: int, grad_accum_steps: int = 1, ema_decay: float = 0.5):
    graph, params = nnx.split(Line(), nnx.Param)
    optimizer = optax.identity()
    mesh = sharding.make_mesh(config_lib.MeshSettings(), jax.devices()[:devices])
    stored = sharding.shardings(state_lib.abstract(params, optimizer), mesh, ())
    step = steps.make_train_step(
        _line_objective(graph), optimizer, stored, {}, ema_decay=ema_decay, grad_accum_steps=grad_accum_steps
    )
    return state_lib.create(params, optimizer, stored), step


def _after(devices: int, count: int, x=(0, 1, 2, 3), **settings):
    state, step = _line_step(devices, **settings)
    for _ in range(count):
        state, metrics = step(state, {}, {"x": np.array(x, np.float32)}, jax.random.key(0), 0.05)
    return state, metrics


def test_a_step_follows_the_gradient():
    state, _ = _after(devices=1, count=1)
    # loss = mean((b - 3 x)^2) at w = 0, b = 1; dw = 2 mean(x (1 - 3 x)) = -18, db = 2 mean(1 - 3 x) = -7
    np.testing.assert_allclose([state.params["weight"][...], state.params["bias"][...]], [0.9, 1.35], rtol=1e-5)


def test_the_ema_follows_the_parameters():
    state, _ = _after(devices=1, count=1)
    np.testing.assert_allclose(state.ema["weight"][...], 0.9 * 0.9, rtol=1e-5)  # decay 1 / 10 at the first step


def test_more_devices_give_the_same_step():
    one, four = (_after(devices, 3)[0] for devices in (1, 4))
    np.testing.assert_allclose(one.params["weight"][...], four.params["weight"][...], rtol=1e-5)


def test_a_batch_in_parts_gives_the_same_step():
    whole, parts = (_after(devices=2, count=3, grad_accum_steps=parts) for parts in (1, 2))
    np.testing.assert_allclose(whole[0].params["weight"][...], parts[0].params["weight"][...], rtol=1e-5)
    np.testing.assert_allclose(whole[1]["loss"], parts[1]["loss"], rtol=1e-5)


def test_a_step_that_is_not_finite_changes_only_the_counts():
    state, metrics = _after(devices=1, count=3, x=(1, np.nan))
    assert (state.params["weight"][...], state.ema["bias"][...], state.step) == (0, 1, 3)
    assert (metrics["skipped"], metrics["consecutive_skips"]) == (3, 3)


def test_a_finite_step_ends_consecutive_skips():
    state, step = _line_step(1)
    for x in (np.nan, np.nan, 1.0):
        state, metrics = step(state, {}, {"x": np.full(2, x, np.float32)}, jax.random.key(0), 0.05)
    assert (metrics["skipped"], metrics["consecutive_skips"]) == (2, 0)


def test_many_steps_reduce_the_loss():
    assert _after(devices=1, count=50)[1]["loss"] < 0.1
