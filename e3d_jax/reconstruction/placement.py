"""Where the object is in the coordinates of posed views, at any scale and offset.

The fit works in a cube of fixed size around the origin. Views whose object lies there are used without a change. For
others, the box around the visual hull of the silhouettes is moved into the cube, and the mesh is moved back.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from e3d_jax import structs
from e3d_jax.reconstruction import fields, hull

# An object that appears smaller than this from all sides, in object units, is enlarged.
SMALLEST = 0.15
# Half the longest side of a box that was found, in object units.
HALF_SIDE = 0.5
ROUNDS = 6
# Smallest spread of the viewing directions (at most 1/3) from which distances can be found.
SPREAD = 1e-3


@dataclasses.dataclass(frozen=True)
class Placement:
    """Coordinates of the views from object units: ``center + scale * x``."""

    center: Float[np.ndarray, "3"]
    scale: float

    def views(self, views: structs.ViewSet) -> structs.ViewSet:
        """Return the views with their cameras in object units."""
        return dataclasses.replace(views, cameras=self.cameras(views.cameras))

    def cameras(self, cams: structs.Cameras) -> structs.Cameras:
        """Return cameras in object units."""
        pose = np.array(cams.world_from_cam, np.float64)
        pose[:, :3, 3] = (pose[:, :3, 3] - self.center) / self.scale
        return dataclasses.replace(cams, world_from_cam=pose.astype(np.float32))

    def mesh(self, mesh: structs.Mesh) -> structs.Mesh:
        """Return a mesh of object units in the coordinates of the views."""
        vertices = np.asarray(mesh.vertices, np.float64) * self.scale + self.center
        return dataclasses.replace(mesh, vertices=vertices.astype(np.float32))


def find(views: structs.ViewSet, *, half_extent: float, votes: int) -> Placement | None:
    """Return where the object is; None if it is where the fit looks for it, at a size that the fit can resolve.

    Args:
      views: with poses in any units, of type float64 if they are far from the origin.
      half_extent: the fit works in the cube from ``-half_extent`` to ``half_extent``.
      votes: number of views that may be wrong.

    Raises:
      ValueError: the silhouettes do not say where the object is.
    """
    alpha, cams = views.rgba[..., 3], views.cameras
    pose = np.asarray(cams.world_from_cam, np.float64)
    if not np.isfinite(pose).all() or not (alpha > 0.5).any():
        return None  # Refused by the fit, in better words.
    rays = [_silhouette_rays(alpha[view], cams, view) for view in range(len(alpha))]
    origins = pose[:, :3, 3]
    wide = [_reach(origins[view], rays[view], np.zeros(3)) for view in range(len(alpha)) if len(rays[view])]
    if max(wide) >= SMALLEST and (
        _frames_within(cams, half_extent) or _hull_within(alpha, cams, half_extent=half_extent, votes=votes)
    ):
        return None
    center = _nearest_point(origins, rays)
    scale = max(_reach(origins[view], rays[view], center) for view in range(len(alpha)) if len(rays[view])) / HALF_SIDE
    found = Placement(center, float(scale))
    for _ in range(ROUNDS):
        _, box = hull.carve(alpha, found.cameras(cams), half_extent=half_extent, cells=32, votes=votes)
        side = float((box[1] - box[0]).max()) / 2
        cut = (np.abs(box) > half_extent - 1e-6).any()
        moved = Placement(found.center + found.scale * box.mean(0), found.scale * (1.6 if cut else side / HALF_SIDE))
        settled = not cut and 0.8 < side / HALF_SIDE < 1.1 and np.abs(box.mean(0)).max() < 0.05
        if settled:
            return moved
        found = moved
    return found


def _silhouette_rays(alpha: Float[np.ndarray, "h w"], cams: structs.Cameras, view: int) -> Float[np.ndarray, "n 3"]:
    """Return the directions, in the world, of the outermost pixels of a silhouette in each row and column."""
    inside = alpha > 0.5
    edge = inside & ~(np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1))
    row, column = np.nonzero(edge)
    pixel = (np.stack([column, row], -1) + 0.5 - np.asarray(cams.center)[view]) / np.asarray(cams.focal)[view]
    directions = np.concatenate([pixel, np.ones((len(pixel), 1))], -1)
    directions = directions @ np.asarray(cams.world_from_cam, np.float64)[view, :3, :3].T
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def _frames_within(cams: structs.Cameras, half_extent: float) -> bool:
    """Return whether all cameras look at the origin and no image reaches past the cube there."""
    pose = np.asarray(cams.world_from_cam, np.float64)
    focal, center = np.asarray(cams.focal), np.asarray(cams.center)
    size = np.array([cams.width, cams.height])
    middle = -np.einsum("vji,vj->vi", pose[:, :3, :3], pose[:, :3, 3])
    if (middle[:, 2] <= 0).any():
        return False
    sides = np.stack([-center, size - center]) / focal * middle[:, 2:] - middle[:, :2]
    return bool((np.abs(sides) <= half_extent).all())


def _hull_within(alpha: Float[np.ndarray, "v h w"], cams: structs.Cameras, *, half_extent: float, votes: int) -> bool:
    """Return whether the hull, searched for in a cube of twice the size, lies within the cube."""
    cams = dataclasses.replace(cams, world_from_cam=np.asarray(cams.world_from_cam, np.float32))
    try:
        base, box = hull.carve(alpha, cams, half_extent=2 * half_extent, cells=32, votes=votes)
    except ValueError:
        return False  # The object is further away, or nowhere.
    solid = np.asarray(fields.lattice(box, base.shape))[base < 0]
    return bool((np.abs(solid) <= half_extent).all())


def _reach(origin: np.ndarray, rays: Float[np.ndarray, "n 3"], point: np.ndarray) -> float:
    """Return the largest distance of rays from a point."""
    offset = point - origin
    return float(np.linalg.norm(np.cross(rays, offset), axis=-1).max())


def _nearest_point(origins: Float[np.ndarray, "v 3"], rays: list[np.ndarray]) -> np.ndarray:
    """Return the point that is nearest to the lines through the middles of the silhouettes.

    Raises:
      ValueError: the lines are parallel or nearly so, or the point is behind the cameras.
    """
    seen = [view for view, found in enumerate(rays) if len(found)]
    middle = np.stack([(rays[view].min(0) + rays[view].max(0)) / 2 for view in seen])
    middle /= np.linalg.norm(middle, axis=-1, keepdims=True)
    across = np.eye(3) - middle[:, :, None] * middle[:, None]
    weights = np.ones(len(seen))
    for _ in range(5):  # Lines far from the point count less.
        system = (weights[:, None, None] * across).sum(0)
        if np.linalg.eigvalsh(system / weights.sum())[0] < SPREAD:
            raise ValueError(
                f"the {len(seen)} views look from nearly one direction, so the place of the object cannot be found; "
                "give views from more sides, or move and scale the poses so that it lies within 0.5 of the origin"
            )
        point = np.linalg.solve(system, (weights[:, None, None] * across @ origins[seen][:, :, None]).sum(0))[:, 0]
        distance = np.linalg.norm((across @ (point - origins[seen])[:, :, None])[..., 0], axis=-1)
        weights = 1 / (distance + np.median(distance) + 1e-12)
    if (((point - origins[seen]) * middle).sum(-1) <= 0).mean() > 0.5:
        raise ValueError(
            "the silhouettes meet behind the cameras; check the axes of the poses, which are camera-to-world with "
            "OpenGL axes (the camera looks along -z)"
        )
    return point
