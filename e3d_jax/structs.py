"""The values that stages pass to each other, and the letters that name their axes.

Axis letters, used in every shape of this project:

    b  batch                    h w  image or latent height, width
    d  domain (color, normal)   c    channels (always last)
    v  views of one object      n    tokens of a sequence
    t  frames of a window       r    rays;  s  samples along a ray

Frames of reference: *world* is z-up, right-handed, in object units (the object's farthest point is 0.5 from the
origin); *cam* has OpenCV axes (x right, y down, z forward). A transform is named after both: ``world_from_cam``.
Images in memory are float32 in [0, 1] with straight (not premultiplied) alpha; see :mod:`e3d_jax.cameras` for rays.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

ArrayLike = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Pinhole cameras that share one image size.

    Attributes:
      world_from_cam: poses, OpenCV axes in object units.
      focal: focal lengths (x, y) in pixels.
      center: principal points (x, y) in pixels; the image center is (width / 2, height / 2).
      width: image width in pixels.
      height: image height in pixels.
    """

    world_from_cam: Float[Any, "*b v 4 4"]
    focal: Float[Any, "*b v 2"]
    center: Float[Any, "*b v 2"]
    width: int = dataclasses.field(metadata={"static": True})
    height: int = dataclasses.field(metadata={"static": True})

    def __len__(self) -> int:
        return self.world_from_cam.shape[0]

    def __getitem__(self, views) -> "Cameras":
        """Return the cameras of a slice or an index array."""
        return dataclasses.replace(
            self, world_from_cam=self.world_from_cam[views], focal=self.focal[views], center=self.center[views]
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rays:
    """Rays in the world frame.

    Attributes:
      origins: starting points, object units.
      directions: unit vectors.
    """

    origins: Float[ArrayLike, "*rays 3"]
    directions: Float[ArrayLike, "*rays 3"]


@dataclasses.dataclass(frozen=True)
class ViewSet:
    """Posed images of one object: the output of sampling and the input of reconstruction.

    Attributes:
      rgba: color and coverage of every view, [0, 1], straight alpha.
      cameras: one camera per view.
      normal_views: indices of the views that have a normal map; increasing.
      normals: maps of outward unit normals in the world frame, one per ``normal_views``; zero where unknown.
      anchors: indices of the views that the anchor stage generated; the others were interpolated. Reconstruction
        trusts the anchors most.
    """

    rgba: Float[np.ndarray, "v h w 4"]
    cameras: Cameras
    normal_views: Int[np.ndarray, " a"]
    normals: Float[np.ndarray, "a h w 3"]
    anchors: Int[np.ndarray, " k"]


@dataclasses.dataclass(frozen=True)
class Photo:
    """A posed image of a size of its own.

    Attributes:
      rgba: color and coverage, [0, 1], straight alpha.
      camera: a single camera.
    """

    rgba: Float[np.ndarray, "h w 4"]
    camera: Cameras


@dataclasses.dataclass(frozen=True)
class Texture:
    """An image wrapped around a mesh.

    Attributes:
      image: display-encoded (sRGB) RGB in [0, 1]; row 0 is the top.
      corner_uv: points of the image for the corners of each face, in [0, 1]; (0, 0) is the lower left corner. Stored
        per corner, so that the mesh stays welded along the seams of the texture.
    """

    image: Float[np.ndarray, "h w 3"]
    corner_uv: Float[np.ndarray, "f 3 2"]


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A triangle mesh in the world frame; faces are counterclockwise seen from outside.

    Attributes:
      vertices: positions in object units.
      faces: vertex indices.
      colors: vertex colors, display-encoded (sRGB) RGB in [0, 1].
      texture: finer colors than those of the vertices, if any.
    """

    vertices: Float[np.ndarray, "p 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: Float[np.ndarray, "p 3"]
    texture: Texture | None = None
