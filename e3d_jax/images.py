"""Images: read, check, cut out, crop, encode. Users' pictures and training renders take the same path.

In memory an image is float32 in [0, 1] with straight alpha. Where alpha is 0, the color is meaningless; :func:`crop`
sets it to white, the background of every view.
"""

import importlib.util
import io
import math
import os
import pathlib
import struct
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, features
from scipy import ndimage

from e3d_jax import color_profiles, cutout, files, structs

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")
# Brands of ISO media files, which begin with their length and "ftyp".
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
MIN_SIDE = 16
# Checked in the header before anything is decoded. Current cameras stay below; a decompression bomb does not.
MAX_SIDE = 16_384
MAX_PIXELS = 64_000_000
# Larger images are shrunk when read: no model needs more, and the cut-out stays fast.
WORKING_SIDE = 2048
# Longer side of the silhouette's bounding box over the side of the square crop.
FILL = 0.875
# Added to mean colors before their ratio is taken, since small ones are uncertain; limits of that ratio.
DARK = 0.05
GAINS = (0.6, 1.7)

_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error)


def read_image(path: str | os.PathLike) -> Float[np.ndarray, "h w 4"]:
    """Read an image as RGBA in [0, 1], straight alpha, upright (EXIF orientation applied).

    Gray, palette, 16-bit and CMYK images become RGB; color profiles and the color chunks of PNG files are applied. HEIC
    needs the extra ``heic``. The first frame of an animation is used, with a warning. Images
    with a side above 2048 px are shrunk to 2048 px.

    Raises:
      FileNotFoundError: the file does not exist.
      OSError: the file cannot be opened.
      ValueError: the file is not an image, is damaged, has a side below 16 px or above 16,384 px or more than 64
        megapixels, or is fully transparent.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the path of a PNG, JPEG or WebP picture")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the path of a PNG, JPEG or WebP picture")
    try:
        file = path.open("rb")
    except OSError as error:
        raise OSError(f"{path} cannot be opened ({error.strerror}); check its permissions") from error
    with file:
        rgba = np.asarray(_decode(file, path), np.float32) / 255
    if rgba[..., 3].max() < 0.02:
        raise ValueError(f"{path} is fully transparent; give a picture in which the object is visible")
    return rgba


def _decode(file: io.BufferedReader, path: pathlib.Path) -> Image.Image:
    """Return the image in an open file, upright, as 8-bit RGBA of at most the working size."""
    formats = _formats(file, path)
    try:
        with warnings.catch_warnings():  # Pillow's own limit warns where this code refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels; shrink it first") from error
    except _DECODING_ERRORS as error:
        raise ValueError(f"{path} is not a picture, or is damaged; give a PNG, JPEG or WebP file") from error
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{path} is {width} x {height} px, too small; each side needs at least {MIN_SIDE} px")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ValueError(
            f"{path} is {width} x {height} px, too large; shrink it below {MAX_SIDE} px per side "
            f"and {MAX_PIXELS // 10**6} megapixels"
        )
    # Phones store depth maps and the like as extra frames of a JPEG (MPO), which is not an animation.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        warnings.warn(f"{path} is animated; only its first frame is used", stacklevel=3)
    try:
        image.load()
        image = to_rgba(ImageOps.exif_transpose(image), file, str(path))
    except _DECODING_ERRORS as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); export or download it again") from error
    if max(image.size) > WORKING_SIDE:
        image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    return image


def _formats(file: io.BufferedReader, path: pathlib.Path) -> tuple[str, ...]:
    """Return the formats to try for an open file.

    Raises:
      ValueError: it is a HEIC or AVIF picture, and nothing that reads it is installed.
    """
    head = file.read(64)
    file.seek(0)
    brands = (head[8:12], *(head[at : at + 4] for at in range(16, min(len(head), int.from_bytes(head[:4], "big")), 4)))
    if head[4:8] != b"ftyp":
        return FORMATS
    if any(brand in AVIF_BRANDS for brand in brands):
        if not features.check("avif"):
            raise ValueError(
                f"{path} is an AVIF picture, which this Pillow cannot read; update Pillow to 11.3 or newer"
            )
    elif any(brand in HEIC_BRANDS for brand in brands):
        if importlib.util.find_spec("pillow_heif") is None:
            raise ValueError(
                f"{path} is a HEIC picture, as phones take them; install the 'heic' extra, or export it as JPEG or PNG"
            )
        import pillow_heif  # Optional, hence here.

        pillow_heif.register_heif_opener()
        return (*FORMATS, "HEIF")
    return FORMATS


def to_rgba(image: Image.Image, file: io.BufferedReader, name: str) -> Image.Image:
    """Convert any Pillow mode to 8-bit sRGB with alpha; Pillow itself would clip 16-bit gray instead of scaling it.

    Args:
      image: decoded.
      file: that it was read from.
      name: of the image in messages.
    """
    if image.mode.startswith("I"):
        info = image.info
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
        image.info = info
    return color_profiles.to_srgb(image, file, name)


# -- Cut-out ----------------------------------------------------------------------------------------------------------


def matte(rgba: Float[np.ndarray, "h w 4"], tolerance: float | None = None) -> Float[np.ndarray, "h w 4"]:
    """Make the background of a picture transparent.

    A picture that is already partly transparent is returned unchanged, unless that cuts off only its corners or
    borders. An opaque one is cut out by `rembg` if that is installed, otherwise by :func:`remove_plain_background`.
    Warns of what looks like a shadow or a photo in the result.

    Args:
      rgba: the picture.
      tolerance: cut an opaque picture out of a plain background with this tolerance, see
        :func:`remove_plain_background`.

    Raises:
      ValueError: the picture is opaque and its object cannot be separated from the background.
    """
    if (rgba[..., 3] < 0.5).mean() <= 1e-3:
        return _cut_out(rgba, tolerance)
    box = cutout.opaque_frame(rgba[..., 3])
    if box is None:
        if cutout.looks_like_photo(rgba[..., 3]):
            warnings.warn(
                "the opaque part of the picture is a rectangle or an ellipse and is taken for the object; if it is a "
                "photo of the object, crop it to the part that is opaque everywhere",
                stacklevel=2,
            )
        _warn_of_shadow(rgba, rgba[..., 3], np.ones(3, np.float32))
        return rgba
    warnings.warn(
        "the picture is transparent only at its corners or border, so its background is removed; if the object fills "
        "the picture, give it a wider transparent margin",
        stacklevel=2,
    )
    cut = np.zeros_like(rgba)
    cut[box] = _cut_out(cutout.filled(rgba[box]), tolerance)
    return cut


def _cut_out(rgba: Float[np.ndarray, "h w 4"], tolerance: float | None) -> Float[np.ndarray, "h w 4"]:
    """Cut an object out of an opaque picture, as :func:`matte` does."""
    if tolerance is not None or importlib.util.find_spec("rembg") is None:
        return _cut_out_of_plain(rgba, tolerance)
    import rembg  # Heavy and optional, hence here.

    try:
        cut = np.asarray(rembg.remove(Image.fromarray(to_uint8(rgba[..., :3]))), np.float32) / 255
    except OSError as error:  # It downloads its network on first use.
        warnings.warn(f"rembg failed ({error}); trying to separate a plain background", stacklevel=3)
        return _cut_out_of_plain(rgba)
    if not (cut[..., 3] > 0.5).any():
        raise ValueError("rembg found no object in the picture; give a PNG whose background is transparent")
    return cut


def _cut_out_of_plain(rgba: Float[np.ndarray, "h w 4"], tolerance: float | None = None) -> Float[np.ndarray, "h w 4"]:
    cut = remove_plain_background(rgba, tolerance)
    _warn_of_shadow(rgba, cut[..., 3], np.median(rgba[_border(rgba.shape[:2])][:, :3], 0))
    return cut


def _warn_of_shadow(rgba: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> None:
    """Warn if a cut-out seems to contain the shadow of its object."""
    if cutout.looks_like_shadow(found := cutout.shadow(rgba, alpha, background), alpha):
        warnings.warn(
            f"{found.sum() / (alpha > 0.5).sum():.0%} of the cut-out, a gray and dim region at its foot, looks like a "
            "shadow and is kept as part of the object; remove it if it is one",
            stacklevel=4,
        )


def remove_plain_background(
    rgba: Float[np.ndarray, "h w 4"], tolerance: float | None = None
) -> Float[np.ndarray, "h w 4"]:
    """Cut an object out of a plain, possibly shaded, background.

    The background color is a quadratic function of the position, fitted to the border; the background is the pixels
    of that color that are connected to the border (a hole that shows background inside the object stays opaque).
    Across the outline, alpha is the fraction of object color in the pixel, and the fraction of background is removed
    from its color.

    Args:
      rgba: the picture.
      tolerance: RGB distance up to which a color is that of the background; found, and the border checked to be plain,
        when not given.

    Raises:
      ValueError: the border is not plain, or nothing stands out from it.
    """
    rgb = rgba[..., :3]
    background, tolerance = _fit_background(rgb, tolerance)
    near = np.linalg.norm(rgb - background, axis=-1) < tolerance
    label, _ = ndimage.label(near)
    outside = np.isin(label, np.unique(label[_border(label.shape)])) & near
    inside = _without_specks(~outside)
    if inside.mean() < 2e-3:
        raise ValueError(
            "nothing stands out from the picture's background; give a PNG whose background is transparent, "
            "or install the 'rembg' extra"
        )
    # Pure object color: two pixels inside the outline, or the center line of parts that are too thin for that.
    depth = ndimage.distance_transform_edt(inside)
    pure = inside & ((depth > 2.5) | (depth == ndimage.maximum_filter(depth, 5)))
    reach, nearest = ndimage.distance_transform_edt(~pure, return_indices=True)
    contrast = rgb[tuple(nearest)] - background
    fraction = ((rgb - background) * contrast).sum(-1) / np.maximum((contrast**2).sum(-1), 1e-6)
    alpha = np.where(pure, 1, np.where(inside | (reach <= 4), fraction.clip(0, 1), 0)).astype(np.float32)
    alpha[(depth == 0) & (alpha < 0.1)] = 0  # background noise
    alpha[depth > 2.5] = 1
    opacity = np.maximum(alpha, 0.1)[..., None]
    color = (rgb - (1 - opacity) * background) / opacity
    return np.concatenate([color.clip(0, 1), alpha[..., None]], -1).astype(np.float32)


def _border(shape: tuple[int, int]) -> np.ndarray:
    """Return a mask of the outermost 2 % of an image."""
    width = max(2, round(0.02 * min(shape)))
    mask = np.ones(shape, bool)
    mask[width:-width, width:-width] = False
    return mask


def _fit_background(
    rgb: Float[np.ndarray, "h w 3"], tolerance: float | None
) -> tuple[Float[np.ndarray, "h w 3"], float]:
    """Return the background color of every pixel, and how far (RGB distance) background pixels may be from it."""
    height, width = rgb.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    basis = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1).astype(np.float32)
    mask = _border((height, width))
    design, color = basis[mask], rgb[mask]
    # Trimmed least squares, starting from the median color, because the object may touch the border.
    residual = np.linalg.norm(color - np.median(color, axis=0), axis=-1)
    for _ in range(6):
        spread = float(np.median(residual))
        kept = residual <= max(3 * spread, 0.02)
        coefficients = np.linalg.lstsq(design[kept], color[kept], rcond=None)[0]
        residual = np.linalg.norm(color - design @ coefficients, axis=-1)
    fitted = (basis @ coefficients).clip(0, 1)
    if tolerance is not None:
        return fitted, tolerance
    tolerance = min(max(3.5 * float(np.median(residual)), 0.05), 0.16)
    if (residual < tolerance).mean() < 0.7:
        raise ValueError(
            "the picture has no transparency and its background is not plain; give a PNG whose background is "
            "transparent, or install the 'rembg' extra"
        )
    return fitted, tolerance


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Return the mask without connected parts below 1 % of the largest."""
    label, count = ndimage.label(mask)
    if count < 2:
        return mask
    area = np.bincount(label.ravel())
    area[0] = 0
    return (area >= 0.01 * area.max())[label] & mask


# -- Framing ----------------------------------------------------------------------------------------------------------


def object_box(alpha: Float[structs.ArrayLike, "h w"], fill: float = FILL) -> tuple[float, float, float]:
    """Return the square that frames an object: (left, top, side) in pixels; it may reach outside of the image.

    The longer side of the silhouette's bounding box (alpha above 0.5, stray specks ignored) spans ``fill`` of the
    square, and the bounding box is centered in it.

    Raises:
      ValueError: the silhouette is empty.
    """
    mask = _without_specks(np.asarray(alpha) > 0.5)
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        raise ValueError("the picture shows no object (alpha is nowhere above 0.5); give one with a visible object")
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    side = max(right - left, bottom - top) / fill
    return float((left + right - side) / 2), float((top + bottom - side) / 2), float(side)


def crop(
    image: Float[structs.ArrayLike, "h w c"], box: tuple[float, float, float], size: int
) -> Float[np.ndarray, "{size} {size} c"]:
    """Resample a square of an image to ``size`` px: antialiased cubic (Catmull-Rom), transparent outside the image.

    Args:
      image: RGBA with straight alpha, interpolated premultiplied and white where the result is transparent; or RGB
        on white, which is white outside too.
      box: (left, top, side) in pixels, see :func:`object_box`.
      size: side of the result in pixels.
    """
    image = np.asarray(image, np.float32)
    left, top, side = box
    rows = _resampling_weights(image.shape[0], top, side, size)
    columns = _resampling_weights(image.shape[1], left, side, size)
    # As differences from white, weighted by alpha, so that everything outside the image counts as zero.
    values = image - 1
    if image.shape[-1] == 4:
        values = np.concatenate([values[..., :3] * image[..., 3:], image[..., 3:]], -1)
    values = (rows @ values.reshape(len(values), -1)).reshape(size, *values.shape[1:]).swapaxes(0, 1)
    values = (columns @ values.reshape(len(values), -1)).reshape(size, size, -1).swapaxes(0, 1)
    if image.shape[-1] == 4:
        alpha = values[..., 3:].clip(0, 1)
        alpha[alpha < 1 / 512] = 0
        color = values[..., :3] / np.where(alpha > 0, alpha, np.inf) + 1
        values = np.concatenate([color, alpha], -1)
    else:
        values = values + 1
    return values.clip(0, 1)


def _resampling_weights(length: int, start: float, extent: float, size: int) -> Float[np.ndarray, "{size} {length}"]:
    """Return weights that resample ``[start, start + extent)`` of ``length`` samples to ``size`` samples."""
    scale = extent / size
    center = start + (np.arange(size) + 0.5) * scale
    width = max(scale, 1.0)  # The kernel widens when shrinking.
    # Normalized over an infinite line, so that samples beyond the ends of this one count as zero.
    reach = math.ceil(2 * width)
    first, last = min(0, math.floor(start) - reach), max(length, math.ceil(start + extent) + reach)
    t = np.abs(np.arange(first, last) + 0.5 - center[:, None]) / width
    kernel = np.where(t < 1, 1 + t * t * (1.5 * t - 2.5), np.where(t < 2, 2 + t * (-4 + t * (2.5 - 0.5 * t)), 0))
    kernel /= kernel.sum(1, keepdims=True)
    return kernel[:, -first : length - first].astype(np.float32)


# -- Values -----------------------------------------------------------------------------------------------------------


def composite(rgba: Float[structs.ArrayLike, "*b 4"], background: float = 1.0) -> Float[structs.ArrayLike, "*b 3"]:
    """Composite over a gray background (1 is white); NumPy or JAX."""
    return rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])


def exposed_as(views: Float[np.ndarray, "v h w 4"], image: Float[np.ndarray, "h w 4"]) -> Float[np.ndarray, "v h w 4"]:
    """Return views whose color channels are scaled so that the means of the first view are those of an image.

    Args:
      views: of an object, straight alpha, values in [0, 1]; all are scaled alike. Transparent pixels are kept.
      image: of the object, from where the first view is, more or less.
    """
    ours, theirs = (
        (each[..., :3] * each[..., 3:]).sum((0, 1)) / max(float(each[..., 3].sum()), 1e-6) for each in (views[0], image)
    )
    gain = ((theirs + DARK) / (ours + DARK)).clip(*GAINS).astype(np.float32)
    rgb = np.where(views[..., 3:] > 0, (views[..., :3] * gain).clip(0, 1), views[..., :3])
    return np.concatenate([rgb, views[..., 3:]], -1)


def over_white(image: Float[Any, "*b c"]) -> Float[Any, "*b 3"]:
    """Return images with or without alpha on white; NumPy or JAX."""
    return composite(image) if image.shape[-1] == 4 else image


def encode_normal(
    normals: Float[structs.ArrayLike, "*b 3"], alpha: Float[structs.ArrayLike, "*b"]
) -> Float[structs.ArrayLike, "*b 4"]:
    """Encode unit normals as RGBA in [0, 1]: RGB = (n + 1) / 2, white where alpha is 0; NumPy or JAX.

    Args:
      normals: unit vectors, world frame.
      alpha: coverage of the object, or 1 where the normal is known and 0 elsewhere.
    """
    lib = _array_module(normals, alpha)
    alpha = alpha[..., None]
    return lib.concatenate([lib.where(alpha > 0, normals / 2 + 0.5, 1.0), alpha], -1)


def decode_normal(
    rgba: Float[structs.ArrayLike, "*b 4"], *, shortest: float = 0.01
) -> Float[structs.ArrayLike, "*b 3"]:
    """Decode normals stored by :func:`encode_normal` to unit vectors, zero where unknown; NumPy or JAX.

    Args:
      rgba: encoded normals.
      shortest: a normal is unknown if its stored vector 2 RGB - 1 is shorter than this, or if alpha is at most 0.5.
        Files of other programs may use a gray close to 0.5 for unknown normals.
    """
    lib = _array_module(rgba)
    normals = 2 * rgba[..., :3] - 1
    squared = (normals**2).sum(-1, keepdims=True)
    # Clipped before the root, whose derivative at 0 is infinite.
    unit = normals / squared.clip(1e-4) ** 0.5
    return lib.where((rgba[..., 3:] > 0.5) & (squared > shortest**2), unit, 0.0)


def _array_module(*arrays: structs.ArrayLike):
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp


def to_uint8(image: Float[structs.ArrayLike, "*b c"]) -> np.ndarray:
    """Convert [0, 1] to rounded and clipped bytes."""
    return (np.asarray(image, np.float32).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def write_png(path: str | os.PathLike, image: Float[structs.ArrayLike, "h w c"]) -> None:
    """Write RGB or RGBA in [0, 1] as an 8-bit PNG; the file appears whole or not at all.

    Raises:
      OSError: the folder does not exist or cannot be written to.
    """
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="PNG")
    files.write_atomically(path, buffer.getvalue())
