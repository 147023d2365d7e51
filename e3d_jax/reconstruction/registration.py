"""Where a picture was taken from: its camera relative to a mesh, found by silhouette and color.

The azimuth is given. Elevation, field of view, roll, size, and place in the picture are searched for, unless they are
given too: first on a grid of elevations and fields of view, at which size and place follow from the bounding boxes of
the silhouettes, then by least squares on the differences of coverage and color. Colors are compared up to a linear
change of each channel, because a picture may be lit or exposed otherwise.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float
from scipy import ndimage, spatial
from scipy.spatial import transform

from e3d_jax import cameras, images, raycast, structs

LARGEST = 1024  # width of pictures in pixels
# Degrees, of the grid: what people take pictures from, and models learn. From straight above, a box looks as from its
# front, and better if its front is drawn inexactly.
ELEVATIONS = np.arange(-24.0, 61.0, 4.0)
FOVS = (18.0, 32.0, 50.0)  # degrees, of the crop; of the grid
COARSE, MIDDLE, FINE = 64, 64, 128  # widths of the images that are compared, in pixels
STARTS = 4  # cells of the grid that are refined
USUAL_FOV, FOV_SPREAD = 36.0, 0.5  # degrees, of the crop; spread of the logarithm
ROLL_SPREAD = 6.0  # degrees
GAINS = 0.5, 2.0  # of colors
COLOR_WEIGHT = 1.0  # of a difference of colors, relative to one of coverage
MOST_DIFFERENT = 0.22  # of a picture and the mesh that it shows, see Found.difference
DARK = 0.05  # added to mean colors, since those of dark objects have no tint
# Elevation (degrees), roll (degrees), logarithms of focal length and of size, and place (fractions of the side), over
# steps that change an image about equally.
UNITS = np.array([2.0, 1.0, 0.1, 0.01, 0.01, 0.01])
STEP, SETTLED = 0.5, 0.05  # of finite differences, and below which a change ends the search, in steps
LOWEST = np.array([-30.0, -25.0, math.log(0.4), -3.0, -1.0, -1.0])
HIGHEST = np.array([65.0, 25.0, math.log(12.0), 3.0, 2.0, 2.0])


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the object, cropped around it.

    Attributes:
      rgba: the square crop, straight alpha.
      azimuth: of its camera in degrees.
      frame: where the left, top, right, and bottom side of the whole picture are, in pixels of the crop. The optical
        axis is in its middle.
      elevation: of its camera in degrees; None if unknown.
      fov: horizontal field of view of the whole picture in degrees; None if unknown.
    """

    rgba: Float[np.ndarray, "s s 4"]
    azimuth: float
    frame: tuple[float, float, float, float]
    elevation: float | None = None
    fov: float | None = None


def cropped(
    whole: Float[np.ndarray, "h w 4"],
    box: tuple[float, float, float],
    azimuth: float,
    *,
    elevation: float | None = None,
    fov: float | None = None,
) -> Picture:
    """Return the part of a picture in a square (left, top, side), in its own resolution up to ``LARGEST`` pixels."""
    left, top, side = box
    size = min(math.ceil(side), LARGEST)
    scale = size / side
    height, width = whole.shape[:2]
    frame = (-left * scale, -top * scale, (width - left) * scale, (height - top) * scale)
    return Picture(images.crop(whole, box, size), azimuth, frame, elevation, fov)


@dataclasses.dataclass(frozen=True)
class Found:
    """The camera of a picture.

    Attributes:
      camera: of the crop.
      elevation: degrees.
      fov: horizontal field of view of the whole picture in degrees.
      roll: clockwise turn of the camera about its axis in degrees.
      agreement: intersection over union of the silhouettes of picture and mesh, within the picture.
      difference: the diameter of the largest disk that only one of the silhouettes covers, over the square root of the
        area of the picture's; plus half the distance of the mean colors of what both cover, scaled to length 1. Another
        object differs by whole regions, an inexact mesh by strips, whose area is large only if the object is thin.
      used: whether the mesh was fitted and painted with the picture.
    """

    camera: structs.Cameras
    elevation: float
    fov: float
    roll: float
    agreement: float
    difference: float
    used: bool = False

    @property
    def distance(self) -> float:
        """Distance of the camera from the origin in object units."""
        return float(np.linalg.norm(np.asarray(self.camera.world_from_cam)[0, :3, 3]))

    @property
    def scale(self) -> float:
        """Pixels of the crop per object unit at the origin."""
        return float(np.asarray(self.camera.focal)[0, 0]) / self.distance


def find(mesh: structs.Mesh, picture: Picture) -> Found:
    """Return the camera from which the mesh looks most like the picture.

    Args:
      mesh: with vertex colors.
      picture: of at least 16 px.
    """
    search = _Search(mesh, picture)
    grid = search.grid()
    ranked = sorted(grid, key=lambda values: search.cost(values, COARSE))
    refined = [search.refine(values, MIDDLE, 12) for values in _apart(ranked)[:STARTS]]
    best = search.refine(min(refined, key=lambda values: search.cost(values, FINE)), FINE, 12)
    return search.found(best)


def compare(mesh: structs.Mesh, picture: Picture, camera: structs.Cameras) -> tuple[float, float]:
    """Return agreement and difference (see :class:`Found`) of a mesh and a picture with a known camera."""
    return _Search(mesh, picture).compare(_resized(camera, FINE))


def _apart(ranked: list[np.ndarray]) -> list[np.ndarray]:
    """Return the values whose elevations and focal lengths are not neighbors of better ones."""
    kept: list[np.ndarray] = []
    for values in ranked:
        if all(abs(values[0] - other[0]) > 9 or abs(values[2] - other[2]) > 0.7 for other in kept):
            kept.append(values)
    return kept


class _Search:
    """A mesh and a picture to be compared.

    Cameras are six values, see ``UNITS``; size is that of an object unit at the origin, as a fraction of the side.
    """

    def __init__(self, mesh: structs.Mesh, picture: Picture):
        self._picture, self._side = picture, len(picture.rgba)
        self._surface = raycast.Surface(mesh.vertices, mesh.faces)
        self._colors = mesh.colors[mesh.faces]
        used = mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
        self._corners = used[spatial.ConvexHull(used).vertices]
        left, top, right, bottom = np.array(picture.frame) / self._side
        self._axis, self._width = np.array([(left + right) / 2, (top + bottom) / 2]), right - left
        self._targets: dict[int, np.ndarray] = {}
        row, column = np.nonzero(picture.rgba[..., 3] > 0.5)
        self._box = np.array([[column.min(), row.min()], [column.max() + 1, row.max() + 1]]) / self._side

    def grid(self) -> list[Float[np.ndarray, "6"]]:
        """Return cameras at which the bounding boxes of the silhouettes agree."""
        given = self._picture
        levels = ELEVATIONS if given.elevation is None else [given.elevation]
        focal = [0.5 / math.tan(math.radians(fov) / 2) for fov in FOVS]
        focal = focal if given.fov is None else [self._width / 2 / math.tan(math.radians(given.fov) / 2)]
        return [self._framed(float(level), math.log(each)) for level in levels for each in focal]

    def _framed(self, level: float, focal: float) -> Float[np.ndarray, "6"]:
        middle, extent = self._box.mean(0), np.ptp(self._box, axis=0)
        values = np.array([level, 0.0, focal, math.log(extent.max()), *middle])
        for _ in range(4):
            at = self._project(values)
            shown = np.stack([at.min(0), at.max(0)])
            values[3] += np.log(extent / np.ptp(shown, axis=0)).mean()
            values[4:] += middle - shown.mean(0)
        return values

    def _project(self, values) -> Float[np.ndarray, "n 2"]:
        camera = self.camera(values, 1)
        pose = np.asarray(camera.world_from_cam, np.float64)[0]
        cam = (self._corners - pose[:3, 3]) @ pose[:3, :3]
        return cam[:, :2] / np.maximum(cam[:, 2:], 1e-3) * np.asarray(camera.focal) + np.asarray(camera.center)

    def camera(self, values: Float[np.ndarray, "6"], size: int) -> structs.Cameras:
        """Return a camera for a crop of ``size`` pixels."""
        level, roll, focal, scale, *place = values
        away = math.exp(focal - scale)
        azimuth, level = math.radians(self._picture.azimuth), math.radians(level)
        across = math.cos(level)
        toward = np.array([across * math.cos(azimuth), across * math.sin(azimuth), math.sin(level)])
        pose = cameras.look_at(toward).astype(np.float64)
        # The optical axis is turned away from the origin, which is seen at its place in the picture.
        ray = np.append((np.array(place) - self._axis) / math.exp(focal), 1.0)
        ray /= np.linalg.norm(ray)
        bend = np.cross([0, 0, 1], ray)
        length = float(np.linalg.norm(bend))
        bend *= math.asin(min(length, 1.0)) / max(length, 1e-12)
        turned = transform.Rotation.from_euler("z", roll, degrees=True) * transform.Rotation.from_rotvec(-bend)
        pose[:3, :3] = pose[:3, :3] @ turned.as_matrix()
        pose[:3, 3] = away * toward
        return structs.Cameras(
            world_from_cam=pose[None].astype(np.float32),
            focal=np.full((1, 2), math.exp(focal) * size, np.float32),
            center=(self._axis * size)[None].astype(np.float32),
            width=size,
            height=size,
        )

    def _render(self, camera: structs.Cameras) -> tuple[np.ndarray, np.ndarray]:
        return self._surface.render(
            camera, lambda hits: raycast.corner_values(self._colors[hits.face], hits), supersampling=2
        )

    def _target(self, size: int) -> tuple[Float[np.ndarray, "h w 4"], Float[np.ndarray, "h w"]]:
        """Return the crop at a size, and which pixels of it are within the picture."""
        if size not in self._targets:
            left, top, right, bottom = np.array(self._picture.frame) * size / self._side
            at = np.arange(size) + 0.5
            within = ((at > top) & (at < bottom))[:, None] & ((at > left) & (at < right))
            shown = images.crop(self._picture.rgba, (0.0, 0.0, float(self._side)), size)
            self._targets[size] = np.concatenate([shown, within[..., None]], -1)
        target = self._targets[size]
        return target[..., :4], target[..., 4]

    def residuals(self, values: Float[np.ndarray, "6"], size: int) -> Float[np.ndarray, " n"]:
        """Return differences of coverage and of color, as fractions of the object, and those from usual cameras."""
        target, within = self._target(size)
        color, alpha = self._render(self.camera(values, size))
        shared = (alpha * target[..., 3] * within)[..., None]
        total = math.sqrt((target[..., 3] * within).sum())
        off = np.sqrt(shared) * (_matched(color, target[..., :3], shared) - target[..., :3])
        usual = np.array(
            [
                (values[2] - math.log(0.5 / math.tan(math.radians(USUAL_FOV) / 2))) / FOV_SPREAD,
                values[1] / ROLL_SPREAD,
            ]
        )
        parts = (alpha - target[..., 3]) * within, COLOR_WEIGHT * off
        return np.concatenate([*(part.ravel() / total for part in parts), 0.02 * usual])

    def cost(self, values: Float[np.ndarray, "6"], size: int) -> float:
        """Return the sum of squared residuals."""
        return float((self.residuals(values, size) ** 2).sum())

    def refine(self, values: Float[np.ndarray, "6"], size: int, rounds: int) -> Float[np.ndarray, "6"]:
        """Return the values of least cost near the given ones (Levenberg and Marquardt); given angles are kept."""
        free = np.array([self._picture.elevation is None, True, self._picture.fov is None, True, True, True])
        steps = STEP * np.diag(UNITS)[free]
        here, damping = self.residuals(values, size), 0.01
        for _ in range(rounds):
            slope = np.stack([self.residuals(values + step, size) - here for step in steps], -1)
            square, toward = slope.T @ slope, slope.T @ here
            for _ in range(3):
                change = np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-9), toward)
                moved = np.where(free, np.clip(values - change @ steps, LOWEST, HIGHEST), values)
                there = self.residuals(moved, size)
                if (there**2).sum() < (here**2).sum():
                    break
                damping *= 10
            else:
                break
            settled = np.abs(change).max() < SETTLED
            values, here, damping = moved, there, damping / 10
            if settled:
                break
        return values

    def compare(self, camera: structs.Cameras) -> tuple[float, float]:
        """Return agreement and difference, see :class:`Found`."""
        target, within = self._target(camera.width)
        color, alpha = self._render(camera)
        shown, seen = (each * within for each in (alpha, target[..., 3]))
        shared = np.minimum(shown, seen)
        agreement = float(shared.sum() / max(np.maximum(shown, seen).sum(), 1e-9))
        alone = np.pad(np.abs(shown - seen) > 0.5, 1)
        widest = 2 * ndimage.distance_transform_edt(alone).max() / math.sqrt(max(seen.sum(), 1.0))
        tints = [(shared[..., None] * each).sum((0, 1)) + DARK * shared.sum() for each in (color, target[..., :3])]
        ours, theirs = (tint / max(np.linalg.norm(tint), 1e-9) for tint in tints)
        return agreement, float(widest + np.linalg.norm(ours - theirs) / 2)

    def found(self, values: Float[np.ndarray, "6"]) -> Found:
        """Return a camera with its angles."""
        fov = math.degrees(2 * math.atan(self._width / 2 / math.exp(values[2])))
        agreement, difference = self.compare(self.camera(values, FINE))
        return Found(
            camera=self.camera(values, self._side),
            elevation=float(values[0]) if self._picture.elevation is None else self._picture.elevation,
            fov=fov if self._picture.fov is None else self._picture.fov,
            roll=float(values[1]),
            agreement=agreement,
            difference=difference,
        )


def _matched(
    color: Float[np.ndarray, "h w 3"], target: Float[np.ndarray, "h w 3"], weights: Float[np.ndarray, "h w 1"]
) -> Float[np.ndarray, "h w 3"]:
    """Return colors after the linear change of each channel that brings them closest to others."""
    total = weights.sum() + 1e-9
    mean, aim = ((weights * each).sum((0, 1)) / total for each in (color, target))
    off, wanted = color - mean, target - aim
    # Drawn toward no change, so that plain surfaces keep theirs.
    slack = 0.03**2 * total
    gain = ((weights * off * wanted).sum((0, 1)) + slack) / ((weights * off**2).sum((0, 1)) + slack)
    return gain.clip(*GAINS) * off + aim


def _resized(camera: structs.Cameras, size: int) -> structs.Cameras:
    """Return the camera of the same crop at another size."""
    return cameras.cropped(camera, np.zeros((1, 2), np.float32), np.array([camera.width], np.float32), size)
