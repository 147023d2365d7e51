"""Meaning of a network's output: epsilon and v prediction, their training targets and loss weights."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from e3d_jax.diffusion import schedules

Prediction = Literal["epsilon", "v"]


def expand(value: Shaped[Array, "*b"], like: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Append axes to ``value`` until it broadcasts against ``like``."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def add_noise(clean: Float[Array, "..."], noise: Float[Array, "..."], level: schedules.Levels) -> Float[Array, "..."]:
    """Return the sample at a level; the level's axes are the leading axes of the sample."""
    return expand(level.alpha, clean) * clean + expand(level.sigma, clean) * noise


def target(
    prediction: Prediction, clean: Float[Array, "..."], noise: Float[Array, "..."], level: schedules.Levels
) -> Float[Array, "..."]:
    """Return the target of training: the noise, or ``v = alpha * noise - sigma * clean`` (arXiv 2202.00512)."""
    if prediction == "epsilon":
        return noise
    return expand(level.alpha, clean) * noise - expand(level.sigma, clean) * clean


def clean(
    prediction: Prediction, output: Float[Array, "..."], sample: Float[Array, "..."], level: schedules.Levels
) -> Float[Array, "..."]:
    """Return the clean sample that a network's output implies; the inverse of :func:`target`.

    At a level without signal, predicted noise does not determine the clean sample; v prediction does at every level.
    """
    alpha, sigma = expand(level.alpha, sample), expand(level.sigma, sample)
    if prediction == "epsilon":
        return (sample - sigma * output) / alpha
    return alpha * sample - sigma * output


def loss_weight(prediction: Prediction, level: schedules.Levels, min_snr_gamma: float) -> Float[Array, "*b"]:
    """Return the weight of the squared error of a network's output at a level.

    ``min_snr_gamma`` is gamma of min-SNR weighting (arXiv 2303.09556, Sec. 3.4); 0 weights all levels equally, which
    for v prediction leaves more weight on the noisiest levels, where the layout of novel views is decided.
    """
    if not min_snr_gamma:
        return jnp.ones_like(level.alpha)
    snr = (level.alpha / level.sigma) ** 2
    clipped = jnp.minimum(snr, min_snr_gamma)
    return clipped / snr if prediction == "epsilon" else clipped / (snr + 1)
