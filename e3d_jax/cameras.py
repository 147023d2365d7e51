"""Cameras: which views a system has, rays, and every conversion between axis conventions.

Azimuths are measured from +x toward +y, elevations from the xy plane toward +z; both in radians. All cameras look at
the origin with +z up.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from e3d_jax import settings, structs

# Camera axes: OpenCV is (x right, y down, z forward), OpenGL is (x right, y up, z backward).
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)
# The mirror that swaps left and right of the input view, in world and in camera coordinates.
MIRROR_WORLD = np.diag([1.0, -1.0, 1.0, 1.0]).astype(np.float32)
MIRROR_CAM = np.diag([-1.0, 1.0, 1.0, 1.0]).astype(np.float32)
# Azimuths found from poses are rounded to this fraction of a turn, so that a pose that went through a file has the
# azimuth that it was made with.
TURN_DIGITS = 6
# Radius of the ball that input cameras hold: objects reach 0.5 from the origin, and need a margin.
FIT = 0.525


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewLayout(settings.Settings):
    """The views that a system generates: a ring of cameras around the object, some of which are *anchors*.

    The default is the ring of Envision3D (arXiv 2403.08902): 32 level cameras, view k at azimuth k * 11.25 degrees,
    view 0 that of the input image, every fourth view an anchor. A *window* is what the interpolation stage generates at
    once: the views from one anchor to the next but one.
    """

    num_views: int = settings.setting("Cameras on the ring.", 32, at_least=1)
    num_anchors: int = settings.setting("Anchors among them, evenly spaced from view 0 on.", 8, at_least=1)
    radius: float = settings.setting("Distance of the cameras from the origin in object units.", 1.5, above=0.5)
    focal: float = settings.setting(
        "Focal length over image width. The default, a field of view of 39.6 degrees, holds a ball of radius 0.5.",
        1.38906,
        above=0,
    )
    elevation: float = settings.setting("Mean elevation in degrees.", 0.0, above=-90, below=90)
    elevation_swing: float = settings.setting(
        "Degrees by which the elevation swings around its mean along the ring.", 0.0, at_least=0, below=90
    )
    elevation_waves: int = settings.setting("Full swings along the ring.", 2, at_least=1)

    def check(self) -> None:
        """Refuse rings that cannot be divided."""
        if self.num_views % self.num_anchors:
            raise ValueError(f"num_views is {self.num_views}; expected a multiple of num_anchors, {self.num_anchors}")
        if abs(self.elevation) + self.elevation_swing >= 90:
            raise ValueError(
                f"elevation is {self.elevation} and elevation_swing {self.elevation_swing}; expected less than 90 "
                "degrees together"
            )

    @property
    def step(self) -> int:
        """Views from one anchor to the next."""
        return self.num_views // self.num_anchors

    @property
    def anchors(self) -> Int[np.ndarray, " a"]:
        """Views that are anchors."""
        return np.arange(0, self.num_views, self.step)

    @property
    def between(self) -> Int[np.ndarray, " b"]:
        """Views that are not anchors."""
        return np.setdiff1d(np.arange(self.num_views), self.anchors)

    @property
    def window_frames(self) -> int:
        """Views of a window."""
        return 2 * self.step + 1

    @property
    def window_anchors(self) -> Int[np.ndarray, " 3"]:
        """Frames of a window that are anchors."""
        return np.arange(0, self.window_frames, self.step)

    @property
    def window_new(self) -> Int[np.ndarray, " f"]:
        """Frames of a window that are not anchors."""
        return np.setdiff1d(np.arange(self.window_frames), self.window_anchors)

    @property
    def frame_anchor(self) -> Int[np.ndarray, " t"]:
        """For each frame of a window, which of the window's anchors is the last one up to it."""
        return np.arange(self.window_frames) // self.step

    def window(self, first_anchor: int) -> Int[np.ndarray, " t"]:
        """Return the views of the window that starts at an anchor."""
        return (self.step * first_anchor + np.arange(self.window_frames)) % self.num_views

    @property
    def windows(self) -> Int[np.ndarray, "w t"]:
        """Views of the windows that together cover the ring.

        Raises:
          ValueError: the number of anchors is odd, so that windows of two steps do not close the ring.
        """
        if self.num_anchors % 2:
            raise ValueError(f"num_anchors is {self.num_anchors}; windows cover the ring only if it is even")
        return np.stack([self.window(first - 1) for first in range(0, self.num_anchors, 2)])

    def cameras(self, size: int) -> structs.Cameras:
        """Return the cameras of all views, for images of ``size`` pixels."""
        angle = 2 * np.pi * np.arange(self.num_views) / self.num_views
        swing = np.radians(self.elevation_swing) * np.sin(self.elevation_waves * angle)
        elevation = np.radians(self.elevation) + swing if self.elevation or self.elevation_swing else 0.0
        return ring(size, self.num_views, radius=self.radius, focal=self.focal, elevation=elevation)


RELEASED = ViewLayout()
# Azimuths in degrees of the sides of an object, as seen in the first image.
DIRECTIONS = {"front": 0.0, "right": 90.0, "back": 180.0, "left": 270.0}


def direction(name: str | float | int) -> float:
    """Return the azimuth, in degrees in [0, 360), of a side of :data:`DIRECTIONS` or of a number of degrees.

    Raises:
      ValueError: it is neither.
    """
    try:
        degrees = DIRECTIONS[name] if isinstance(name, str) and name in DIRECTIONS else float(name) % 360
    except ValueError:
        degrees = math.nan
    if math.isnan(degrees):  # As are infinite ones, modulo 360.
        known = ", ".join(DIRECTIONS)
        raise ValueError(f"{name!r} is an unknown direction; expected {known}, or degrees to the right")
    return degrees


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputCameras(settings.Settings):
    """Cameras of input images that records have beside the views of the layout, as photographers would choose them.

    The first is in the direction of view 0 and the others are anywhere around the object. Each is just far enough away
    for a ball of radius 0.5, so that a narrow field of view is a distant camera.
    """

    count: int = settings.setting(
        "Input images per object from cameras of their own; with 0 the anchors are the inputs.", 0, at_least=0
    )
    elevation: tuple[float, float] = settings.setting(
        "Range of the first one's elevation in degrees.", (-10.0, 50.0), above=-90, below=90
    )
    other_elevation: tuple[float, float] = settings.setting(
        "Range of the elevations of the others in degrees.", (-10.0, 60.0), above=-90, below=90
    )
    fov: tuple[float, float] = settings.setting(
        "Range of the fields of view in degrees.", (20.0, 55.0), at_least=5, at_most=100
    )
    effects: float = settings.setting(
        "Strength of what makes photographs differ from the views: light, exposure, white balance, blur, noise, "
        "compression, and errors of the crop; 0 is off.",
        1.0,
        at_least=0,
    )

    def check(self) -> None:
        """Refuse ranges whose ends are swapped."""
        for name in ("elevation", "other_elevation", "fov"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is {low}, {high}; expected the smaller number first")

    def draw(self, rng: np.random.Generator, size: int) -> structs.Cameras:
        """Choose the cameras of an object's input images, for square images of ``size`` pixels."""
        first = np.arange(self.count) == 0
        angle = np.where(first, 0.0, rng.uniform(0, 2 * np.pi, self.count))
        ranges = np.where(first[:, None], self.elevation, self.other_elevation)
        level = np.radians(rng.uniform(*ranges.T))
        half = np.radians(rng.uniform(*self.fov, self.count)) / 2
        distance = (FIT / np.sin(half))[:, None]
        across = np.cos(level)
        position = distance * np.stack([across * np.cos(angle), across * np.sin(angle), np.sin(level)], -1)
        return structs.Cameras(
            world_from_cam=look_at(position),
            focal=np.repeat(size / 2 / np.tan(half), 2).reshape(-1, 2).astype(np.float32),
            center=np.full((self.count, 2), size / 2, np.float32),
            width=size,
            height=size,
        )


def azimuths(num_views: int) -> Float[np.ndarray, " v"]:
    """Return azimuths of ``num_views`` evenly spaced views, starting at 0."""
    return (np.arange(num_views) * (2 * np.pi / num_views)).astype(np.float32)


def _turns(world_from_cam: Any) -> Any:
    """Return azimuths of camera positions in turns, rounded."""
    lib = np if isinstance(world_from_cam, np.ndarray) else jnp
    position = world_from_cam[..., :3, 3].astype(np.float64 if lib is np else jnp.float32)
    return lib.round(lib.arctan2(position[..., 1], position[..., 0]) / (2 * np.pi), TURN_DIGITS)


def azimuth_of(world_from_cam: Float[Any, "*b 4 4"]) -> Float[Any, "*b"]:
    """Return azimuths of camera positions, in [0, 2 pi); NumPy in, NumPy out."""
    return (_turns(world_from_cam) % 1.0 * (2 * np.pi)).astype(np.float32)


def relative_azimuth(world_from_cam: Float[Any, "b v 4 4"], reference: Float[Any, "b 1 4 4"]) -> Float[Any, "b v"]:
    """Return azimuths in [0, 2 pi) as seen from a reference camera; NumPy in, NumPy out."""
    lib = np if isinstance(world_from_cam, np.ndarray) else jnp
    turns = lib.round(_turns(world_from_cam) - _turns(reference), TURN_DIGITS)
    return (turns % 1.0 * (2 * np.pi)).astype(np.float32)


def elevation_of(world_from_cam: Float[Any, "*b 4 4"]) -> Float[Any, "*b"]:
    """Return elevations of camera positions; NumPy in, NumPy out."""
    lib = np if isinstance(world_from_cam, np.ndarray) else jnp
    position = world_from_cam[..., :3, 3].astype(np.float64 if lib is np else jnp.float32)
    across = lib.sqrt(position[..., 0] ** 2 + position[..., 1] ** 2)
    return lib.arctan2(position[..., 2], across).astype(np.float32)


def fov_of(cameras: structs.Cameras) -> Float[Any, "*v"]:
    """Return the angles that image widths span, as if centered on the optical axes; NumPy in, NumPy out."""
    lib = np if isinstance(cameras.focal, np.ndarray) else jnp
    return (2 * lib.arctan(cameras.width / 2 / cameras.focal[..., 0])).astype(np.float32)


def mirrored(cameras: structs.Cameras) -> structs.Cameras:
    """Return cameras of mirror images: the world reflected at the xz plane, each image flipped left to right."""
    center = np.asarray(cameras.center) * np.array([-1, 1], np.float32) + np.array([cameras.width, 0], np.float32)
    pose = MIRROR_WORLD @ np.asarray(cameras.world_from_cam) @ MIRROR_CAM
    return dataclasses.replace(cameras, world_from_cam=pose, center=center)


def cropped(
    cameras: structs.Cameras, corner: Float[structs.ArrayLike, "*v 2"], side: Float[structs.ArrayLike, "*v"], size: int
) -> structs.Cameras:
    """Return cameras of square crops, resized; NumPy in, NumPy out.

    Args:
      cameras: of the whole images.
      corner: top left corner (x, y) of each crop in pixels of the whole image.
      side: width and height of each crop in pixels of the whole image.
      size: width and height that the crops are resized to.
    """
    scale = (size / side)[..., None]
    return dataclasses.replace(
        cameras,
        focal=(cameras.focal * scale).astype(np.float32),
        center=((cameras.center - corner) * scale).astype(np.float32),
        width=size,
        height=size,
    )


def look_at(position: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 4 4"]:
    """Return ``world_from_cam`` (OpenCV axes) of cameras at ``position`` that look at the origin with +z up.

    Raises:
      ValueError: a position is on the z axis, where "up" is undefined.
    """
    position = np.asarray(position, np.float64)
    forward = -position / np.linalg.norm(position, axis=-1, keepdims=True)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    length = np.linalg.norm(right, axis=-1, keepdims=True)
    if (length < 1e-6).any():
        raise ValueError(f"a camera at {position} looks along the z axis, which leaves its 'up' undefined")
    right = right / length
    pose = np.zeros((*position.shape[:-1], 4, 4))
    pose[..., :3, 0], pose[..., :3, 1] = right, np.cross(forward, right)
    pose[..., :3, 2], pose[..., :3, 3] = forward, position
    pose[..., 3, 3] = 1.0
    return pose.astype(np.float32)


def ring(
    size: int,
    num_views: int = RELEASED.num_views,
    *,
    radius: float = RELEASED.radius,
    focal: float = RELEASED.focal,
    offset: float = 0.0,
    elevation: float | Float[np.ndarray, " v"] = 0.0,
) -> structs.Cameras:
    """Return cameras evenly spaced around the z axis.

    Args:
      size: width and height of the images in pixels.
      num_views: number of cameras.
      radius: distance from the origin in object units.
      focal: focal length over image width.
      offset: azimuth of the first camera.
      elevation: of all cameras, or of each.
    """
    angle = azimuths(num_views) + offset
    level = np.broadcast_to(elevation, angle.shape)
    across = np.cos(level) if np.any(level) else np.ones_like(angle)
    height = np.sin(level) if np.any(level) else np.zeros_like(angle)
    position = radius * np.stack([across * np.cos(angle), across * np.sin(angle), height], -1)
    return structs.Cameras(
        world_from_cam=look_at(position),
        focal=np.full((num_views, 2), focal * size, np.float32),
        center=np.full((num_views, 2), size / 2, np.float32),
        width=size,
        height=size,
    )


def pixel_rays(cameras: structs.Cameras, pixels: Float[structs.ArrayLike, "v *n 2"]) -> structs.Rays:
    """Return world rays through points of each camera's image.

    Args:
      cameras: v cameras.
      pixels: continuous image points (x, y) per camera; the center of the top-left pixel is (0.5, 0.5).

    Returns:
      Rays of shape ``[v, *n, 3]`` that start at the camera centers.
    """
    expand = (slice(None),) + (None,) * (pixels.ndim - 2)
    focal, center = jnp.asarray(cameras.focal)[expand], jnp.asarray(cameras.center)[expand]
    rotation = jnp.asarray(cameras.world_from_cam)[:, :3, :3]
    origin = jnp.asarray(cameras.world_from_cam)[:, :3, 3][expand]
    direction_cam = jnp.concatenate([(pixels - center) / focal, jnp.ones_like(pixels[..., :1])], -1)
    # Elementwise rather than a matrix product: the latter runs in reduced precision on accelerators.
    direction = (rotation[expand] * direction_cam[..., None, :]).sum(-1)
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    return structs.Rays(origins=jnp.broadcast_to(origin, direction.shape), directions=direction)


@jax.jit
def image_rays(cameras: structs.Cameras) -> structs.Rays:
    """Return rays through every pixel center, shape ``[v, height, width, 3]``."""
    x, y = jnp.meshgrid(jnp.arange(cameras.width) + 0.5, jnp.arange(cameras.height) + 0.5)
    pixels = jnp.broadcast_to(jnp.stack([x, y], -1), (len(cameras), cameras.height, cameras.width, 2))
    return pixel_rays(cameras, pixels)


def opengl_from_opencv(world_from_cam: Float[np.ndarray, "*b 4 4"]) -> Float[np.ndarray, "*b 4 4"]:
    """Turn camera-to-world in OpenCV camera axes to OpenGL axes; its own inverse. For file boundaries only."""
    return np.asarray(world_from_cam, np.float32) @ OPENCV_FROM_OPENGL


def gltf_from_world(points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
    """Return world points (z up, front +x) in glTF axes (y up, front +z): glTF (x, y, z) = world (y, z, x)."""
    return np.asarray(points)[:, [1, 2, 0]]


def world_from_gltf(points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
    """Invert :func:`gltf_from_world`: world (x, y, z) = glTF (z, x, y)."""
    return np.asarray(points)[:, [2, 0, 1]]
