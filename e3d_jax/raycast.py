"""Ray casting of triangle meshes on the CPU (Embree), with supersampled renders of any value on the surface."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
from embreex import mesh_construction, rtcore_scene
from jaxtyping import Bool, Float, Int

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
Wrap = Literal["repeat", "mirror", "clamp"]
Opacity = Callable[[Hits], Float[np.ndarray, " h"]]

# A ray that is less than this much there goes on no further; nor does one that met the most surfaces.
_FAINT = 1 / 512
_MOST_LAYERS = 256
# How far behind a surface a ray goes on, relative to its distance; far above the precision of single floats.
_BEHIND = 1e-5
# How far behind a face an edge is followed further, relative to its length; above the precision of single floats.
_FOLLOWED = 1e-4


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

    def cast_through(
        self, origins: Float[np.ndarray, "r 3"], directions: Float[np.ndarray, "r 3"], opacity: Opacity
    ) -> tuple[Int[np.ndarray, " h"], Hits, Float[np.ndarray, " h"], Bool[np.ndarray, " h"]]:
        """Return all hits of rays that pass through surfaces, from front to back.

        Args:
          origins: of the rays.
          directions: unit vectors.
          opacity: how much of a ray each hit takes.

        Returns:
          The rays that hit; the hits; how much of the ray each contributes; and which hit stands for its ray, exactly
          one of each ray that hit: the first at which half of the ray is taken, otherwise the one that takes the most.
        """
        count = len(origins)
        rest, best, stands = np.ones(count), np.zeros(count), np.full(count, -1)
        settled, covered = np.zeros(count, bool), np.zeros(count, np.float32)
        alive, total = np.arange(count), 0
        found: list[tuple[np.ndarray, Hits, np.ndarray]] = []
        for _ in range(_MOST_LAYERS):
            starts = origins[alive] + covered[alive, None] * directions[alive]
            hit, hits = self.cast(starts, directions[alive])
            if not len(hit):
                break
            rays = alive[hit]
            hits = dataclasses.replace(hits, depth=hits.depth + covered[rays])
            taken = rest[rays] * opacity(hits)
            rest[rays] -= taken
            seen = taken > 0
            chosen = seen & ~settled[rays] & ((taken > best[rays]) | (rest[rays] <= 0.5))
            number = total + np.cumsum(seen) - 1
            stands[rays[chosen]] = number[chosen]
            best[rays] = np.maximum(best[rays], taken)
            settled[rays] |= rest[rays] <= 0.5
            found.append((rays[seen], _chosen(hits, seen), taken[seen]))
            total += int(seen.sum())
            covered[rays] = hits.depth + _BEHIND * np.maximum(hits.depth, 1)
            alive = rays[rest[rays] > _FAINT]
            if not len(alive):
                break
        if not found:
            none = np.zeros((0, 3), np.float32)
            nothing = Hits(np.zeros(0, np.int64), none, none, none[:, 0])
            return np.zeros(0, np.int64), nothing, none[:, 0], np.zeros(0, bool)
        rays = np.concatenate([each[0] for each in found])
        fields = (field.name for field in dataclasses.fields(Hits))
        hits = Hits(*(np.concatenate([getattr(each[1], field) for each in found]) for field in fields))
        taken = np.concatenate([each[2] for each in found])
        # What is too faint to go on with counts as taken, so that opaque rays are wholly there.
        whole = np.where(rest <= _FAINT, 1 / np.maximum(1 - rest, 0.5), 1.0)
        return rays, hits, taken * whole[rays], stands[rays] == np.arange(total)

    def render(
        self,
        camera: structs.Cameras,
        shade: Shade,
        *,
        supersampling: int,
        opacity: Opacity | None = None,
        blended: int = 0,
    ) -> tuple[Float[np.ndarray, "h w c"], Float[np.ndarray, "h w"]]:
        """Render what one camera sees.

        Args:
          camera: a single camera.
          shade: returns the values of hits.
          supersampling: rays per pixel and axis.
          opacity: how much of a ray each hit takes; all of it when not given.
          blended: number of leading values, such as colors, that are the sum over all surfaces that a ray passes; the
            others are of the one hit that stands for the ray (:meth:`cast_through`).

        Returns:
          The mean value over the rays of each pixel that hit (0 if none does), weighted by how much of each was taken;
          and the fraction of all its rays that was taken.
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
        if opacity is None:
            hit, hits = self.cast(origins, directions)
            weight, of_ray = None, None
        else:
            hit, hits, weight, stands = self.cast_through(origins, directions, opacity)
            of_ray = np.bincount(hit, weight, minlength=len(origins))[hit] * stands
        row, column = np.divmod(hit, columns.stop - columns.start)
        pixel = (row + rows.start) // supersampling * camera.width + (column + columns.start) // supersampling
        values = shade(hits)
        count = np.bincount(pixel, weight, minlength=camera.width * camera.height)
        if weight is None or of_ray is None:
            sums = [np.bincount(pixel, channel, minlength=len(count)) for channel in values.T]
        else:
            weights = [weight if at < blended else of_ray for at in range(values.shape[1])]
            sums = [
                np.bincount(pixel, channel * each, minlength=len(count))
                for channel, each in zip(values.T, weights, strict=True)
            ]
        means = np.stack(sums, -1) / np.where(count > 0, count, 1)[:, None]
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
    image: Float[np.ndarray, "h w c"], uv: Float[np.ndarray, "n 2"], *, wrap: bool | tuple[Wrap, Wrap] = False
) -> Float[np.ndarray, "n c"]:
    """Sample a texture bilinearly; (0, 0) is the lower left corner of the image (the upper left in glTF files).

    Outside [0, 1], the image repeats with ``wrap``, otherwise its border continues; or as ``wrap`` says along u and v.
    """
    height, width = image.shape[:2]
    both: Wrap = "repeat" if wrap else "clamp"
    across, along = (both, both) if isinstance(wrap, bool) else wrap
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    out = np.zeros((len(uv), image.shape[2]), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - right - (x - column)) * np.abs(1 - down - (y - row))
            j, i = _wrapped(row + down, height, along), _wrapped(column + right, width, across)
            out += weight[:, None] * image[j, i]
    return out


def _wrapped(index: Int[np.ndarray, " n"], size: int, wrap: Wrap) -> Int[np.ndarray, " n"]:
    if wrap == "repeat":
        return index % size
    if wrap == "mirror":
        index = index % (2 * size)
        return np.minimum(index, 2 * size - 1 - index)
    return index.clip(0, size - 1)


def _chosen(hits: Hits, which: np.ndarray) -> Hits:
    return Hits(hits.face[which], hits.weights[which], hits.directions[which], hits.depth[which])


def intersecting(vertices: Float[np.ndarray, "p 3"], faces: Int[np.ndarray, "f 3"]) -> Bool[np.ndarray, " f"]:
    """Return which faces cross others, in single precision: of two that do, an edge of one goes through the other.

    Faces that share a vertex may touch there.
    """
    corners = np.asarray(vertices)[faces].reshape(-1, 3)
    surface = Surface(corners, np.arange(len(corners)).reshape(-1, 3))
    ends = np.stack([faces, np.roll(faces, -1, axis=1)], -1).reshape(-1, 2)
    _, first, number = np.unique(np.sort(ends, axis=1), axis=0, return_index=True, return_inverse=True)
    ends, start = ends[first], corners[first]
    offset = np.roll(corners.reshape(-1, 3, 3), -1, axis=1).reshape(-1, 3)[first] - start
    length = np.linalg.norm(offset, axis=-1)
    along, goes_through, is_met = np.zeros_like(length), np.zeros(len(ends), bool), np.zeros(len(faces), bool)
    edge = np.flatnonzero(length)
    while len(edge):
        direction = offset[edge] / length[edge, None]
        along[edge] += _FOLLOWED * length[edge]
        hit, hits = surface.cast(start[edge] + along[edge, None] * direction, direction)
        edge = edge[hit]
        along[edge] += hits.depth
        within = along[edge] < length[edge]
        edge, face = edge[within], hits.face[within]
        apart = (faces[face][:, :, None] != ends[edge][:, None, :]).all((1, 2))
        is_met[face[apart]] = goes_through[edge[apart]] = True
    return is_met | goes_through[number.reshape(-1, 3)].any(1)
