"""Sliced Wasserstein distance between the patches of two images, on a Laplacian pyramid (Karras et al., ICLR 2018)."""

import functools

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from e3d_jax import images, structs
from e3d_jax.evaluation import missing

PATCH = 7  # side of a patch in pixels
PATCHES = 512  # per level, at most
DIRECTIONS = 64
MIN_SIDE = 16  # of the coarsest level
_KERNEL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def sliced_wasserstein(pred: Float[structs.ArrayLike, "h w 4"], gt: Float[structs.ArrayLike, "h w 4"]) -> float:
    """Return the distance between the distributions of patches, mean over the levels; 0 for equal images.

    Images are compared over white, at three levels or as many as leave 16 px. Patches lie around the two silhouettes,
    at the same places in both images. Colors are in units of the standard deviation of the true patches of a level:
    0.8 is the distance of a plain image from Gaussian noise. Where patches lie does not count, only which there are:
    a shift scores well, a missing texture does not.

    Raises:
      NotScored: neither image shows an object, or they are too small.
    """
    shown = (np.asarray(pred)[..., 3] > 0.5) | (np.asarray(gt)[..., 3] > 0.5)
    if not shown.any():
        raise missing.NotScored("neither view shows an object, so there are no patches to compare")
    if min(shown.shape) < MIN_SIDE:
        raise missing.NotScored(f"views of {shown.shape[1]} x {shown.shape[0]} px have too few patches to compare")
    pyramids = [_pyramid(np.asarray(images.composite(rgba), np.float32)) for rgba in (pred, gt)]
    distances = []
    for level, (a, b) in enumerate(zip(*pyramids, strict=True)):
        rows, columns = _places(shown[:: 2**level, :: 2**level])
        a, b = (_patches(image, rows, columns) for image in (a, b))
        mean, spread = b.mean((0, 1)), np.maximum(b.std((0, 1)), 1 / 255)
        a, b = (((x - mean) / spread).reshape(len(x), -1) for x in (a, b))
        a, b = (np.sort(_directions(x.shape[1]) @ x.T, axis=-1) for x in (a, b))
        distances.append(np.abs(a - b).mean())
    return float(np.mean(distances))


@functools.cache
def _directions(size: int) -> Float[np.ndarray, "n {size}"]:
    """Return unit vectors; always the same ones."""
    vectors = np.random.default_rng(0).standard_normal((DIRECTIONS, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _smooth(image: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        image = ndimage.correlate1d(image, _KERNEL, axis, mode="reflect")
    return image


def _pyramid(image: Float[np.ndarray, "h w c"]) -> list[Float[np.ndarray, "k l c"]]:
    """Return the band-pass levels from fine to coarse; the last one is the low-pass rest."""
    levels: list[np.ndarray] = []
    while len(levels) < 2 and min(image.shape[:2]) >= 2 * MIN_SIDE:
        small = _smooth(image)[::2, ::2]
        spread = np.zeros_like(image)
        spread[::2, ::2] = 4 * small
        levels.append(image - _smooth(spread))
        image = small
    return [*levels, image]


def _places(shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the upper left corners of patches that touch the silhouettes, thinned out evenly."""
    height, width = (length - PATCH + 1 for length in shown.shape)
    near = ndimage.maximum_filter(shown, PATCH)[PATCH // 2 :, PATCH // 2 :][:height, :width]
    rows, columns = np.nonzero(near)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(PATCHES, len(rows))).astype(int))
    return rows[chosen], columns[chosen]


def _patches(image: Float[np.ndarray, "h w c"], rows: np.ndarray, columns: np.ndarray) -> Float[np.ndarray, "n p c"]:
    windows = np.lib.stride_tricks.sliding_window_view(image, (PATCH, PATCH), (0, 1))
    return np.moveaxis(windows[rows, columns], 1, -1).reshape(len(rows), PATCH**2, -1)
