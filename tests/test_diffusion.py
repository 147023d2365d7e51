"""Schedules, parameterizations and samplers, compared with values computed by hand and with exact solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax.diffusion import denoiser, samplers, schedules

GRIDS = [schedules.ddim_grid(20), schedules.karras_grid(20)]


def test_the_discrete_schedule_ends_as_in_stable_diffusion():
    variance = schedules.alphas_cumprod()
    np.testing.assert_allclose(variance[[0, -1]], [0.99915, 0.00466], rtol=2e-3)


def test_ddim_steps_of_the_release():
    np.testing.assert_array_equal(schedules.ddim_grid(4).time, [751, 501, 251, 1, 0])


def test_karras_noise_of_the_release():
    grid = schedules.karras_grid(4)
    noise = np.asarray(grid.sigma / grid.alpha)
    np.testing.assert_allclose(noise, [700.0, 70.54084, 2.26912, 0.002, 0.0], rtol=1e-4)


def test_edm_time_is_a_quarter_of_the_log_noise():
    np.testing.assert_allclose(schedules.karras_grid(4).time[:4], [1.63777, 1.06405, 0.20485, -1.55365], atol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
def test_levels_preserve_variance(grid):
    np.testing.assert_allclose(grid.alpha**2 + grid.sigma**2, 1, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_perfect_output_gives_back_the_clean_sample(prediction):
    clean, noise = jax.random.normal(jax.random.key(0), (2, 3, 5))
    level = schedules.discrete_levels(jnp.array([10, 500, 900]))
    output = denoiser.target(prediction, clean, noise, level)
    sample = denoiser.add_noise(clean, noise, level)
    np.testing.assert_allclose(denoiser.clean(prediction, output, sample, level), clean, atol=1e-4)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_level():
    table = schedules.zero_terminal_snr_alphas()
    assert table[-1] == 0
    assert table[0] == pytest.approx(schedules.alphas_cumprod()[0])


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_shift_multiplies_the_ratio_of_noise_to_signal(zero_terminal_snr):
    steps = jnp.array([0, 400, 900])
    ratio, shifted = (
        level.sigma / level.alpha
        for level in (schedules.discrete_levels(steps, zero_terminal_snr, shift) for shift in (1.0, 3.0))
    )
    np.testing.assert_allclose(shifted, 3 * ratio, rtol=1e-4)


def test_pure_noise_stays_pure_with_a_shift():
    assert float(schedules.ddim_grid(4, zero_terminal_snr=True, shift=2.0).alpha[0]) == 0


def test_steps_with_zero_terminal_snr_are_trailing():
    np.testing.assert_array_equal(schedules.ddim_grid(4, zero_terminal_snr=True).time, [999, 749, 499, 249, 0])


@pytest.mark.parametrize("order", [1, 2])
def test_sampling_from_pure_noise_finds_the_clean_sample(order):
    clean, noise = jnp.linspace(-1, 1, 5), jnp.ones(5)
    plan = samplers.plan(schedules.ddim_grid(4, zero_terminal_snr=True), order)
    last = samplers.advance(lambda sample, level: clean, samplers.begin(noise), plan)
    np.testing.assert_allclose(last.sample, clean, atol=0.05)


def test_min_snr_weight_of_epsilon_at_high_noise_is_one():
    level = schedules.discrete_levels(jnp.array([999]))
    assert float(denoiser.loss_weight("epsilon", level, 5.0)[0]) == pytest.approx(1)


def test_min_snr_weight_of_v_is_clipped():
    level = schedules.discrete_levels(jnp.array([0]))
    snr = float((level.alpha / level.sigma)[0] ** 2)
    assert float(denoiser.loss_weight("v", level, 5.0)[0]) == pytest.approx(5 / (snr + 1))


def test_without_gamma_all_levels_have_equal_weight():
    level = schedules.discrete_levels(jnp.array([0, 500, 999]))
    np.testing.assert_array_equal(denoiser.loss_weight("v", level, 0.0), 1)


def _sample(grid, order, noise):
    """Sample N(0.5, 0.2^2) with its exact denoiser."""

    def predict(sample, level):
        gain = level.alpha * 0.04 / (level.alpha**2 * 0.04 + level.sigma**2)
        return 0.5 + gain * (sample - level.alpha * 0.5)

    return samplers.advance(predict, samplers.begin(noise), samplers.plan(grid, order)).sample


def _exact(grid, noise):
    """Return the end of the probability-flow ODE, which maps quantiles of Gaussian data to quantiles."""
    first, last = grid[0], grid[-1]
    spread = [np.sqrt(level.alpha**2 * 0.04 + level.sigma**2) for level in (first, last)]
    return (noise - first.alpha * 0.5) / spread[0] * spread[1] + last.alpha * 0.5


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("grid", [schedules.ddim_grid(100), schedules.karras_grid(100)])
def test_samplers_solve_the_flow_of_gaussian_data(order, grid):
    noise = jnp.linspace(-2, 2, 9)
    np.testing.assert_allclose(_sample(grid, order, noise), _exact(grid, noise), atol=0.03)


@pytest.mark.parametrize("grid", [schedules.ddim_grid(20), schedules.karras_grid(20)])
def test_second_order_beats_first_at_equal_steps(grid):
    noise = jnp.linspace(-2, 2, 9)
    first, second = (np.abs(_sample(grid, order, noise) - _exact(grid, noise)).max() for order in (1, 2))
    assert second < 0.6 * first


def test_first_order_on_a_discrete_grid_is_ddim():
    grid, noise = schedules.ddim_grid(1), jnp.array([1.0])
    clean = jnp.array([0.3])
    result = samplers.advance(lambda sample, level: clean, samplers.begin(noise), samplers.plan(grid, 1)).sample
    implied_noise = (noise - grid.alpha[0] * clean) / grid.sigma[0]
    np.testing.assert_allclose(result, grid.alpha[1] * clean + grid.sigma[1] * implied_noise, rtol=1e-5)


def test_first_order_on_a_karras_grid_is_euler():
    grid, noise, clean = schedules.karras_grid(3), jnp.array([1.0]), jnp.array([0.3])
    result = samplers.advance(lambda sample, level: clean, samplers.begin(noise), samplers.plan(grid[:2], 1)).sample
    edm = np.asarray(grid.sigma / grid.alpha)
    x = noise / grid.alpha[0]
    euler = x + (edm[1] - edm[0]) * (x - clean) / edm[0]
    np.testing.assert_allclose(result / grid.alpha[1], euler, rtol=1e-4)


def test_a_plan_may_be_taken_in_parts():
    plan = samplers.plan(schedules.ddim_grid(6), 2)

    def predict(sample, level):
        return 0.5 * sample + 0.1

    noise = jnp.linspace(-1, 1, 5)
    whole = samplers.advance(predict, samplers.begin(noise), plan)
    parts = samplers.advance(predict, samplers.advance(predict, samplers.begin(noise), plan[:2]), plan[2:])
    np.testing.assert_allclose(whole.sample, parts.sample, rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 1000])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ValueError, match="sampling steps"):
        schedules.ddim_grid(steps)


@pytest.mark.parametrize("steps", [2, 7, 12, 50])
def test_all_parts_of_a_plan_have_one_length(steps):
    plan, taken, reported = samplers.plan(schedules.ddim_grid(steps), 1), [], []

    def take(state, part):
        taken.append(part)
        return state

    samplers.advance_in_parts(take, samplers.begin(jnp.zeros(1)), plan, reported.append)
    np.testing.assert_array_equal(jnp.concatenate([part.gain for part in taken]), plan.gain)
    assert reported == [reported[0]] * len(taken)


def call_recorded(calls):
    """A network whose output is its condition; keeps the sizes of its batches."""

    def network(sample, time, condition):
        calls.append(len(sample))
        assert time.shape == (len(sample),)
        return condition + 0 * sample

    return network


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)])
def test_guidance_moves_the_output_away_from_that_of_knowing_nothing(scale, expected):
    calls, level = [], schedules.ddim_grid(4)[0]
    known, nothing = jnp.full((2, 1), 3.0), jnp.full((2, 1), 1.0)
    found = denoiser.guided(call_recorded(calls), jnp.zeros((2, 1)), level, known, (nothing, scale))
    np.testing.assert_allclose(found, expected)
    assert calls == [4], "one call for both"


def test_without_guidance_the_network_is_called_for_the_condition_alone():
    calls = []
    found = denoiser.guided(call_recorded(calls), jnp.zeros((2, 1)), schedules.ddim_grid(4)[0], jnp.ones((2, 1)), None)
    assert calls == [2] and (found == 1).all()
