"""The files of one result, and the pictures that show it."""

import importlib.metadata
import json
import os
import pathlib
import platform
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from e3d_jax import __version__, cameras, images, system, views_io
from e3d_jax.mesh import export, preview

REPORTED = ("jax", "jaxlib", "flax", "numpy")
REPORT = "report.json"


def check_writable(folder: str | os.PathLike) -> None:
    """Make a folder for results and try to write in it: better now than after minutes of work.

    Raises:
      OSError: it cannot be made or written.
    """
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=os.fspath(folder)).close()
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}); choose another folder for the results") from error


def check_replaceable(folder: str | os.PathLike) -> None:
    """Guards what :func:`write_result` would otherwise replace.

    Raises:
      FileExistsError: the folder holds something other than an earlier result.
    """
    folder = pathlib.Path(folder)
    if folder.is_dir():
        replaceable = (folder / REPORT).is_file() or not any(folder.iterdir())
    else:
        replaceable = not os.path.lexists(folder)
    if not replaceable:
        raise FileExistsError(
            f"{folder} exists and is no earlier result (it has no {REPORT}), so it is not replaced; "
            "move it or choose another folder"
        )


def write_result(folder: str | os.PathLike, result: system.Result, *, seed: int, config: Mapping[str, Any]) -> None:
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
            (partial / REPORT).write_text(json.dumps(report(result, seed=seed, config=config), indent=2))
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


def report(result: system.Result, *, seed: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """What made a result, and what it took."""
    return {
        "seed": seed,
        "seconds": result.seconds,
        "peak_memory_gb": result.peak_memory,
        "device": {"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind},
        "mesh": {"vertices": len(result.mesh.vertices), "faces": len(result.mesh.faces)},
        "versions": {
            "e3d_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in REPORTED},
        },
        "config": config,
    }


def contact_sheet(result: system.Result) -> Float[np.ndarray, "h w 3"]:
    """One picture of everything.

    Rows: the input, its normal map and six looks at the mesh; the 32 views, every fourth an anchor; the anchors' normal
    maps.
    """
    size = result.input.shape[0]
    looks = preview.render_mesh(result.mesh, cameras.ring(size, 6))
    known = np.asarray(result.views.normals.any(-1), np.float32)
    normals = np.asarray(images.encode_normal(result.views.normals, known))
    rows: list[list[np.ndarray]] = [
        [result.input, result.input_normal, *looks],
        *(list(row) for row in np.split(result.views.rgba, 4)),
        list(normals),
    ]
    tiles = [[_over_white(image) for image in row] for row in rows]
    return np.concatenate([np.concatenate(row, 1) for row in tiles], 0)


def _over_white(image: np.ndarray) -> np.ndarray:
    return np.asarray(images.composite(image)) if image.shape[-1] == 4 else image
