"""Schedules at their corner points."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import cameras
from e3d_jax.reconstruction import config
from e3d_jax.reconstruction import fit_schedules as schedules


@pytest.mark.parametrize(
    ("progress", "all_views"),
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
def test_rays_come_from_all_views_in_some_intervals(progress, all_views):
    assert bool(schedules.uses_all_views(jnp.array(progress), config.VIEW_SCHEDULES["coarse_to_fine"])) == all_views


@pytest.mark.parametrize(("switches", "all_views"), [((), False), ((0.0,), True)])
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_the_view_schedule_can_be_turned_off(progress, switches, all_views):
    assert bool(schedules.uses_all_views(jnp.array(progress), switches)) == all_views


def test_levels_fade_in_one_after_another():
    weights = [schedules.level_weights(jnp.array(p), 4, first=2, until=0.5) for p in (0.0, 0.125, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(weights, [[1, 1, 0, 0], [1, 1, 0.5, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])


def test_learning_rate_is_constant_then_falls_to_a_tenth():
    rates = [float(schedules.learning_rate(jnp.array(p))) for p in (0.0, 0.1, 0.55, 1.0)]
    np.testing.assert_allclose(rates, [1, 1, 0.1**0.5, 0.1], rtol=1e-5)


def test_cosine_annealing_ends():
    assert float(schedules.cosine_annealing(jnp.array(0.25), until=0.5)) == pytest.approx(0.5)
    assert float(schedules.cosine_annealing(jnp.array(0.9), until=0.5)) == 1


def test_all_errors_count_at_first():
    assert float(schedules.kept_fraction(jnp.array(0.0), 0.8)) == 1
    assert float(schedules.kept_fraction(jnp.array(0.5), 0.8)) == pytest.approx(0.8)


def test_view_weights_of_the_ring():
    weights = np.asarray(schedules.view_weights(cameras.ring(8)))
    np.testing.assert_allclose(weights[[0, 16]], 1.0)
    np.testing.assert_allclose(weights[[4, 12, 20, 28]], 0.8)
    np.testing.assert_allclose(weights[[1, 31]], 0.2)
    np.testing.assert_allclose(weights[[2, 8, 24, 15, 17]], 0.3)
