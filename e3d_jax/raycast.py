"""Ray casting of triangle meshes on the CPU (Embree), with supersampled renders of any value on the surface."""

import dataclasses
from collections.abc import Callable

import numpy as np
from embreex import mesh_construction, rtcore_scene
from jaxtyping import Float, Int

from e3d_jax import cameras, structs


@dataclasses.dataclass(frozen=True)
class Hits:
    """The first intersections of h rays with a surface.

    Attributes:
      face: index of the triangle.
      weights: barycentric coordinates in the triangle, for its first, second and third corner.
      directions: unit directions of the rays.
      depth: distance from the rays' origins, object units.
    """

    face: Int[np.ndarray, " h"]
    weights: Float[np.ndarray, "h 3"]
    directions: Float[np.ndarray, "h 3"]
    depth: Float[np.ndarray, " h"]


Shade = Callable[[Hits], Float[np.ndarray, "h c"]]


class Surface:
    """Triangles in the world frame, prepared for ray casting."""

    def __init__(self, vertices: Float[np.ndarray, "p 3"], faces: Int[np.ndarray, "f 3"]):
        self._corners = np.asarray(vertices, np.float32)
        self._scene = rtcore_scene.EmbreeScene()
        mesh_construction.TriangleMesh(self._scene, self._corners, np.ascontiguousarray(faces, np.int32))

    def cast(
        self, origins: Float[np.ndarray, "r 3"], directions: Float[np.ndarray, "r 3"]
    ) -> tuple[Int[np.ndarray, " h"], Hits]:
        """Return the indices of the rays that hit the surface, and the hits; ``directions`` are unit vectors."""
        directions = np.ascontiguousarray(directions, np.float32)
        result = self._scene.run(np.ascontiguousarray(origins, np.float32), directions, output=True)
        rays = np.flatnonzero(result["primID"] >= 0)
        u, v = result["u"][rays], result["v"][rays]
        weights = np.stack([1 - u - v, u, v], -1).clip(0, 1)
        return rays, Hits(result["primID"][rays], weights, directions[rays], result["tfar"][rays])

    def render(
        self, camera: structs.Cameras, shade: Shade, *, supersampling: int
    ) -> tuple[Float[np.ndarray, "h w c"], Float[np.ndarray, "h w"]]:
        """Render what one camera sees.

        Args:
          camera: a single camera.
          shade: returns the values of hits.
          supersampling: rays per pixel and axis.

        Returns:
          The mean value over the rays of each pixel that hit (0 if none does), and the fraction of rays that hit.
        """
        fine = dataclasses.replace(
            camera,
            focal=np.asarray(camera.focal) * supersampling,
            center=np.asarray(camera.center) * supersampling,
            width=camera.width * supersampling,
            height=camera.height * supersampling,
        )
        columns, rows = self._window(fine, 0), self._window(fine, 1)
        rays = cameras.image_rays(fine)
        origins, directions = (
            np.asarray(part)[0, rows, columns].reshape(-1, 3) for part in (rays.origins, rays.directions)
        )
        hit, hits = self.cast(origins, directions)
        row, column = np.divmod(hit, columns.stop - columns.start)
        pixel = (row + rows.start) // supersampling * camera.width + (column + columns.start) // supersampling
        values = shade(hits)
        count = np.bincount(pixel, minlength=camera.width * camera.height)
        sums = [np.bincount(pixel, channel, minlength=len(count)) for channel in values.T]
        means = np.stack(sums, -1) / np.maximum(count, 1)[:, None]
        shape = (camera.height, camera.width)
        return means.reshape(*shape, -1).astype(np.float32), (count / supersampling**2).reshape(shape).astype(
            np.float32
        )

    def _window(self, camera, axis):
        """Return the columns (axis 0) or rows (axis 1) of pixels that can see the surface."""
        size = (camera.width, camera.height)[axis]
        pose = np.asarray(camera.world_from_cam)[0]
        local = (self._corners - pose[:3, 3]) @ pose[:3, :3]
        if local[:, 2].min() <= 1e-3:
            return slice(0, size)  # It reaches behind the camera, where projections are meaningless.
        at = local[:, axis] / local[:, 2] * np.asarray(camera.focal)[0, axis] + np.asarray(camera.center)[0, axis]
        return slice(min(size, max(0, int(at.min()) - 1)), min(size, max(0, int(at.max()) + 2)))


def corner_values(values: Float[np.ndarray, "h 3 c"], hits: Hits) -> Float[np.ndarray, "h c"]:
    """Interpolate values at hits from those at the three corners of each triangle."""
    return np.einsum("hkc,hk->hc", values, hits.weights)


def sample_texture(
    image: Float[np.ndarray, "h w c"], uv: Float[np.ndarray, "n 2"], *, wrap: bool = False
) -> Float[np.ndarray, "n c"]:
    """Sample a texture bilinearly; (0, 0) is the lower left corner of the image (the upper left in glTF files).

    Outside [0, 1], the image repeats with ``wrap``, otherwise its border continues.
    """
    height, width = image.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    out = np.zeros((len(uv), image.shape[2]), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - right - (x - column)) * np.abs(1 - down - (y - row))
            j, i = row + down, column + right
            j, i = (j % height, i % width) if wrap else (j.clip(0, height - 1), i.clip(0, width - 1))
            out += weight[:, None] * image[j, i]
    return out
