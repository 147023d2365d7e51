"""The files of one result, and the images that show it."""

import os
import pathlib
import tempfile

import numpy as np
from jaxtyping import Float

from e3d_jax import cameras, images, reports, system, views_io
from e3d_jax import config as config_lib
from e3d_jax.mesh import export, preview


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
    folder: str | os.PathLike, result: system.Result, *, seed: int, config: config_lib.SystemConfig
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
            images.write_png(partial / "input.png", result.input)
            images.write_png(partial / "input_normal.png", result.input_normal)
            views_io.write_views(partial / "views", result.views)
            export.write_glb(partial / "mesh.glb", result.mesh)
            images.write_png(partial / "contact_sheet.png", contact_sheet(result))
            preview.write_turntable(partial / "turntable.gif", result.mesh)
            reports.write(
                partial,
                reports.report(
                    seed=seed,
                    seconds=result.seconds,
                    peak_memory_gb=result.peak_memory,
                    mesh=result.mesh,
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


def contact_sheet(result: system.Result) -> Float[np.ndarray, "h w 3"]:
    """Return one image of everything.

    Rows: the input, its normal map and looks at the mesh; the views, as many per row as there are normal maps; the
    normal maps.
    """
    size = result.input.shape[0]
    encoded = images.encode_normal(result.views.normals, np.asarray(result.views.normals.any(-1), np.float32))
    per_row = len(encoded)
    looks = preview.render_mesh(result.mesh, cameras.ring(size, max(per_row - 2, 1)))
    views = list(result.views.rgba)
    rows: list[list[np.ndarray]] = [
        [result.input, result.input_normal, *looks],
        *(views[first : first + per_row] for first in range(0, len(views), per_row)),
        list(encoded),
    ]
    blank = np.ones((size, size, 3), np.float32)
    width = max(map(len, rows))
    tiles = [[np.asarray(images.over_white(image)) for image in row] + [blank] * (width - len(row)) for row in rows]
    return np.concatenate([np.concatenate(row, 1) for row in tiles], 0)
