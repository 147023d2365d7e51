"""What the transparency of a picture means: a whole object that is cut out, or something else."""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

# A frame is thinner than this, as a fraction of the shorter side.
FRAME = 0.03
# Corners are smaller than this, as a fraction of the shorter side of the opaque region.
CORNER = 0.2
# A shadow covers at least this fraction of the object and its colors differ less than this from gray.
SHADOW, GRAY = 0.06, 0.06
# An object is cut off by a side of the picture along at least this fraction of its own extent.
CUT = 0.1


def opaque_frame(alpha: Float[np.ndarray, "h w"]) -> tuple[slice, slice] | None:
    """Return the rows and columns of a picture of which only corners or borders are transparent; else None.

    Such transparency comes from windows, frames, and rounded or padded photos, not from cutting out an object. The rest
    reaches at least two sides of the picture.
    """
    solid = alpha >= 0.5
    if not solid.any():
        return None
    box, sides = _box(solid)
    return box if sides >= 2 and _is_rectangle(solid[box]) else None


def looks_like_photo(alpha: Float[np.ndarray, "h w"]) -> bool:
    """Return whether the opaque part of a picture is a rectangle, or an ellipse that touches all its sides."""
    solid = alpha >= 0.5
    if not solid.any():
        return False
    box, sides = _box(solid)
    inner = solid[box]
    y, x = ((np.arange(size) + 0.5) * 2 / size - 1 for size in inner.shape)
    ellipse = y[:, None] ** 2 + x**2 <= 1
    return _is_rectangle(inner) or (sides == 4 and bool((inner != ellipse).mean() < 0.01))


def is_cut_off(alpha: Float[np.ndarray, "h w"]) -> bool:
    """Return whether an object seems to continue beyond a side of the picture.

    One that reaches all four sides is taken for a whole object that the picture was trimmed to.
    """
    solid = alpha > 0.5
    ends = solid[0], solid[-1], solid[:, 0], solid[:, -1]
    extents = (*[solid.any(0).sum()] * 2, *[solid.any(1).sum()] * 2)
    if all(end.any() for end in ends):
        return False
    return any(end.sum() >= CUT * extent > 0 for end, extent in zip(ends, extents, strict=True))


def _box(solid: Bool[np.ndarray, "h w"]) -> tuple[tuple[slice, slice], int]:
    """Return the rows and columns of what is there, and how many sides of the picture it reaches."""
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    margin = max(2.0, FRAME * min(solid.shape))
    ends = np.array([rows[0], solid.shape[0] - 1 - rows[-1], columns[0], solid.shape[1] - 1 - columns[-1]])
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)), int((ends <= margin).sum())


def _is_rectangle(inner: Bool[np.ndarray, "h w"]) -> bool:
    """Return whether a region fills its box, but for its corners."""
    corner = max(2, round(CORNER * min(inner.shape)))
    middle = inner.copy()
    for row in (slice(None, corner), slice(-corner, None)):
        for column in (slice(None, corner), slice(-corner, None)):
            middle[row, column] = True
    # One percent of the middle may be ragged.
    return bool((~middle).mean() < 1e-3 and (~inner).mean() < 0.05)


def filled(rgba: Float[np.ndarray, "h w 4"]) -> Float[np.ndarray, "h w 4"]:
    """Return an opaque picture: transparent pixels get the color of the nearest opaque one."""
    solid = ndimage.binary_erosion(rgba[..., 3] > 0.98, border_value=1)
    if solid.all():
        return rgba
    nearest = ndimage.distance_transform_edt(~solid, return_distances=False, return_indices=True)
    return np.concatenate([rgba[..., :3][tuple(nearest)], np.ones_like(rgba[..., 3:])], -1)


def shadow(
    rgba: Float[np.ndarray, "h w 4"], object_alpha: Float[np.ndarray, "h w"], background: Float[np.ndarray, "3"]
) -> Bool[np.ndarray, "h w"]:
    """Return which parts of a cut-out look like a shadow: gray, dim, fading smoothly into the background.

    Args:
      rgba: the picture before the object was cut out; over the background where it is transparent.
      object_alpha: of the cut-out.
      background: color around the object.
    """
    shown = rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])
    shade = shown / np.maximum(background, 0.05)
    level = shade.mean(-1)
    gray = (np.abs(shade - level[..., None]).max(-1) < GRAY) & (level > 0.2) & (level < 1.02)
    smooth = ndimage.gaussian_gradient_magnitude(level, 1.0) < 0.06
    soft = gray & smooth
    # From the background on, through what is soft.
    label, _ = ndimage.label(soft)
    around = label[(object_alpha < 0.05) & soft]
    return np.isin(label, np.unique(around[around > 0])) & (object_alpha > 0.5)


def looks_like_shadow(found: Bool[np.ndarray, "h w"], object_alpha: Float[np.ndarray, "h w"]) -> bool:
    """Return whether what :func:`shadow` found is large enough and at the foot of the object."""
    inside = object_alpha > 0.5
    if found.sum() <= SHADOW * inside.sum() or found.sum() > 0.9 * inside.sum():
        return False
    return bool(np.nonzero(found)[0].mean() > np.nonzero(inside & ~found)[0].mean())
