"""The files of one result, and the images that show it."""

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from e3d_jax import cameras, images, reports, structs, system, views_io
from e3d_jax import config as config_lib
from e3d_jax.mesh import formats, preview

LABELED = 64  # Width of the smallest images that get a label.


def check_writable(folder: str | os.PathLike) -> None:
    """Make a folder for results and try to write in it, rather now than after minutes of work.

    Raises:
      OSError: it cannot be made or written.
    """
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=os.fspath(folder)).close()
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}); choose another folder for the results") from error


def check_replaceable(folder: str | os.PathLike) -> None:
    """Refuse to let :func:`write_result` replace anything but an earlier result.

    Raises:
      FileExistsError: the folder holds something other than an earlier result.
    """
    folder = pathlib.Path(folder)
    if folder.is_dir():
        replaceable = (folder / reports.REPORT).is_file() or not any(folder.iterdir())
    else:
        replaceable = not os.path.lexists(folder)
    if not replaceable:
        raise FileExistsError(
            f"{folder} exists and is not an earlier result (it has no {reports.REPORT}), so it is not replaced; "
            "move it or choose another folder"
        )


def write_result(
    folder: str | os.PathLike,
    result: system.Result,
    *,
    seed: int,
    config: config_lib.SystemConfig,
    mesh_files: formats.Formats = formats.Formats(),
) -> None:
    """Write a result's folder; it appears under its name whole or not at all, and replaces an earlier result there.

    Raises:
      OSError: the folder cannot be written, or holds something other than a result.
    """
    folder = pathlib.Path(folder)
    check_replaceable(folder)
    check_writable(folder.parent)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        partial, earlier = pathlib.Path(scratch, "partial"), pathlib.Path(scratch, "earlier")
        try:
            partial.mkdir()
            for name, given in _names(result).items():
                images.write_png(partial / f"{name}.png", given.image)
                images.write_png(partial / f"{name}_normal.png", given.normal)
            views_io.write_views(partial / "views", result.views)
            if posed := _posed(result.inputs):
                views_io.write_views(partial / "view_inputs", posed)
            mesh_files.write(partial, result.mesh)
            images.write_png(partial / "contact_sheet.png", contact_sheet(result))
            preview.write_turntable(partial / "turntable.gif", result.mesh)
            reports.write(
                partial,
                reports.report(
                    seed=seed,
                    seconds=result.seconds,
                    peak_memory_gb=result.peak_memory,
                    mesh=result.mesh,
                    inputs=[_described(name, given) for name, given in _names(result).items()],
                    settings=config.to_dict(),
                ),
            )
        except OSError as error:
            raise OSError(f"cannot write {folder} ({error.strerror or error}); check the disk and try again") from error
        if folder.exists():
            os.replace(folder, earlier)
        try:
            os.replace(partial, folder)
        except BaseException:
            if earlier.exists():
                os.replace(earlier, folder)
            raise


def _names(result: system.Result) -> dict[str, system.Input]:
    """Return the inputs by the names of their files."""
    return {f"input_{number}" if number else "input": given for number, given in enumerate(result.inputs)}


def _described(name: str, given: system.Input) -> dict[str, Any]:
    """Return what a report says of an input; angles in degrees, lengths in object units."""
    camera = {key: getattr(given, key) for key in ("azimuth", "elevation", "fov")}
    described = {"file": f"{name}.png", **camera, **{f"{key}_found": how for key, how in given.found.items()}}
    if given.camera is None:
        return described
    return described | {
        "roll": given.camera.roll,
        "distance": given.camera.distance,
        "scale": given.camera.scale,
        "silhouette_iou": given.camera.agreement,
        "difference": given.camera.difference,
        "pixels_used": given.camera.used,
    }


def _posed(inputs: Sequence[system.Input]) -> structs.ViewSet | None:
    """Return the pictures with their cameras, if these are known; smaller ones are extended at the right and below."""
    pairs = [(each.picture.rgba, each.camera.camera) for each in inputs if each.picture and each.camera]
    if not pairs:
        return None
    pictures, found = zip(*pairs, strict=True)
    size, every = max(each.width for each in found), np.arange(len(found))
    return structs.ViewSet(
        rgba=np.stack([np.pad(each, ((0, size - len(each)), (0, size - len(each)), (0, 0))) for each in pictures]),
        cameras=structs.Cameras(
            world_from_cam=np.concatenate([each.world_from_cam for each in found]),
            focal=np.concatenate([each.focal for each in found]),
            center=np.concatenate([each.center for each in found]),
            width=size,
            height=size,
        ),
        normal_views=every[:0],
        normals=np.zeros((0, size, size, 3), np.float32),
        anchors=every,
    )


def contact_sheet(result: system.Result) -> Float[np.ndarray, "h w 3"]:
    """Return one image of everything, with labels.

    Rows: the inputs, each with its normal map; looks at the mesh, in the row of the input if there is only one; the
    views, as many per row as there are normal maps; the normal maps.
    """
    size = result.inputs[0].image.shape[0]
    encoded = images.encode_normal(result.views.normals, np.asarray(result.views.normals.any(-1), np.float32))
    per_row = len(encoded)
    angles = np.degrees(cameras.azimuth_of(np.asarray(result.views.cameras.world_from_cam))).round(2)
    alone = len(result.inputs) == 1
    around = cameras.ring(size, max(per_row - 2 * alone, 1))
    turns = np.degrees(cameras.azimuth_of(around.world_from_cam)).round(2)
    inputs: list[tuple[np.ndarray, str]] = []
    for given in result.inputs:
        inputs += [(given.image, _camera_label(given)), (given.normal, f"normals {given.azimuth:g}")]
    looks = zip(preview.render_mesh(result.mesh, around), turns, strict=True)
    turned = [(look, f"mesh {angle:g}") for look, angle in looks]
    views = [(view, f"view {angle:g}") for view, angle in zip(result.views.rgba, angles, strict=True)]
    last = [(one, f"normals {angles[view]:g}") for view, one in zip(result.views.normal_views, encoded, strict=True)]
    first = [inputs + turned] if alone else [inputs, turned]
    rows = [*first, *(views[start : start + per_row] for start in range(0, len(views), per_row)), last]
    blank = np.ones((size, size, 3), np.float32)
    width = max(map(len, rows))
    tiles = [[_labeled(*tile) for tile in row] + [blank] * (width - len(row)) for row in rows]
    return np.concatenate([np.concatenate(row, 1) for row in tiles], 0)


def _camera_label(given: system.Input) -> str:
    """Return the label of an input: its camera, in a line that fits into a tile of 128 px; more is in the report."""
    angles = {"elev": given.elevation, "fov": given.fov}
    known = [f"{name} {round(angle)}" for name, angle in angles.items() if angle is not None]
    return ", ".join([f"input {given.azimuth:g}", *known])


def _labeled(image: np.ndarray, text: str) -> Float[np.ndarray, "h w 3"]:
    """Return an image on white with a text in its upper left corner, if it is large enough for one."""
    tile = np.asarray(images.over_white(image), np.float32)
    if len(tile) < LABELED:
        return tile
    canvas = Image.fromarray(images.to_uint8(tile))
    ImageDraw.Draw(canvas).text((2, 1), text, fill=(90, 90, 90), font=ImageFont.load_default(max(9, len(tile) // 14)))
    return np.asarray(canvas, np.float32) / 255
