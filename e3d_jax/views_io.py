"""A folder of views: PNG images and ``transforms.json`` in the format of NeRF, nerfstudio and instant-ngp.

``rgb_00.png`` ... are RGBA with straight alpha; ``normal_00.png`` ... hold world normals as
:func:`images.encode_normal` stores them, opaque where they are known. ``transform_matrix`` is camera-to-world in OpenGL
camera axes. In addition to the usual keys, a frame may have ``normal_path``, ``azimuth_deg`` and ``anchor``; if no
frame has ``anchor``, all are anchors.
"""

import io
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from e3d_jax import cameras, files, images, lens, structs
from e3d_jax import transforms as transforms_lib

TRANSFORMS = transforms_lib.TRANSFORMS
DEPTH_SCALE = 1e-4
SHORTEST_NORMAL = 0.5  # shorter vectors count as unknown


def write_views(
    folder: str | os.PathLike, views: structs.ViewSet, depths: Float[np.ndarray, "v h w"] | None = None
) -> None:
    """Write a views folder. Every file appears whole; ``transforms.json``, which makes it a views folder, comes last.

    Frames of an earlier set of views are removed; other files are left alone.

    Args:
      folder: created if necessary.
      views: the views.
      depths: distances along the optical axes in object units, 0 where unknown; written as 16-bit images in steps of
        ``integer_depth_scale``, as instant-ngp reads them.

    Raises:
      OSError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRANSFORMS).unlink(missing_ok=True)
    for kind in ("rgb", "normal", "depth"):
        for old in folder.glob(f"{kind}_[0-9]*.png"):
            old.unlink()
    frames = _frames(views)
    for frame, rgba in zip(frames, views.rgba, strict=True):
        images.write_png(folder / frame["file_path"], rgba)
    for view, normals in zip(np.asarray(views.normal_views).tolist(), views.normals, strict=True):
        frames[view]["normal_path"] = f"normal_{view:02d}.png"
        known = ((normals**2).sum(-1) > SHORTEST_NORMAL**2).astype(np.float32)
        images.write_png(folder / frames[view]["normal_path"], images.encode_normal(normals, known))
    if depths is not None:
        for view, depth in enumerate(depths):
            frames[view]["depth_path"] = f"depth_{view:02d}.png"
            _write_depth(folder / frames[view]["depth_path"], depth)
    scale = {} if depths is None else {"integer_depth_scale": DEPTH_SCALE}
    transforms = {**_intrinsics(views.cameras, frames), **scale, "frames": frames}
    files.write_atomically(folder / TRANSFORMS, json.dumps(transforms, indent=1).encode())


def _frames(views: structs.ViewSet) -> list[dict[str, Any]]:
    """Return the entries of ``transforms.json`` that every frame has."""
    poses = cameras.opengl_from_opencv(np.asarray(views.cameras.world_from_cam))
    return [
        {
            "file_path": f"rgb_{view:02d}.png",
            "transform_matrix": pose.tolist(),
            "azimuth_deg": round(math.degrees(math.atan2(pose[1, 3], pose[0, 3])) % 360, 4),
            "anchor": view in views.anchors,
        }
        for view, pose in enumerate(poses)
    ]


def _write_depth(path: pathlib.Path, depth: Float[np.ndarray, "h w"]) -> None:
    steps = (depth / DEPTH_SCALE).round().clip(0, 2**16 - 1).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(steps).save(buffer, "PNG")
    files.write_atomically(path, buffer.getvalue())


def _intrinsics(cams: structs.Cameras, frames: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the intrinsics of the first camera; if the cameras differ, also add those of each to its frame."""
    focal, center = np.asarray(cams.focal), np.asarray(cams.center)
    if (focal != focal[0]).any() or (center != center[0]).any():
        for frame, (fl_x, fl_y), (cx, cy) in zip(frames, focal.tolist(), center.tolist(), strict=True):
            frame.update(fl_x=fl_x, fl_y=fl_y, cx=cx, cy=cy)
    return {
        "camera_model": "OPENCV",
        "w": cams.width,
        "h": cams.height,
        "fl_x": float(focal[0, 0]),
        "fl_y": float(focal[0, 1]),
        "cx": float(center[0, 0]),
        "cy": float(center[0, 1]),
    }


def read_views(folder: str | os.PathLike, dtype: Any = np.float32) -> structs.ViewSet:
    """Read a views folder, or the images of a COLMAP model.

    Images of several sizes are extended at their right and lower sides to the largest; lens distortion is removed.

    Args:
      folder: of the views.
      dtype: of the poses; those of a scene far from the origin need float64.

    Raises:
      OSError: ``transforms.json`` cannot be read.
      ValueError: it is malformed; an image is missing, damaged, of another size than the file says or without alpha and
        mask; the folder has frames that it does not list; a pose is not a rigid motion; a camera is not supported; or
        no view shows an object.
    """
    folder = pathlib.Path(folder)
    path, frames = transforms_lib.read(folder)
    _check_files(folder, frames)
    normals: dict[int, np.ndarray] = {}
    views, intrinsics = [], []
    for number, frame in enumerate(frames):
        image = _read_rgba(folder, frame)
        height, width = image.shape[:2]
        _check_size(path, frame, width, height)
        try:
            camera = frame.intrinsics(width, height)
        except ValueError as error:
            raise ValueError(f"{path} {error}") from error
        maps = [image]
        if frame.normals:
            maps.append(_read_image(folder / frame.normals))
            if maps[1].shape != image.shape:
                raise ValueError(
                    f"{folder / frame.normals} is {_size(maps[1])} but its view is {_size(image)}; the sizes must agree"
                )
        if frame.lens is not None:
            maps = [lens.undistort(one, camera[:2], camera[2:], frame.lens) for one in maps]
            if _touches_border(maps[0]) and not _touches_border(image):
                raise ValueError(
                    f"the object in {folder / frame.name} leaves the image when its lens distortion is removed; "
                    "undistort the images first"
                )
        views.append(maps[0])
        normals.update(zip([number], maps[1:], strict=False))
        intrinsics.append(camera)
    if not any((image[..., 3] > 0.5).any() for image in views):
        raise ValueError(f"no view in {folder} shows an object: alpha is below one half everywhere")
    height, width = (max(image.shape[axis] for image in views) for axis in (0, 1))
    rgba = np.stack([_extended(image, height, width) for image in views])
    decoded = [
        images.decode_normal(_extended(one, height, width), shortest=SHORTEST_NORMAL) for one in normals.values()
    ]
    has_anchors = any("anchor" in frame.known for frame in frames)
    anchors = [i for i, frame in enumerate(frames) if frame.known.get("anchor", not has_anchors)]
    poses = np.stack([frame.pose for frame in frames])
    values = np.array(intrinsics, np.float32)
    return structs.ViewSet(
        rgba=rgba,
        cameras=structs.Cameras(
            world_from_cam=(poses @ cameras.OPENCV_FROM_OPENGL).astype(dtype),
            focal=values[:, :2],
            center=values[:, 2:],
            width=width,
            height=height,
        ),
        normal_views=np.array(list(normals), int),
        normals=np.array(decoded, np.float32).reshape(-1, height, width, 3),
        anchors=np.array(anchors or range(len(frames)), int),
    )


def _read_rgba(folder: pathlib.Path, frame: transforms_lib.Frame) -> Float[np.ndarray, "h w 4"]:
    """Return an image with its alpha, that of its mask, or the product of both."""
    if frame.mask is None:
        return _read_image(folder / frame.name)
    image, mask = _read_image(folder / frame.name, opaque=True), _read_mask(folder / frame.mask)
    if mask.shape != image.shape[:2]:
        raise ValueError(
            f"{folder / frame.mask} is {_size(mask)} but its image is {_size(image)}; the sizes must agree"
        )
    image[..., 3] *= mask
    return image


def _read_image(path: pathlib.Path, *, opaque: bool = False) -> Float[np.ndarray, "h w 4"]:
    """Return an RGBA image; one without alpha only if it may be ``opaque``."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            if not opaque and "A" not in image.getbands() and "transparency" not in image.info:
                raise ValueError(
                    f"{path} has no alpha channel; every view must be RGBA with the background transparent, or have a "
                    "mask (mask_path)"
                )
            image.load()
            return np.asarray(images.to_rgba(image, file, str(path)), np.float32) / 255
    except OSError as error:
        raise ValueError(f"{path} is missing or not a readable image: {error}") from error


def _read_mask(path: pathlib.Path) -> Float[np.ndarray, "h w"]:
    """Return a silhouette in [0, 1]; white and opaque is the object, whatever value stands for white."""
    try:
        with Image.open(path) as image:
            alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            mask = np.asarray(image if image.mode.startswith("I") else image.convert("L"), np.float32)
    except OSError as error:
        raise ValueError(f"{path} is missing or not a readable image: {error}") from error
    mask = mask / (max(255, mask.max()) if mask.max() > 1 else 1)
    return mask if alpha is None else mask * np.asarray(alpha, np.float32) / 255


def _extended(image: Float[np.ndarray, "h w 4"], height: int, width: int) -> Float[np.ndarray, "{height} {width} 4"]:
    """Return an image with transparent pixels added at the right and below."""
    more = [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)]
    return np.pad(image, more) if any(added for _, added in more) else image


def _touches_border(image: Float[np.ndarray, "h w 4"]) -> bool:
    solid = image[..., 3] > 0.5
    return bool(solid[[0, -1]].any() or solid[:, [0, -1]].any())


def _check_files(folder: pathlib.Path, frames: list[transforms_lib.Frame]) -> None:
    names = [frame.name for frame in frames]
    wanted = names + [frame.mask for frame in frames if frame.mask]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} {'frames' if len(wanted) == len(names) else 'files'} "
            f"of {TRANSFORMS}: {_list(missing)}"
        )
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{folder / TRANSFORMS} lists frames more than once: {_list(doubled)}")
    listed = {(folder / name).resolve() for name in names}
    extra = sorted(path.name for path in folder.glob("rgb_[0-9]*.png") if path.resolve() not in listed)
    if extra:
        raise ValueError(f"{folder} has frames that {TRANSFORMS} does not list: {_list(extra)}; list or delete them")


def _check_size(path: pathlib.Path, frame: transforms_lib.Frame, width: int, height: int) -> None:
    said = tuple(frame.known.get(name) or actual for name, actual in (("w", width), ("h", height)))
    if tuple(map(float, said)) != (width, height):
        raise ValueError(f"{path} says {said[0]} x {said[1]}, but {frame.name} is {width} x {height}")


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
