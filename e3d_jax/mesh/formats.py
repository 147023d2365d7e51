"""Which files a mesh is written as, how large, and which of its axes is up."""

import dataclasses
import importlib.util
import os
import pathlib

import numpy as np

from e3d_jax import cameras, structs
from e3d_jax.mesh import export, usd
from e3d_jax.settings import Settings, setting

WRITERS = {"obj": export.write_obj, "stl": export.write_stl, "ply": export.write_ply, "usdz": usd.write_usdz}
MILLIMETERS = 1000.0  # per meter; slicers take the numbers in STL files for millimeters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Formats(Settings):
    """The files of a mesh: ``mesh.glb``, always y up, and others beside it."""

    others: tuple[str, ...] = setting("Further formats: obj, stl, ply, usdz.", ())
    up: str = setting("Axis that is up in OBJ, STL and PLY files.", "z", choices=("z", "y"))
    size: float | None = setting("Longest side in meters; None leaves object units.", None, above=0)
    webp: bool = setting("Store the texture of the GLB as WebP: smaller, and lossy.", False)

    def check(self) -> None:
        """Refuse a format that cannot be written, before the minutes of work that make the mesh.

        Raises:
          ValueError: names it.
        """
        if unknown := [name for name in self.others if name not in WRITERS]:
            raise ValueError(f"{unknown[0]!r} is an unknown format; choose among {', '.join(WRITERS)}")
        if "usdz" in self.others and not can_write_usdz():
            raise ValueError("usdz files need the package usd-core; install the 'usd' extra, or leave them out")

    def write(self, folder: str | os.PathLike, mesh: structs.Mesh) -> None:
        """Write the files; each appears whole or not at all.

        Lengths are meters, but for STL, where they are millimeters. Without a size, object units are taken for meters.

        Args:
          folder: where they go.
          mesh: in the world frame.

        Raises:
          OSError: the folder cannot be written.
          ValueError: the mesh has no faces or non-finite vertices.
        """
        folder = pathlib.Path(folder)
        if self.size is not None and len(mesh.vertices):
            mesh = _scaled(mesh, self.size / float(np.ptp(mesh.vertices, axis=0).max()))
        export.write_glb(folder / "mesh.glb", mesh, webp=self.webp)
        for name in self.others:
            placed = mesh
            if self.up == "y" and name != "usdz":
                placed = dataclasses.replace(mesh, vertices=cameras.gltf_from_world(mesh.vertices))
            WRITERS[name](folder / f"mesh.{name}", _scaled(placed, MILLIMETERS) if name == "stl" else placed)


def can_write_usdz() -> bool:
    """Return whether ``usd-core`` is installed."""
    return importlib.util.find_spec("pxr") is not None


def _scaled(mesh: structs.Mesh, factor: float) -> structs.Mesh:
    return dataclasses.replace(mesh, vertices=mesh.vertices * np.float32(factor))
