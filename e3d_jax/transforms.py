"""The file ``transforms.json`` of NeRF, nerfstudio and instant-ngp: one frame per image, checked, with its camera."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from e3d_jax import colmap, lens

TRANSFORMS = "transforms.json"
# Entries that say how long the focal length is: in pixels, or by the field of view in radians or degrees.
FOCAL = tuple(name.format(axis) for axis in "xy" for name in ("fl_{}", "camera_angle_{}", "{}_fov"))
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of the file.

    Attributes:
      name: of the image, relative to the folder.
      mask: of an image of the object's silhouette, if it has one.
      normals: of its normal map, if it has one.
      pose: camera-to-world, OpenGL camera axes.
      known: all entries that describe its camera; its own before those of the whole file.
      lens: distortion of the image; None without.
    """

    name: str
    mask: str | None
    normals: str | None
    pose: Float[np.ndarray, "4 4"]
    known: Mapping[str, Any]
    lens: lens.Lens | None

    def intrinsics(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return focal lengths (x, y) and principal point (x, y) of the camera, in pixels.

        Raises:
          ValueError: there is no focal length, or a value is not finite and positive.
        """
        known = self.known

        def focal(axis: str, pixels: int) -> float | None:
            if (length := known.get(f"fl_{axis}")) is not None:
                return float(length)
            angle, degrees = known.get(f"camera_angle_{axis}"), known.get(f"{axis}_fov")
            if angle is None and degrees is not None:
                angle = math.radians(float(degrees))
            return pixels / 2 / math.tan(float(angle) / 2) if angle is not None else None

        fl_x, fl_y = focal("x", width), focal("y", height)
        first = fl_x if fl_x is not None else fl_y
        if first is None:
            raise ValueError("has neither fl_x nor camera_angle_x, so the focal length is unknown")
        center = (known.get(name) for name in ("cx", "cy"))
        cx, cy = (
            float(given) if given is not None else n / 2 for given, n in zip(center, (width, height), strict=True)
        )
        values = (first, fl_y if fl_y is not None else first, cx, cy)
        if not np.isfinite(values).all() or min(values[:2]) <= 0:
            raise ValueError("has focal lengths or principal points that are not finite and positive")
        return values


def read(folder: pathlib.Path) -> tuple[pathlib.Path, list[Frame]]:
    """Return the path and the frames of a folder's ``transforms.json`` or, without one, of its model of COLMAP.

    Raises:
      OSError: there is neither, or it cannot be read.
      ValueError: it is malformed, lists images that are missing, or has a camera that is not supported.
    """
    path = folder / TRANSFORMS
    if path.is_file():
        try:
            contents = json.loads(path.read_bytes())  # Bytes may begin with a byte-order mark.
        except ValueError as error:
            raise ValueError(f"{path} is malformed: {type(error).__name__}: {error}") from error
    elif (model := colmap.find(folder)) is not None:
        path, contents = model, colmap.read(folder, model)
    else:
        raise FileNotFoundError(
            f"{folder} is not a folder of views: it has no {TRANSFORMS}; add it, or give another folder"
        )
    try:
        entries = contents["frames"]
        shared = {name: value for name, value in contents.items() if name != "frames"}
        frames = [_frame(folder, path, number, shared, entry) for number, entry in enumerate(entries)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is malformed: {type(error).__name__}: {error}") from error
    if not frames:
        raise ValueError(f"{path} lists no frames")
    return path, frames


def _frame(folder: pathlib.Path, path: pathlib.Path, number: int, shared: dict[str, Any], entry: Any) -> Frame:
    if any(name in entry for name in FOCAL):  # A frame of another camera than the file's.
        shared = {name: value for name, value in shared.items() if name not in FOCAL}
    known = shared | entry
    where = f"{path}: frame {number}"
    return Frame(
        name=_file(folder, entry["file_path"]),
        mask=_file(folder, entry["mask_path"]) if entry.get("mask_path") else None,
        normals=_file(folder, entry["normal_path"]) if entry.get("normal_path") else None,
        pose=_pose(where, entry["transform_matrix"]),
        known=known,
        lens=lens.read(known, where),
    )


def _file(folder: pathlib.Path, given: str) -> str:
    """Return the name of a file as it is written, with slashes instead of backslashes, or with a suffix added.

    Of an absolute path of another computer, the longest end that is below the folder counts.
    """
    slashed = given.replace("\\", "/")
    ends = slashed.split("/")[1:] if slashed[:1] == "/" or slashed[1:2] == ":" else []
    names = dict.fromkeys([given, slashed, *("/".join(ends[first:]) for first in range(len(ends)))])
    suffixes = ("", *SUFFIXES, *map(str.upper, SUFFIXES))
    candidates = [f"{name}{suffix}" for name in names for suffix in suffixes]
    missing = slashed
    if not pathlib.PurePosixPath(missing).suffix:
        missing += SUFFIXES[0]
    return next((name for name in candidates if (folder / name).is_file()), missing)


def _pose(where: str, given: Any) -> Float[np.ndarray, "4 4"]:
    """Return a rigid motion, of which the last row may be left out.

    Raises:
      ValueError: it is not one.
    """
    try:
        pose = np.array(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is malformed: its transform_matrix is not one of numbers") from error
    if pose.shape == (16,):
        pose = pose.reshape(4, 4)
    if pose.shape not in ((4, 4), (3, 4)):
        raise ValueError(f"{where}: its transform_matrix is {' x '.join(map(str, pose.shape))}, expected 4 x 4")
    last = [0.0, 0, 0, 1]
    if len(pose) == 4 and not np.allclose(pose[3], last, atol=1e-4):
        hint = ", as if it were transposed" if np.allclose(pose[:, 3], last, atol=1e-4) else ""
        raise ValueError(f"{where}: the last row of its transform_matrix is {pose[3].tolist()}, not 0, 0, 0, 1{hint}")
    pose = np.concatenate([pose[:3], [last]])
    rotation = pose[:3, :3]
    rigid = np.isfinite(pose).all() and np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-2
    if not rigid or np.linalg.det(rotation) < 0:
        number = where.rpartition(": ")[2]
        raise ValueError(
            f"{where.rpartition(': ')[0]}: transform_matrix of {number} is not a rotation and a translation of finite "
            "numbers"
        )
    return pose
