"""Models of COLMAP, text or binary, as the entries of a ``transforms.json``."""

import dataclasses
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from e3d_jax import cameras

# Where COLMAP, nerfstudio and others keep a model in a folder.
PLACES = ("sparse/0", "colmap/sparse/0", "sparse", "colmap/sparse", ".")
# By number in binary files: name and parameters.
_FULL, _ONE = "fl_x fl_y cx cy", "fl_x cx cy"
MODELS = (
    ("SIMPLE_PINHOLE", _ONE),
    ("PINHOLE", _FULL),
    ("SIMPLE_RADIAL", f"{_ONE} k1"),
    ("RADIAL", f"{_ONE} k1 k2"),
    ("OPENCV", f"{_FULL} k1 k2 p1 p2"),
    ("OPENCV_FISHEYE", f"{_FULL} k1 k2 k3 k4"),
    ("FULL_OPENCV", f"{_FULL} k1 k2 p1 p2 k3 k4 k5 k6"),
    ("FOV", f"{_FULL} omega"),
    ("SIMPLE_RADIAL_FISHEYE", f"{_ONE} k1"),
    ("RADIAL_FISHEYE", f"{_ONE} k1 k2"),
    ("THIN_PRISM_FISHEYE", f"{_FULL} k1 k2 p1 p2 k3 k4 sx1 sy1"),
)


@dataclasses.dataclass(frozen=True)
class Image:
    """One image of a model.

    Attributes:
      rotation: of the camera from the world, as a quaternion (w, x, y, z).
      translation: of the camera from the world.
      camera: number of its camera.
      name: of its file, below the folder of images.
    """

    rotation: tuple[float, ...]
    translation: tuple[float, ...]
    camera: int
    name: str


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the folder of the model that belongs to a folder of images, if there is one."""
    for place in PLACES:
        for suffix in (".bin", ".txt"):
            if all((folder / place / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
                return folder / place
    return None


def read(folder: pathlib.Path, model: pathlib.Path) -> dict[str, Any]:
    """Return a model as the contents of a ``transforms.json``.

    Args:
      folder: has the images, in ``images`` or itself, and maybe ``masks``, of the same names or with ``.png`` added.
      model: as :func:`find` returns it.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged.
    """
    try:
        if (model / "cameras.bin").is_file() and (model / "images.bin").is_file():
            cams = dict(_binary_cameras((model / "cameras.bin").read_bytes()))
            images = list(_binary_images((model / "images.bin").read_bytes()))
        else:
            cams = dict(_text_cameras((model / "cameras.txt").read_text("utf-8-sig")))
            images = list(_text_images((model / "images.txt").read_text("utf-8-sig")))
        return {"frames": [_frame(folder, image, cams[image.camera]) for image in sorted(images, key=_by_name)]}
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise ValueError(f"{model} is not a whole model of COLMAP, or not a supported one ({error})") from error


def _by_name(image: Image) -> str:
    return image.name


def _frame(folder: pathlib.Path, image: Image, camera: dict[str, Any]) -> dict[str, Any]:
    w, x, y, z = np.array(image.rotation) / np.linalg.norm(image.rotation)
    cam_from_world = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3] = cam_from_world.T
    pose[:3, 3] = -cam_from_world.T @ image.translation
    where = "images/" if (folder / "images").is_dir() else ""
    frame = {
        **camera,
        "file_path": where + image.name,
        "transform_matrix": (pose @ cameras.OPENCV_FROM_OPENGL).tolist(),
    }
    stem = pathlib.PurePosixPath(image.name).with_suffix("")
    for mask in (f"masks/{image.name}.png", f"masks/{image.name}", f"masks/{stem}.png"):
        if (folder / mask).is_file():
            return frame | {"mask_path": mask}
    return frame


def _camera(model: str, width: int, height: int, values: list[float]) -> dict[str, Any]:
    names = dict(MODELS).get(model, "").split()
    camera = {"camera_model": model, "w": width, "h": height}
    return camera | dict(zip(names, values, strict=bool(names)))


def _text_cameras(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            number, model, width, height, *values = line.split()
            yield int(number), _camera(model, int(width), int(height), [float(value) for value in values])


def _text_images(text: str) -> Iterator[Image]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    # Every second line lists the points that an image shows; it may be empty.
    for line in lines[::2]:
        if line.strip():
            _, *numbers, camera, name = line.split(maxsplit=9)
            values = [float(number) for number in numbers]
            yield Image(tuple(values[:4]), tuple(values[4:]), int(camera), name.strip())


def _binary_cameras(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<iiQQ", data, at)
        if model >= len(MODELS):
            raise ValueError(f"camera {number} is of model {model}, which is not supported; undistort the images first")
        name, parameters = MODELS[model]
        values = list(struct.unpack_from(f"<{len(parameters.split())}d", data, at + 24))
        at += 24 + 8 * len(values)
        yield number, _camera(name, width, height, values)


def _binary_images(data: bytes) -> Iterator[Image]:
    (count,), at = struct.unpack_from("<Q", data), 8
    for _ in range(count):
        _, *pose, camera = struct.unpack_from("<i7di", data, at)
        end = data.index(b"\0", at + 64)
        (points,) = struct.unpack_from("<Q", data, end + 1)
        yield Image(tuple(pose[:4]), tuple(pose[4:]), camera, data[at + 64 : end].decode())
        at = end + 9 + 24 * points
