"""How sharp an image is, relative to the ground truth: its gradients, and the outline of its silhouette."""

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from e3d_jax import images, structs
from e3d_jax.evaluation import missing

# Of a hard outline that is not antialiased, in pixels; narrower ones count as this wide.
MIN_WIDTH = 0.5


def sharpness(pred: Float[structs.ArrayLike, "h w 4"], gt: Float[structs.ArrayLike, "h w 4"]) -> float:
    """Return the gradient energy of the object relative to that of the truth; 1 is right.

    The energy is the sum of the squared differences of neighboring colors over white, over the pixels within two pixels
    of either silhouette: a sharp guess of another shape is as sharp as the truth. Blur and the mean of several
    plausible images lower it, noise raises it.

    Raises:
      NotScored: the truth has no gradient there.
    """
    if min(gt.shape[:2]) < 2:
        raise missing.NotScored("images of one row or column have no gradient")
    shown = (np.asarray(pred)[..., 3] > 0.5) | (np.asarray(gt)[..., 3] > 0.5)
    mask = ndimage.binary_dilation(shown, np.ones((5, 5), bool))
    energies = [_energy(np.asarray(images.composite(rgba), np.float64))[mask].sum() for rgba in (pred, gt)]
    if not energies[1] > 0:
        raise missing.NotScored("the true view shows no object with a gradient, so sharpness is not defined")
    return float(energies[0] / energies[1])


def _energy(image: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w"]:
    """Return the squared length of the gradient, by central differences, summed over the channels."""
    return sum((np.gradient(image, axis=axis) ** 2).sum(-1) for axis in (0, 1))


def edge_width(pred: Float[structs.ArrayLike, "h w"], gt: Float[structs.ArrayLike, "h w"]) -> float:
    """Return the width of the outline of a silhouette relative to that of the truth; 1 is right, a halo is more.

    Args:
      pred: alpha of the prediction.
      gt: alpha of the truth.

    Raises:
      NotScored: a silhouette has no outline.
    """
    return edge_width_px(pred) / edge_width_px(gt)


def edge_width_px(alpha: Float[structs.ArrayLike, "h w"]) -> float:
    """Return the mean width in pixels of the band in which alpha rises from 0 to 1, at least :data:`MIN_WIDTH`.

    Across a straight ramp of width w, alpha (1 - alpha) integrates to w / 6, and the length of the gradient of alpha to
    1. The width is therefore six times the ratio of their sums. Neither depends on where the outline runs; blur widens
    the ramp but does not change the second sum.

    Raises:
      NotScored: the silhouette has no outline.
    """
    alpha = np.asarray(alpha, np.float64)
    length = np.hypot(*np.gradient(alpha)).sum()
    if not length > 0:
        raise missing.NotScored("the silhouette has no outline, so its edge width is not defined")
    return max(float(6 * (alpha * (1 - alpha)).sum() / length), MIN_WIDTH)
