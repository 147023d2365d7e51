"""Noise levels: the discrete schedule of Stable Diffusion and the Karras grid of Stable Video Diffusion.

Every level is written in variance-preserving form, ``x_t = alpha * x_0 + sigma * noise`` with
``alpha**2 + sigma**2 == 1``. An EDM level of noise ``s`` (``x = x_0 + s * noise``) takes this form when the sample is
scaled by ``1 / sqrt(s**2 + 1)``, which is also the scaling that its network expects of its input. Networks and samplers
therefore work with one kind of level for both schedules.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NUM_TRAIN_STEPS = 1000


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Levels:
    """Noise levels, from most to least noise when they form a sampling grid.

    Attributes:
      alpha: scale of the clean signal.
      sigma: scale of the unit noise; ``alpha**2 + sigma**2 == 1``.
      time: the level as an input of the network.
    """

    alpha: Float[Array, "*n"]
    sigma: Float[Array, "*n"]
    time: Float[Array, "*n"]

    def __getitem__(self, index) -> "Levels":
        return jax.tree.map(lambda leaf: leaf[index], self)


def alphas_cumprod(beta_start: float = 0.00085, beta_end: float = 0.012) -> Float[np.ndarray, " 1000"]:
    """Return the signal variance of the 1000 steps of Stable Diffusion's scaled-linear schedule (arXiv 2112.10752)."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, NUM_TRAIN_STEPS, dtype=np.float64) ** 2
    return np.cumprod(1.0 - betas)


def zero_terminal_snr_alphas() -> Float[np.ndarray, " 1000"]:
    """Return that schedule, shifted and scaled so that its last step is pure noise (arXiv 2305.08891, Alg. 1).

    Sampling starts from pure noise, on which the released schedule does not train: its last step still shows the mean
    of an image, which few-step samplers then miss.
    """
    alpha = np.sqrt(alphas_cumprod())
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def discrete_levels(steps: Int[Array, "*n"], zero_terminal_snr: bool = False, shift: float = 1.0) -> Levels:
    """Return the levels of training steps in [0, 999] of the discrete schedule.

    Args:
      steps: numbers of the levels.
      zero_terminal_snr: see :func:`zero_terminal_snr_alphas`.
      shift: factor of the ratio of noise to signal at every level (arXiv 2301.11093, Eq. 4).
    """
    table = zero_terminal_snr_alphas() if zero_terminal_snr else alphas_cumprod()
    shifted = table / (table + shift**2 * (1 - table))
    variance = jnp.asarray(shifted, jnp.float32)[steps]
    return Levels(alpha=jnp.sqrt(variance), sigma=jnp.sqrt(1 - variance), time=jnp.asarray(steps, jnp.float32))


def edm_levels(noise: Float[Array, "*n"]) -> Levels:
    """Return the levels of EDM noise (arXiv 2206.00364); ``time`` is ``ln(noise) / 4``. Noise 0 is the clean level."""
    scale = jax.lax.rsqrt(noise**2 + 1)
    time = 0.25 * jnp.log(jnp.where(noise > 0, noise, 1.0))
    return Levels(alpha=scale, sigma=noise * scale, time=time)


def ddim_grid(num_steps: int, zero_terminal_snr: bool = False, shift: float = 1.0) -> Levels:
    """Return the ``num_steps + 1`` levels of DDIM, down to the schedule's first level.

    As released: leading spacing, offset 1. With ``zero_terminal_snr``: trailing spacing, which starts at pure noise
    (arXiv 2305.08891, Sec. 3.3). ``shift`` as in :func:`discrete_levels`.

    Raises:
      ValueError: ``num_steps`` is not in [1, 999].
    """
    _check_steps(num_steps)
    if zero_terminal_snr:
        steps = np.round(np.arange(num_steps, 0, -1) * (NUM_TRAIN_STEPS / num_steps)).astype(int) - 1
    else:
        steps = np.arange(num_steps)[::-1] * (NUM_TRAIN_STEPS // num_steps) + 1
    return discrete_levels(jnp.asarray(np.append(steps, 0)), zero_terminal_snr, shift)


def karras_grid(num_steps: int, noise_min: float = 0.002, noise_max: float = 700.0, rho: float = 7.0) -> Levels:
    """Return the ``num_steps + 1`` levels of Karras et al. (arXiv 2206.00364, Eq. 5), ending at the clean level.

    Raises:
      ValueError: ``num_steps`` is not in [1, 999].
    """
    _check_steps(num_steps)
    ramp = np.linspace(0, 1, num_steps)
    noise = (noise_max ** (1 / rho) + ramp * (noise_min ** (1 / rho) - noise_max ** (1 / rho))) ** rho
    return edm_levels(jnp.asarray(np.append(noise, 0.0), jnp.float32))


def _check_steps(num_steps: int) -> None:
    if not 1 <= num_steps < NUM_TRAIN_STEPS:
        raise ValueError(f"the number of sampling steps is {num_steps}; expected 1 to {NUM_TRAIN_STEPS - 1}")
