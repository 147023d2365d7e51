"""The camera ring, rays, and every conversion between axis conventions.

The ring is the one of Envision3D (arXiv 2403.08902): 32 cameras at elevation 0, distance 1.5 from the origin, view k
at azimuth ``k * 11.25`` degrees measured from +x toward +y, all looking at the origin with +z up. View 0 is the view of
the input picture. Every fourth view is an *anchor*.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from e3d_jax import structs

NUM_VIEWS = 32
NUM_ANCHORS = 8
ANCHOR_STEP = NUM_VIEWS // NUM_ANCHORS
RADIUS = 1.5
# Focal length over image width: a field of view of 39.6 degrees, which holds a ball of radius 0.5 at distance 1.5.
FOCAL = 1.38906

# Camera axes: OpenCV is (x right, y down, z forward), OpenGL is (x right, y up, z backward).
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0]).astype(np.float32)

ANCHORS = np.arange(0, NUM_VIEWS, ANCHOR_STEP)
# Interpolation windows as (first, middle, last) anchor; window frame j is ring view (4 * first + j) mod 32.
WINDOWS = ((7, 0, 1), (1, 2, 3), (3, 4, 5), (5, 6, 7))
WINDOW_FRAMES = 2 * ANCHOR_STEP + 1


def azimuths(num_views: int = NUM_VIEWS) -> Float[np.ndarray, " v"]:
    """Azimuths of ``num_views`` evenly spaced views in radians, from +x toward +y, starting at 0."""
    return (np.arange(num_views) * (2 * np.pi / num_views)).astype(np.float32)


def anchors_of(num_views: int) -> np.ndarray:
    """The views of a ring that play the anchors: eight, evenly spaced, or all if that is not possible."""
    step = num_views // NUM_ANCHORS if num_views % NUM_ANCHORS == 0 else 1
    return np.arange(0, num_views, step)


def window_views(first_anchor: int) -> np.ndarray:
    """Ring views of the nine frames of the interpolation window that starts at an anchor, int ``[9]``."""
    return (ANCHOR_STEP * first_anchor + np.arange(WINDOW_FRAMES)) % NUM_VIEWS


def look_at(position: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 4 4"]:
    """``world_from_cam`` (OpenCV axes) of cameras at ``position`` that look at the origin with +z up.

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


def ring(size: int, num_views: int = NUM_VIEWS, *, radius: float = RADIUS, offset: float = 0.0) -> structs.Cameras:
    """Cameras evenly spaced on the ring.

    Args:
      size: width and height of the images in pixels.
      num_views: number of cameras; 32 is the full ring, 8 the anchors.
      radius: distance from the origin in object units.
      offset: azimuth of the first camera in radians.
    """
    angle = azimuths(num_views) + offset
    position = radius * np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
    return structs.Cameras(
        world_from_cam=look_at(position),
        focal=np.full((num_views, 2), FOCAL * size, np.float32),
        center=np.full((num_views, 2), size / 2, np.float32),
        width=size,
        height=size,
    )


def pixel_rays(cameras: structs.Cameras, pixels: Float[structs.ArrayLike, "v *n 2"]) -> structs.Rays:
    """World rays through points of each camera's image.

    Args:
      cameras: v cameras.
      pixels: continuous image points (x, y) per camera; the centre of the top-left pixel is (0.5, 0.5).

    Returns:
      Rays of shape ``[v, *n, 3]`` that start at the camera centres.
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
    """Rays through every pixel centre, shape ``[v, height, width, 3]``."""
    x, y = jnp.meshgrid(jnp.arange(cameras.width) + 0.5, jnp.arange(cameras.height) + 0.5)
    pixels = jnp.broadcast_to(jnp.stack([x, y], -1), (len(cameras), cameras.height, cameras.width, 2))
    return pixel_rays(cameras, pixels)


def opengl_from_opencv(world_from_cam: Float[np.ndarray, "*b 4 4"]) -> Float[np.ndarray, "*b 4 4"]:
    """Camera-to-world in OpenGL camera axes from one in OpenCV axes; its own inverse. For file boundaries only."""
    return np.asarray(world_from_cam, np.float32) @ OPENCV_FROM_OPENGL


def gltf_from_world(points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
    """World points (z up, front +x) in glTF axes (y up, front +z): glTF (x, y, z) = world (y, z, x)."""
    return np.asarray(points)[:, [1, 2, 0]]


def world_from_gltf(points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, "p 3"]:
    """Inverse of :func:`gltf_from_world`: world (x, y, z) = glTF (z, x, y)."""
    return np.asarray(points)[:, [2, 0, 1]]
