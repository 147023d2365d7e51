"""Schedules of a fit, as functions of its progress in [0, 1].

The view schedule is Envision3D's coarse-to-fine sampling (arXiv 2403.08902, section 3.4): anchors shape the object, and
all views refine it in some intervals.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from e3d_jax import structs


def uses_all_views(progress: Float[Array, ""], switches: tuple[float, ...]) -> Bool[Array, ""]:
    """Return whether rays come from all views instead of from the anchors only.

    ``switches`` are increasing progress values: all views are used from the first on, only the anchors from the second
    on, and so on.
    """
    passed = [progress >= switch for switch in switches]
    return jnp.sum(jnp.array(passed, jnp.int32)) % 2 == 1


def level_weights(progress: Float[Array, ""], num_levels: int, *, first: int, until: float) -> Float[Array, " l"]:
    """Return weights in [0, 1] that fade feature grids in: ``first`` levels at the start, all from ``until`` on."""
    active = first + (num_levels - first) * jnp.clip(progress / until, 0, 1)
    return jnp.clip(active - jnp.arange(num_levels), 0, 1)


def learning_rate(progress: Float[Array, ""]) -> Float[Array, ""]:
    """Return the factor of the learning rates: 1 for a tenth of the fit, then decaying exponentially to 0.1."""
    return 0.1 ** jnp.clip((progress - 0.1) / 0.9, 0, 1)


def cosine_annealing(progress: Float[Array, ""], *, until: float) -> Float[Array, ""]:
    """Return the ratio in [0, 1] that :func:`e3d_jax.reconstruction.volume.annealed_slope` takes."""
    return jnp.clip(progress / until, 0, 1)


def kept_fraction(progress: Float[Array, ""], final: float) -> Float[Array, ""]:
    """Return the fraction of the errors that robust means keep: all at first, ``final`` from the middle on.

    With a small fraction from the start, rare colors would never be learned: they begin as the largest errors.
    """
    return 1 - (1 - final) * jnp.clip(2 * progress, 0, 1)


def view_weights(cameras: structs.Cameras) -> Float[jax.Array, " v"]:
    """Return the trust in each view by its azimuth from view 0.

    The front and the back count most, oblique views less, the rest least. The release's table: 1.0 for views 0 and 16
    of the ring, 0.8 for 4, 12, 20 and 28, 0.2 next to the front, otherwise 0.3.
    """
    position = np.asarray(cameras.world_from_cam)[:, :3, 3]
    azimuth = np.degrees(np.arctan2(position[:, 1], position[:, 0]))
    eighth = (azimuth - azimuth[0]) / 45 % 8
    # Views that are not at a multiple of 45 degrees lie between the anchors of the ring.
    between = np.abs(eighth - np.round(eighth)) > 0.05
    weights = np.array([1.0, 0.8, 0.3, 0.8, 1.0, 0.8, 0.3, 0.8])[np.round(eighth).astype(int) % 8]
    next_to_front = np.minimum(eighth, 8 - eighth) < 0.3
    return jnp.asarray(np.where(between, np.where(next_to_front, 0.2, 0.3), weights), jnp.float32)
