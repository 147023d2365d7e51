"""Updates of kernels are orthogonal, whatever their gradients look like, and everything else follows Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax.training import muon
from e3d_jax.training import state as state_lib


def _singular_values(kernel):
    return np.linalg.svd(np.asarray(kernel).reshape(-1, kernel.shape[-1]), compute_uv=False)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (3, 3, 2, 7)])
def test_singular_values_come_close_to_one(shape):
    # Badly conditioned, as gradients are.
    gradient = jax.random.normal(jax.random.key(0), shape) * jnp.logspace(0, -1.5, shape[-1])
    (update,) = muon.orthogonal([gradient])
    rows, columns = np.prod(shape[:-1]), shape[-1]
    values = _singular_values(update) / (muon.RMS * np.sqrt(max(rows, columns)))
    assert values.min() > 0.6 and values.max() < 1.2


def test_directions_stay():
    u, _, v = np.linalg.svd(np.random.default_rng(0).normal(size=(6, 6)))
    (update,) = muon.orthogonal([jnp.asarray(u @ np.diag([1, 0.8, 0.5, 0.3, 0.2, 0.1]) @ v, jnp.float32)])
    across = u.T @ np.asarray(update) @ v.T
    np.testing.assert_allclose(across - np.diag(np.diag(across)), 0, atol=1e-3)
    assert (np.diag(across) > 0).all()


def test_kernels_of_one_shape_do_not_mix():
    shapes = {"a": (4, 6), "b": (2, 2, 6), "c": (4, 6)}
    kernels = {name: jax.random.normal(jax.random.key(ord(name)), shape) for name, shape in shapes.items()}
    together = muon.orthogonal(kernels)
    for name, kernel in kernels.items():
        np.testing.assert_allclose(together[name], muon.orthogonal([kernel])[0], atol=1e-5)


def _updates(name):
    params = nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Param)
    optimizer = state_lib.make_optimizer(config_lib.TrainSettings(steps=1, optimizer=name, weight_decay=0.0))
    gradients = jax.tree.map(lambda x: 0.01 * jax.random.normal(jax.random.key(x.ndim), x.shape), params)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_biases_follow_adam():
    adam, mixed = _updates("adamw"), _updates("muon")
    np.testing.assert_allclose(adam["bias"][...], mixed["bias"][...])
    whole, own = (_singular_values(updates["kernel"][...]) for updates in (mixed, adam))
    assert whole.min() > 0.6 * whole.max() and own.min() < 0.5 * own.max()


def test_momentum_outlasts_a_gradient():
    optimizer = muon.scale_by_muon()
    kernel = jax.random.normal(jax.random.key(0), (4, 4))
    first, state = optimizer.update(kernel, optimizer.init(kernel))
    second, _ = optimizer.update(jnp.zeros_like(kernel), state)
    np.testing.assert_allclose(second, first, atol=1e-4)
