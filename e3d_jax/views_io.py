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

from e3d_jax import cameras, files, images, structs

TRANSFORMS = "transforms.json"
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


def read_views(folder: str | os.PathLike) -> structs.ViewSet:
    """Read a views folder.

    Raises:
      OSError: ``transforms.json`` cannot be read.
      ValueError: it is malformed; an image is missing, damaged, of a different size or without alpha; the folder has
        frames that it does not list; a pose is not a rigid motion; or no view shows an object.
    """
    folder = pathlib.Path(folder)
    path = folder / TRANSFORMS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a folder of views: it has no {TRANSFORMS}")
    try:
        transforms = json.loads(path.read_text())
        frames = transforms["frames"]
        names = [_with_suffix(frame["file_path"]) for frame in frames]
        poses = np.array([frame["transform_matrix"] for frame in frames], np.float32).reshape(-1, 4, 4)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is malformed: {type(error).__name__}: {error}") from error
    if not frames:
        raise ValueError(f"{path} lists no frames")
    _check_files(folder, names)
    _check_poses(path, poses)
    rgba = [_read_png(folder / name) for name in names]
    _check_sizes(path, transforms, dict(zip(names, rgba, strict=True)))
    if not any((image[..., 3] > 0.5).any() for image in rgba):
        raise ValueError(f"no view in {folder} shows an object: alpha is below one half everywhere")
    with_normals = [i for i, frame in enumerate(frames) if frame.get("normal_path")]
    normals = [_read_normals(folder / frames[i]["normal_path"], rgba[0].shape) for i in with_normals]
    has_anchors = any("anchor" in frame for frame in frames)
    anchors = [i for i, frame in enumerate(frames) if frame.get("anchor", not has_anchors)]
    return structs.ViewSet(
        rgba=np.stack(rgba),
        cameras=_read_cameras(path, transforms, poses, rgba[0].shape),
        normal_views=np.array(with_normals, int),
        normals=np.array(normals, np.float32).reshape(-1, *rgba[0].shape[:2], 3),
        anchors=np.array(anchors or range(len(frames)), int),
    )


def _with_suffix(name):
    """Add ".png", which the released NeRF scenes leave out."""
    return name if pathlib.Path(name).suffix else f"{name}.png"


def _read_png(path):
    try:
        with Image.open(path) as image:
            if "A" not in image.getbands() and "transparency" not in image.info:
                raise ValueError(
                    f"{path} has no alpha channel; every view must be RGBA with the background transparent"
                )
            return np.asarray(image.convert("RGBA"), np.float32) / 255
    except OSError as error:
        raise ValueError(f"{path} is missing or not a readable image: {error}") from error


def _read_normals(path, shape):
    stored = _read_png(path)
    if stored.shape != shape:
        raise ValueError(f"{path} is {_size(stored)} but the views are {shape[1]} x {shape[0]}; the sizes must agree")
    return np.asarray(images.decode_normal(stored, shortest=SHORTEST_NORMAL))


def _read_cameras(path, transforms, poses, shape):
    height, width = shape[:2]

    def intrinsics(frame):
        known = {**transforms, **frame}
        if "fl_x" not in known and "camera_angle_x" not in known:
            raise ValueError(f"{path} has neither fl_x nor camera_angle_x, so the focal length is unknown")
        fl_x = known["fl_x"] if "fl_x" in known else width / 2 / math.tan(known["camera_angle_x"] / 2)
        return fl_x, known.get("fl_y", fl_x), known.get("cx", width / 2), known.get("cy", height / 2)

    if any(transforms.get(key) for key in ("k1", "k2", "k3", "k4", "p1", "p2")):
        raise ValueError(f"{path} describes lens distortion; undistort the images first")
    values = np.array([intrinsics(frame) for frame in transforms["frames"]], np.float32)
    if not np.isfinite(values).all() or (values[:, :2] <= 0).any():
        raise ValueError(f"{path} has focal lengths or principal points that are not finite and positive")
    return structs.Cameras(
        world_from_cam=cameras.opengl_from_opencv(poses),
        focal=values[:, :2],
        center=values[:, 2:],
        width=width,
        height=height,
    )


def _check_files(folder, names):
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of the {len(names)} frames of {TRANSFORMS}: {_list(missing)}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{folder / TRANSFORMS} lists frames more than once: {_list(doubled)}")
    listed = {(folder / name).resolve() for name in names}
    extra = sorted(path.name for path in folder.glob("rgb_[0-9]*.png") if path.resolve() not in listed)
    if extra:
        raise ValueError(f"{folder} has frames that {TRANSFORMS} does not list: {_list(extra)}; list or delete them")


def _check_poses(path, poses):
    rotation = poses[:, :3, :3]
    rigid = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max((1, 2)) < 1e-2
    rigid &= np.linalg.det(np.nan_to_num(rotation)) > 0
    wrong = np.flatnonzero(~(np.isfinite(poses).all((1, 2)) & rigid))
    if len(wrong):
        raise ValueError(
            f"{path}: transform_matrix of frame {wrong[0]} is not a rotation and a translation of finite numbers"
        )


def _check_sizes(path, transforms, views):
    first = next(iter(views))
    for name, view in views.items():
        if view.shape != views[first].shape:
            raise ValueError(f"views differ in size: {first} is {_size(views[first])}, {name} is {_size(view)}")
    height, width = views[first].shape[:2]
    if transforms.get("w", width) != width or transforms.get("h", height) != height:
        raise ValueError(
            f"{path} says {transforms.get('w')} x {transforms.get('h')}, the images are {width} x {height}"
        )


def _size(image):
    return f"{image.shape[1]} x {image.shape[0]}"


def _list(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
