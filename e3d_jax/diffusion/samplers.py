"""Deterministic samplers: one scan over a grid of noise levels.

A sampler takes ``predict(sample, level) -> clean`` (see :func:`e3d_jax.diffusion.denoiser.clean`), never a network.
In terms of the predicted clean sample, DDIM with eta = 0 (arXiv 2010.02502, Eq. 12), an Euler step of the
probability-flow ODE (arXiv 2206.00364, Alg. 1) and a first-order step of DPM-Solver++ (arXiv 2211.01095) are one
update, and DPM-Solver++(2M) adds a term with the previous prediction. So there is one loop; DDIM, Euler and
DPM-Solver++(2M) differ only in the grid and the order.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3d_jax.diffusion import schedules

Predict = Callable[[jax.Array, schedules.Levels], jax.Array]

# Maximum steps per dispatch: few enough for a progress bar, enough for the device not to wait for the host.
CHUNK = 5
ORDERS = {"ddim": 1, "euler": 1, "dpm_solver": 2}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """Coefficients of n steps: ``sample = keep * sample + gain * (clean + history * (clean - previous clean))``.

    Inside the scan it describes one step, without the axis.
    """

    level: schedules.Levels
    keep: Float[Array, "*n"]
    gain: Float[Array, "*n"]
    history: Float[Array, "*n"]

    def __len__(self) -> int:
        return self.keep.shape[0]

    def __getitem__(self, index) -> "Plan":
        """Return a part of the plan, to advance in several calls."""
        return jax.tree.map(lambda leaf: leaf[index], self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """State of sampling: the noisy sample, and the last prediction of the clean one."""

    sample: Float[Array, "..."]
    clean: Float[Array, "..."]


def plan(grid: schedules.Levels, order: int) -> Plan:
    """Return the steps along a grid of n + 1 levels.

    Args:
      grid: :func:`~e3d_jax.diffusion.schedules.ddim_grid` or :func:`~e3d_jax.diffusion.schedules.karras_grid`.
      order: 1 is DDIM on the former and Euler on the latter; 2 is DPM-Solver++(2M) (arXiv 2211.01095, Alg. 2), whose
        first step, and last step if it ends at a clean level, are of first order, as the paper recommends for few
        steps.
    """
    here, there = grid[:-1], grid[1:]
    keep = there.sigma / here.sigma
    # Widths of the steps in half log signal-to-noise; the one to a clean level is infinite and not used.
    half_snr = jnp.log(grid.alpha) - jnp.log(jnp.maximum(grid.sigma, 1e-20))
    width = jnp.diff(half_snr)
    previous = jnp.concatenate([width[:1], width[:-1]])
    second = (order == 2) & (jnp.arange(len(width)) > 0) & (there.sigma > 0)
    history = jnp.where(second, width / (2 * previous), 0.0)
    return Plan(here, keep, there.alpha - keep * here.alpha, history)


def begin(noise: Float[Array, "..."]) -> Progress:
    """Return the state before the first step, from unit noise."""
    return Progress(noise, jnp.zeros_like(noise))


def advance(predict: Predict, progress: Progress, plan: Plan) -> Progress:
    """Take the steps of a plan, or of a part of it."""

    def step(progress, now):
        clean = predict(progress.sample, now.level)
        data = clean + now.history * (clean - progress.clean)
        return Progress(now.keep * progress.sample + now.gain * data, clean), None

    return jax.lax.scan(step, progress, plan)[0]


def advance_in_parts(
    take: Callable[[Progress, Plan], Progress], progress: Progress, plan: Plan, report: Callable[[int], object]
) -> Progress:
    """Take the steps of a plan a few at a time, always the same number so that ``take`` is compiled once.

    Args:
      take: a compiled :func:`advance` with its denoiser bound.
      progress: the state to start from.
      plan: all steps, at least one.
      report: called with the number of steps after each part.
    """
    chunk = max(size for size in range(1, CHUNK + 1) if len(plan) % size == 0)
    for start in range(0, len(plan), chunk):
        # Dispatched before the host waits for the previous part, so that the device does not pause.
        following = take(progress, plan[start : start + chunk])
        if start:
            jax.block_until_ready(progress)
            report(chunk)
        progress = following
    jax.block_until_ready(progress)
    report(chunk)
    return progress
