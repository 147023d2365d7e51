"""Schedules at their corners."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import cameras
from e3d_jax.reconstruction import fit, schedule


@pytest.mark.parametrize(
    ("progress", "everything"),
    [
        (0.0, False),
        (0.09, False),
        (0.1, True),
        (0.19, True),
        (0.2, False),
        (0.35, True),
        (0.45, False),
        (0.55, True),
        (0.65, False),
        (0.75, True),
        (0.95, False),
    ],
)
def test_views_of_a_progress(progress, everything):
    assert bool(schedule.uses_all_views(jnp.array(progress), fit.FitConfig.all_views)) == everything


@pytest.mark.parametrize(("switches", "everything"), [((), False), ((0.0,), True)])
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_view_schedule_can_be_switched_off(progress, switches, everything):
    assert bool(schedule.uses_all_views(jnp.array(progress), switches)) == everything


def test_levels_fade_in_one_after_another():
    weights = [schedule.level_weights(jnp.array(p), 4, first=2, until=0.5) for p in (0.0, 0.125, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(weights, [[1, 1, 0, 0], [1, 1, 0.5, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])


def test_learning_rate_is_constant_then_falls_to_a_tenth():
    rates = [float(schedule.learning_rate(jnp.array(p))) for p in (0.0, 0.1, 0.55, 1.0)]
    np.testing.assert_allclose(rates, [1, 1, 0.1**0.5, 0.1], rtol=1e-5)


def test_cosine_annealing_ends():
    assert float(schedule.cosine_annealing(jnp.array(0.25), until=0.5)) == pytest.approx(0.5)
    assert float(schedule.cosine_annealing(jnp.array(0.9), until=0.5)) == 1


def test_all_errors_count_at_first():
    assert float(schedule.kept_fraction(jnp.array(0.0), 0.8)) == 1
    assert float(schedule.kept_fraction(jnp.array(0.5), 0.8)) == pytest.approx(0.8)


def test_view_weights_of_the_ring():
    weights = np.asarray(schedule.view_weights(cameras.ring(8)))
    np.testing.assert_allclose(weights[[0, 16]], 1.0)
    np.testing.assert_allclose(weights[[4, 12, 20, 28]], 0.8)
    np.testing.assert_allclose(weights[[1, 31]], 0.2)
    np.testing.assert_allclose(weights[[2, 8, 24, 15, 17]], 0.3)
