"""What changes during a fit, as functions of its progress in [0, 1].

The view schedule is Envision3D's coarse-to-fine sampling (arXiv 2403.08902, section 3.4): anchors shape the object, and
in some intervals all views refine it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from e3d_jax import structs


def uses_all_views(progress: Float[Array, ""], switches: tuple[float, ...]) -> Bool[Array, ""]:
    """Whether rays are drawn from all views rather than from the anchors alone.

    ``switches`` are increasing: at the first all views come in, at the second they go, and so on.
    """
    passed = [progress >= switch for switch in switches]
    return jnp.sum(jnp.array(passed, jnp.int32)) % 2 == 1


def level_weights(progress: Float[Array, ""], num_levels: int, *, first: int, until: float) -> Float[Array, " l"]:
    """Weights in [0, 1] that fade feature grids in: ``first`` levels at the start, all of them from ``until`` on."""
    active = first + (num_levels - first) * jnp.clip(progress / until, 0, 1)
    return jnp.clip(active - jnp.arange(num_levels), 0, 1)


def learning_rate(progress: Float[Array, ""]) -> Float[Array, ""]:
    """Factor of the learning rates: 1 for a tenth of the fit, then exponentially down to 0.1."""
    return 0.1 ** jnp.clip((progress - 0.1) / 0.9, 0, 1)


def cosine_annealing(progress: Float[Array, ""], *, until: float) -> Float[Array, ""]:
    """Ratio in [0, 1] with which NeuS's alpha believes the slope of the distance along the ray."""
    return jnp.clip(progress / until, 0, 1)


def kept_fraction(progress: Float[Array, ""], final: float) -> Float[Array, ""]:
    """Share of the errors that robust means keep: all at first, ``final`` from the middle on.

    A share that is small from the start would never learn rare colours: they begin as the largest errors.
    """
    return 1 - (1 - final) * jnp.clip(2 * progress, 0, 1)


def view_weights(cameras: structs.Cameras) -> Float[jax.Array, " v"]:
    """Trust in each view by its azimuth from view 0: the front and the back most, oblique views next, the rest least.

    The release's table: 1.0 for views 0 and 16 of the ring, 0.8 for 4, 12, 20 and 28, 0.2 next to the front, else 0.3.
    """
    position = np.asarray(cameras.world_from_cam)[:, :3, 3]
    azimuth = np.degrees(np.arctan2(position[:, 1], position[:, 0]))
    eighth = (azimuth - azimuth[0]) / 45 % 8
    # Distance to the nearest multiple of 45 degrees: between the anchors of the ring.
    between = np.abs(eighth - np.round(eighth)) > 0.05
    weights = np.array([1.0, 0.8, 0.3, 0.8, 1.0, 0.8, 0.3, 0.8])[np.round(eighth).astype(int) % 8]
    next_to_front = np.minimum(eighth, 8 - eighth) < 0.3
    return jnp.asarray(np.where(between, np.where(next_to_front, 0.2, 0.3), weights), jnp.float32)
