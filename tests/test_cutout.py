"""Transparency that is not a cut-out, and shadows that are part of one."""

import warnings

import numpy as np
import pytest
from scipy import ndimage

from e3d_jax import cutout, images

SIZE = 96


def photo(shadow=0.0):
    """A red disc in front of white, perhaps with a soft shadow at its foot."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    dark = ndimage.gaussian_filter((((x - 48) / 30) ** 2 + ((y - 68) / 14) ** 2 < 1).astype(float), 6)
    rgb = np.repeat(1 - shadow * dark[..., None], 3, -1)
    disc = ((x - 48) ** 2 + (y - 48) ** 2 < 20**2)[..., None]
    rgba = np.concatenate([np.where(disc, (0.8, 0.2, 0.1), rgb), np.ones((SIZE, SIZE, 1))], -1)
    return rgba.astype(np.float32)


def share(rgba):
    return (images.matte(rgba)[..., 3] > 0.5).mean()


DISC = share(photo())


def corners(rgba, radius=8):
    """Cut a rounded rectangle out of a picture."""
    at = np.abs(np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2) - (SIZE / 2 - radius)
    rgba[np.hypot(*at.clip(0)) > radius, 3] = 0
    return rgba


def border(rgba):
    rgba[[0, -1], :, 3] = 0
    rgba[:, [0, -1], 3] = 0
    return rgba


def strip(rgba, margin=12):
    rgba[-margin:, :, 3] = 0
    return rgba


def letterbox(rgba):
    rgba[:12, :, 3] = 0
    return strip(rgba)


@pytest.mark.parametrize("cut", [corners, border, lambda rgba: border(corners(rgba)), strip, letterbox])
def test_corners_and_borders_are_not_a_matte(cut):
    with pytest.warns(UserWarning, match="transparent only at its corners or border"):
        assert share(cut(photo())) == pytest.approx(DISC, rel=0.02)


def test_a_rounded_photo_without_a_plain_background_is_refused():
    rgba = np.random.default_rng(0).random((SIZE, SIZE, 4), np.float32)
    rgba[..., 3] = 1
    with pytest.warns(UserWarning, match="corners"), pytest.raises(ValueError, match="background is not plain"):
        images.matte(corners(rgba))


def framed(rgba):
    rgba[:, :20, 3] = rgba[:, -20:, 3] = 0
    return letterbox(rgba)


@pytest.mark.parametrize("cut", [framed, lambda rgba: corners(rgba, SIZE / 2)])
def test_a_rectangle_with_a_margin_or_a_disc_is_an_object_with_a_warning(cut):
    rgba = cut(photo())
    with pytest.warns(UserWarning, match="if it is a photo of the object, crop it"):
        assert images.matte(rgba) is rgba


def test_a_soft_shadow_is_warned_of():
    with pytest.warns(UserWarning, match="of the cut-out, a gray and dim region at its foot, looks like a shadow"):
        images.matte(photo(shadow=0.5))


def test_a_soft_shadow_in_a_cut_out_is_warned_of():
    rgba = photo(shadow=0.9)
    gray = np.ptp(rgba[..., :3], axis=-1) < 0.1
    rgba[..., 3] = np.where(gray, 1 - rgba[..., 0], 1)
    rgba[gray, :3] = 0
    with pytest.warns(UserWarning, match="looks like a shadow"):
        images.matte(rgba)


def test_a_picture_without_a_shadow_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.matte(photo())


def test_a_gray_object_is_not_a_shadow():
    rgba = photo()
    red = np.ptp(rgba[..., :3], axis=-1) > 0.1
    y = np.mgrid[:SIZE, :SIZE][0]
    rgba[red, :3] = (0.7 - 0.4 * y[red] / SIZE)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.matte(rgba)


@pytest.mark.parametrize(
    ("rows", "columns", "cut"),
    [
        (slice(10, 50), slice(20, 40), False),
        (slice(10, 64), slice(20, 40), True),
        (slice(10, 50), slice(0, 40), True),
        (slice(0, 64), slice(0, 64), False),
    ],
    ids=["inside", "below", "left", "trimmed"],
)
def test_objects_that_go_on_beyond_the_border(rows, columns, cut):
    alpha = np.zeros((64, 64), np.float32)
    alpha[rows, columns] = 1
    assert cutout.is_cut_off(alpha) == cut


def test_a_touch_of_the_border_does_not_cut_an_object_off():
    alpha = np.zeros((64, 64), np.float32)
    alpha[10:63, 4:60] = alpha[63, 30:33] = 1
    assert not cutout.is_cut_off(alpha)
