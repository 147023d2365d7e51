"""Input images as photographs are: from cameras of their own, lit and exposed otherwise than the views of an object.

:func:`plan` decides everything that is random about an object's input images, from the object's name alone. A renderer
draws each from the camera of its crop (:func:`framed`), and :func:`develop` adds what a camera adds. They are stored
framed as a user's image is (:func:`e3d_jax.images.object_box`), with a slight error.
"""

import dataclasses
import io
import zlib

import jax
import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from scipy import ndimage

from e3d_jax import cameras as cameras_lib
from e3d_jax import images, structs
from e3d_jax.data import lighting

# Side of the images in which the object is found for its crop: relative to that of the input images, and at least.
FINDER, FINDER_PIXELS = 0.5, 64
# An object is where its coverage exceeds this part of the greatest: a thin one covers little of a finder's pixel.
COVERED = 0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shots:
    """How n input images of an object are taken.

    Attributes:
      cameras: of the whole images, before the crop.
      lights: of each.
      errors: of each crop: shift (x, y) over the side, and logarithm of the side.
      seeds: of :func:`develop`.
    """

    cameras: structs.Cameras
    lights: lighting.Lights
    errors: Float[structs.ArrayLike, "*b n 3"]
    seeds: Int[structs.ArrayLike, "*b n"]


def plan(settings: cameras_lib.InputCameras, name: str, size: int) -> Shots:
    """Choose how the input images of an object are taken; a name gives the same shots everywhere.

    Args:
      settings: number and ranges.
      name: of the object.
      size: width and height of the images in pixels.
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), settings.count])
    cameras = settings.draw(rng, size)
    lights = [_lights(rng, settings.effects) for _ in range(settings.count)]
    return Shots(
        cameras=cameras,
        lights=jax.tree.map(lambda *rows: np.stack(rows), *lights),
        errors=(settings.effects * rng.normal(0, [0.015, 0.015, 0.03], (settings.count, 3))).astype(np.float32),
        seeds=rng.integers(2**31, size=settings.count),
    )


def _lights(rng: np.random.Generator, strength: float) -> lighting.Lights:
    """Return the usual light, changed by ``strength``: a key light from any side above, and tinted fill lights."""
    key = lighting.KEY_LIGHT + strength * rng.normal(0, 0.6, 3) * [1, 1, 0.5]
    directions = np.stack([key, *rng.normal(size=(2, 3))])
    amounts = np.array([lighting.AMBIENT, lighting.KEY_STRENGTH, 0, 0])
    amounts += strength * rng.uniform([-0.2, -0.15, 0, 0], [0.05, 0.35, 0.15, 0.15])
    colors = amounts.clip(0)[:, None] * (1 + strength * rng.normal(0, 0.05, (4, 3)))
    return lighting.Lights(
        ambient=colors[0].astype(np.float32),
        directions=(directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32),
        colors=colors[1:].astype(np.float32),
        occlusion=np.array(strength * rng.uniform(0, 0.5), np.float32),
    )


def finder(cameras: structs.Cameras) -> structs.Cameras:
    """Return cameras that see the same in other pixels, to find the object with."""
    size = max(round(cameras.width * FINDER), FINDER_PIXELS)
    corner = 0 * cameras.center
    return cameras_lib.cropped(cameras, corner, corner[..., 0] + cameras.width, size)


def bounds(
    alpha: Float[np.ndarray, "h w"],
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    """Return the least and the greatest (x, y) of a silhouette in a square image, over its width.

    Raises:
      ValueError: there is no object.
    """
    mask = alpha > COVERED * alpha.max()
    if not mask.any():
        raise ValueError("an input camera does not see the object")
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1] + 1, rows[-1] + 1])
    return low / len(alpha), high / len(alpha)


def framed(
    cameras: structs.Cameras,
    low: Float[structs.ArrayLike, "*n 2"],
    high: Float[structs.ArrayLike, "*n 2"],
    errors: Float[structs.ArrayLike, "*n 3"],
) -> structs.Cameras:
    """Return the cameras of crops of :func:`e3d_jax.images.object_box`, with errors; NumPy or JAX.

    Args:
      cameras: of the whole images.
      low: least (x, y) of each silhouette, over the width of the image.
      high: greatest (x, y).
      errors: see :class:`Shots`.
    """
    lib = np if isinstance(low, np.ndarray) else jax.numpy
    side = (high - low).max(-1) / images.FILL * lib.exp(errors[..., 2])
    corner = (low + high) / 2 + errors[..., :2] * side[..., None] - side[..., None] / 2
    return cameras_lib.cropped(cameras, corner * cameras.width, side * cameras.width, cameras.width)


def develop(rgba: Float[np.ndarray, "h w 4"], seed: int, strength: float) -> Float[np.ndarray, "h w 4"]:
    """Add what a camera adds: exposure, contrast, white balance, blur, noise and JPEG artifacts.

    Args:
      rgba: a clean image, straight alpha.
      seed: of all randomness.
      strength: 0 returns the image unchanged.
    """
    if not strength:
        return rgba
    rng = np.random.default_rng(seed)
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    gain = np.exp(strength * (rng.normal(0, 0.2) + rng.normal(0, 0.06, 3)))
    gamma = np.exp(strength * rng.normal(0, 0.15))
    rgb = (np.maximum(rgb, 1e-4) ** gamma * gain).clip(0, 1)
    if rng.random() < 0.5:
        sigma = strength * rng.uniform(0.2, 0.8) * len(rgba) / 256
        premultiplied = np.concatenate([rgb * alpha, alpha], -1)
        soft = ndimage.gaussian_filter(premultiplied, (sigma, sigma, 0), mode="nearest")
        # Inward alone: normal maps have the silhouette of the clean image.
        alpha = np.where(alpha > 0, soft[..., 3:], 0)
        rgb = np.where(alpha > 1 / 512, soft[..., :3] / np.maximum(alpha, 1 / 512), 1.0)
    if rng.random() < 0.5:
        rgb = rgb + strength * rng.uniform(0, 0.03) * rng.normal(size=rgb.shape)
    if rng.random() < 0.5:
        rgb = _jpeg(rgb, alpha, round(95 - strength * rng.uniform(0, 45)))
    return np.concatenate([np.where(alpha > 0, rgb, 1.0), alpha], -1).clip(0, 1).astype(np.float32)


def _jpeg(rgb: np.ndarray, alpha: np.ndarray, quality: int) -> np.ndarray:
    """Return colors as JPEG stores them in an image over gray, whose border they get mixed with."""
    buffer = io.BytesIO()
    Image.fromarray(images.to_uint8(np.where(alpha > 0, rgb, 0.5))).save(buffer, "JPEG", quality=max(quality, 5))
    return np.asarray(Image.open(buffer), np.float32) / 255
