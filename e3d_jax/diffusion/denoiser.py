"""Meaning of a network's output: epsilon and v prediction, their training targets and loss weights."""

from collections.abc import Callable
from typing import Any, Literal

import jax
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


def guided(
    call: Callable[[Array, Any, Any], Array], sample: Array, level: schedules.Levels, condition: Any, guidance: Any
) -> Float[Array, "b ..."]:
    """Return a network's output with classifier-free guidance (arXiv 2207.12598).

    Args:
      call: the network, a function of a noisy sample, time and condition, all with the batch as first axis.
      sample: noisy sample.
      level: its level, a scalar.
      condition: what the network knows.
      guidance: None for the output itself, otherwise the condition that stands for knowing nothing, and the scale by
        which the output is moved away from that of knowing nothing; both are computed in one call.
    """
    if guidance is None:
        return call(sample, jnp.full(len(sample), level.time), condition)
    nothing, scale = guidance
    twice = jax.tree.map(lambda *parts: jnp.concatenate(parts), (sample, condition), (sample, nothing))
    known, unknown = jnp.split(call(twice[0], jnp.full(2 * len(sample), level.time), twice[1]), 2)
    return unknown + scale * (known - unknown)


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
