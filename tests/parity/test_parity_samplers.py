"""Our samplers compared with diffusers' schedulers, configured as in exports, around one toy network."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax.diffusion import denoiser, samplers, schedules
from e3d_jax.weights import diffusers_defaults

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPES = [(2, 3, 4), (1, 5)]


def network(numbers, sample, time):
    return numbers.tanh(0.7 * sample + 0.1 * time)


def sample(noise, grid, prediction):
    def predict(x, level):
        return denoiser.clean(prediction, network(jnp, x, level.time), x, level)

    return samplers.advance(predict, samplers.begin(jnp.asarray(noise)), samplers.plan(grid, order=1)).sample


def reference(scheduler, noise, steps):
    scheduler.set_timesteps(steps)
    x = torch.tensor(noise) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        output = network(torch, scheduler.scale_model_input(x, time), float(time))
        x = scheduler.step(output, time, x).prev_sample
    return x.numpy()


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize(
    "prediction, name, changes",
    [("epsilon", "epsilon", {}), ("v", "v_prediction", {}), ("v", "v_prediction", ZERO_SNR)],
)
def test_ddim(shape, steps, prediction, name, changes):
    noise = np.random.default_rng(steps).standard_normal(shape, np.float32)
    config = diffusers_defaults.SCHEDULERS["anchor"] | {"prediction_type": name} | changes
    got = sample(noise, schedules.ddim_grid(steps, bool(changes)), prediction)
    expected = reference(diffusers.DDIMScheduler.from_config(config), noise, steps)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [2, 4, 50])
def test_euler(shape, steps):
    noise = np.random.default_rng(steps).standard_normal(shape, np.float32)
    scheduler = diffusers.EulerDiscreteScheduler.from_config(diffusers_defaults.SCHEDULERS["interpolation"])
    got = sample(noise, schedules.karras_grid(steps), "v")
    expected = reference(scheduler, noise, steps)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
