"""How decoded views differ from the true ones, differentiably."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from e3d_jax.models import latents


def image_loss(
    autoencoder: Any,
    sampled: Float[Array, "b d v hl wl c"],
    true: Float[Array, "b d v h w 4"],
    index: Int[Array, " b"],
) -> Float[Array, ""]:
    """Compare one view of each object with the true one: L1, and one minus structural similarity.

    Compared are a color view over white and its normal map, with their silhouettes if the autoencoder has them.

    Args:
      autoencoder: frozen; the gradient passes through its decoder.
      sampled: scaled latents of all views.
      true: all views, in [0, 1].
      index: which view of each object.
    """
    choose = jax.vmap(lambda pair, view: pair[:, view])

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    expected = latents.network_image(choose(true, index), autoencoder.in_channels)
    decoded = autoencoder.decode(flat(choose(sampled, index)) / autoencoder.scaling_factor)
    pred, gt = decoded.astype(jnp.float32) / 2 + 0.5, flat(expected) / 2 + 0.5
    return jnp.abs(pred - gt).mean() + 1 - structural_similarity(pred, gt).mean()


def structural_similarity(pred: Float[Array, "b h w c"], gt: Float[Array, "b h w c"]) -> Float[Array, "b h-10 w-10 c"]:
    """Return the structural similarity of images in [0, 1] around every pixel five or more from the border.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4), 2004, with
    its Gaussian window (standard deviation 1.5 pixels); as :func:`e3d_jax.evaluation.metrics.ssim`, but not averaged,
    and differentiable.
    """
    kernel = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    rows, columns = (
        np.stack([np.convolve(row, kernel / kernel.sum(), "valid") for row in np.eye(size)], 1).astype(np.float32)
        for size in pred.shape[1:3]
    )

    def mean(x):
        # Variances are small differences of large numbers, hence full precision.
        return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")

    mean_pred, mean_gt = mean(pred), mean(gt)
    variances = mean(pred**2) - mean_pred**2 + mean(gt**2) - mean_gt**2
    covariance = mean(pred * gt) - mean_pred * mean_gt
    brightness = (2 * mean_pred * mean_gt + 0.01**2) / (mean_pred**2 + mean_gt**2 + 0.01**2)
    return brightness * (2 * covariance + 0.03**2) / (variances + 0.03**2)
