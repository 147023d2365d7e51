"""STL files as parts."""

import io
import pathlib

import numpy as np
import trimesh

from e3d_jax.data.assets import parts


def read(path: pathlib.Path, warnings: list[str]) -> list[parts.Part]:
    """Read a .stl, text or binary, with its colors if it has any; nothing in it can be missing (``warnings``)."""
    data, out = path.read_bytes(), []
    if data[:5].lower() == b"solid" and b"facet" in data[:1024]:
        data = data.decode("latin-1").encode()  # Only its name may be of another encoding.
    for mesh in trimesh.load_scene(io.BytesIO(data), file_type="stl", process=False).dump():
        if not isinstance(mesh, trimesh.Trimesh):
            continue
        colors: np.ndarray | float = parts.GRAY
        if isinstance(mesh.visual, trimesh.visual.ColorVisuals) and mesh.visual.kind is not None:
            colors = np.repeat(mesh.visual.face_colors[:, None, :3] / 255, 3, 1)
        out.append(parts.part(mesh.vertices, mesh.faces, colors=colors))
    return out
