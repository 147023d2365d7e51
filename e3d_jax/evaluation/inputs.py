"""Which objects a path holds: a mesh file, a folder of views, or a folder of such.

Understood folders of an object, below a folder of many:

    NAME.glb (.ply, .obj)                        a mesh
    NAME/rgb_00.png ... or rgba_00.png ...       views
    NAME/mesh.glb and NAME/views/rgb_00.png ...  a result of `e3d infer`
    NAME/meshes/model.obj                        Google Scanned Objects
    NAME/google_16k/textured.obj (or tsdf, poisson)  YCB
"""

import dataclasses
import os
import pathlib
import re

from e3d_jax.mesh import export

_VIEW = re.compile(r"rgba?_\d+\.png")
# Files of scans, whose units are meters and whose origins are anywhere.
SCANS = ("meshes/model.obj", "google_16k/textured.obj", "tsdf/textured.obj", "poisson/textured.obj")


@dataclasses.dataclass(frozen=True)
class Item:
    """The files of one object.

    Attributes:
      views: folder of its views, if any.
      mesh: its mesh, if any.
      is_scan: whether the mesh is in meters and has to be centered and scaled.
    """

    views: pathlib.Path | None = None
    mesh: pathlib.Path | None = None
    is_scan: bool = False


def find(path: str | os.PathLike) -> dict[str, Item]:
    """Return the objects of a path by name.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: it holds no object.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder of views, a mesh file, or a folder of such")
    if item := _item(path):
        return {path.resolve().stem if path.is_file() else path.resolve().name: item}
    found: dict[str, Item] = {}
    for child in sorted(path.iterdir()) if path.is_dir() else []:
        if item := _item(child):
            name = child.stem if child.is_file() else child.name
            known = found.get(name, Item())
            found[name] = Item(item.views or known.views, item.mesh or known.mesh, item.is_scan or known.is_scan)
    if not found:
        raise ValueError(
            f"{path} holds no views (rgb_00.png ...) and no meshes ({', '.join(export.SUFFIXES)}); give a folder of "
            "views, a mesh file, or a folder of such by object name"
        )
    return found


def _item(path: pathlib.Path) -> Item | None:
    """Return the files of an object at a path, if it is one."""
    if path.is_file():
        return Item(mesh=path) if path.suffix.lower() in export.SUFFIXES else None
    if not path.is_dir():
        return None
    for scan in SCANS:
        if (path / scan).is_file():
            return Item(mesh=path / scan, is_scan=True)
    folders = [folder for folder in (path, path / "views") if folder.is_dir() and _has_views(folder)]
    mesh = path / "mesh.glb"
    if not folders and not mesh.is_file():
        return None
    return Item(folders[0] if folders else None, mesh if mesh.is_file() else None)


def _has_views(folder: pathlib.Path) -> bool:
    return any(_VIEW.fullmatch(file.name) for file in folder.iterdir())
