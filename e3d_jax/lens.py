"""Lens distortion: what files say about it, and images without it.

Coefficients are those of OpenCV. A point of the ideal image is moved to where the lens shows it, and its color is read
there, so nothing has to be inverted.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import ndimage

PERSPECTIVE = ("", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "PERSPECTIVE")
FISHEYE = ("FISHEYE", "OPENCV_FISHEYE", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
RADIAL = ("k1", "k2", "k3", "k4", "k5", "k6")
TANGENTIAL = ("p1", "p2")
# Entries of other projections, which some programs write instead of a camera model.
OTHERS = ("equirectangular", "latlong", "rolling_shutter", *(f"ftheta_p{number}" for number in range(5)))
# Other names of distortion coefficients, whose order is unknown.
UNKNOWN = re.compile(r"dist(ort|_?coef)", re.IGNORECASE)
# What a list of coefficients means by its length, in the orders of OpenCV and (six) nerfstudio.
LISTS = {
    4: ("k1", "k2", "p1", "p2"),
    5: ("k1", "k2", "p1", "p2", "k3"),
    6: ("k1", "k2", "k3", "k4", "p1", "p2"),
    8: ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6"),
}


@dataclasses.dataclass(frozen=True)
class Lens:
    """How a lens moves points.

    Attributes:
      fisheye: whether the angle to the optical axis, instead of its tangent, is distorted.
      radial: k1 to k6.
      tangential: p1 and p2.
    """

    fisheye: bool
    radial: tuple[float, ...]
    tangential: tuple[float, float]

    def radius(self, r: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
        """Return the distances from the optical axis, at depth 1, at which the lens shows points at distances r."""
        k1, k2, k3, k4, k5, k6 = self.radial
        if self.fisheye:
            t = np.arctan(r)
            return t * (1 + t**2 * (k1 + t**2 * (k2 + t**2 * (k3 + t**2 * k4))))
        s = r**2
        return r * (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)))

    def distort(self, x: Float[np.ndarray, "*s"], y: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "2 ..."]:
        """Return where the lens shows points at depth 1; far outside for points that it cannot show."""
        r = np.hypot(x, y)
        factor = np.where(r > 1e-9, self.radius(r) / np.maximum(r, 1e-9), 1)
        p1, p2 = self.tangential
        moved = np.stack(
            [
                x * factor + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
                y * factor + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
            ]
        )
        # Beyond its first maximum, the polynomial would show parts of the image a second time.
        steps = np.linspace(0, r.max(), 1000)
        falling = np.flatnonzero(np.diff(self.radius(steps)) <= 0)
        limit = steps[falling[0]] if len(falling) else np.inf
        return np.where(r > limit, 1e6, moved)


def read(known: Mapping[str, Any], where: str) -> Lens | None:
    """Return the lens that the entries of a camera describe; None if it does not distort.

    Args:
      known: entries as nerfstudio and instant-ngp write them.
      where: names the camera in messages.

    Raises:
      ValueError: the camera is of a kind that cannot be undistorted, or its coefficients are not numbers.
    """
    model = str(known.get("camera_model") or "").upper()
    for name in OTHERS:
        if np.any(known.get(name)):
            raise ValueError(f"{where} has {name}, a projection that is not supported; give pinhole images")
    for name, value in known.items():
        if name != "distortion_params" and UNKNOWN.search(name) and not isinstance(value, str) and np.any(value):
            raise ValueError(f"{where} has {name}, which is not understood; name its coefficients k1, k2, p1, p2, ...")
    if model not in PERSPECTIVE and model not in FISHEYE:
        raise ValueError(f"{where} has the camera_model {model}, which is not supported; undistort the images first")
    fisheye = model in FISHEYE or bool(known.get("is_fisheye"))
    try:
        values = {name: float(known.get(name) or 0) for name in (*RADIAL, *TANGENTIAL)}
        if (listed := known.get("distortion_params")) is not None:
            names = RADIAL[:4] if fisheye and len(listed) == 4 else LISTS.get(len(listed), ())
            values |= dict(zip(names, map(float, listed), strict=True))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} describes lens distortion that is not understood ({error})") from error
    if not np.isfinite(list(values.values())).all():
        raise ValueError(f"{where} describes lens distortion with numbers that are not finite")
    if any(values[name] for name in RADIAL[3:]) and not fisheye and model != "FULL_OPENCV":
        raise ValueError(
            f"{where} has k4 or more, which {model or 'its camera'} does not define; undistort the images first"
        )
    if fisheye and any(values[name] for name in (*RADIAL[4:], *TANGENTIAL)):
        raise ValueError(
            f"{where} is a fisheye with p1, p2, k5 or k6, which is not supported; undistort the images first"
        )
    if not fisheye and not any(values.values()):
        return None
    return Lens(fisheye, tuple(values[name] for name in RADIAL), (values["p1"], values["p2"]))


def undistort(
    image: Float[np.ndarray, "h w 4"], focal: tuple[float, float], center: tuple[float, float], lens: Lens
) -> Float[np.ndarray, "h w 4"]:
    """Return the RGBA image, straight alpha, that a pinhole camera of the same focal length would have taken.

    What the lens did not show is transparent.
    """
    height, width = image.shape[:2]
    x = (np.arange(width) + 0.5 - center[0]) / focal[0]
    y = (np.arange(height) + 0.5 - center[1]) / focal[1]
    moved = lens.distort(*np.meshgrid(x, y))
    at = [moved[1] * focal[1] + center[1] - 0.5, moved[0] * focal[0] + center[0] - 0.5]
    premultiplied = np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], -1)
    layers = [ndimage.map_coordinates(premultiplied[..., c], at, order=1, mode="constant") for c in range(4)]
    alpha = layers[3][..., None]
    color = np.stack(layers[:3], -1) / np.where(alpha > 0, alpha, 1)
    return np.concatenate([np.where(alpha > 0, color, 1), alpha], -1).astype(np.float32).clip(0, 1)
