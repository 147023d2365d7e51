"""Kernel inception distance between two sets of images, given features of each image."""

import numpy as np
from jaxtyping import Float

from e3d_jax.evaluation import missing


def kid(pred: Float[np.ndarray, "n c"], gt: Float[np.ndarray, "m c"]) -> float:
    """Return the unbiased squared maximum mean discrepancy with a cubic kernel (Binkowski et al., ICLR 2018).

    Unbiased: the mean over equal distributions is 0, so it can be negative. It does not depend on the order of the
    images, and it depends on the features: reports name them.

    Raises:
      NotScored: there are fewer than two images in a set.
    """
    if min(len(pred), len(gt)) < 2:
        raise missing.NotScored("a distance between sets of images needs at least two images in each")
    pred, gt = np.asarray(pred, np.float64), np.asarray(gt, np.float64)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_others(a):
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(mean_of_others(pred) + mean_of_others(gt) - 2 * kernel(pred, gt).mean())
