"""Meshes on disk. glTF files have their own axes (y up, front +z); every other format is taken as it stands."""

import os
import pathlib

import numpy as np
import trimesh

from e3d_jax import cameras, files, structs

SUFFIXES = (".glb", ".ply", ".obj")


def write_glb(path: str | os.PathLike, mesh: structs.Mesh) -> None:
    """Write a binary glTF with vertex colours, whole or not at all.

    Colours are stored as they stand, display-encoded, as trimesh and most mesh tools read them.

    Raises:
      ValueError: the mesh has no faces or non-finite vertices.
      OSError: the folder cannot be written.
    """
    if len(mesh.faces) == 0:
        raise ValueError("the mesh has no faces, so there is nothing to write")
    if not np.isfinite(mesh.vertices).all():
        raise ValueError("the mesh has non-finite vertices and would open in no viewer")
    colors = np.round(np.asarray(mesh.colors).clip(0, 1) * 255).astype(np.uint8)
    colors = np.concatenate([colors, np.full_like(colors[:, :1], 255)], 1)
    # The axes are permuted cyclically, which keeps the orientation of the faces.
    vertices = cameras.gltf_from_world(mesh.vertices)
    out = trimesh.Trimesh(vertices, mesh.faces, vertex_colors=colors, process=False)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, trimesh.exchange.gltf.export_glb(trimesh.Scene(out), include_normals=True))


def read_mesh(path: str | os.PathLike) -> structs.Mesh:
    """Read a .glb (glTF axes), .ply or .obj (world axes) as one mesh in the world frame; grey where it has no colour.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no mesh of these formats, or has no faces.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} is not a mesh this can read: expected one of {', '.join(SUFFIXES)}")
    data = path.read_bytes()
    try:
        file_type = path.suffix[1:].lower()
        loaded = trimesh.load_scene(trimesh.util.wrap_as_stream(data), file_type=file_type, process=False).to_mesh()
    except Exception as error:  # trimesh raises whatever its parsers do
        raise ValueError(f"{path} is damaged or not a {path.suffix} file: {error}") from error
    if not isinstance(loaded, trimesh.Trimesh) or len(loaded.faces) == 0:
        raise ValueError(f"{path} holds no triangles")
    vertices = np.asarray(loaded.vertices)
    if path.suffix.lower() == ".glb":
        vertices = cameras.world_from_gltf(vertices)
    visual = loaded.visual.to_color() if isinstance(loaded.visual, trimesh.visual.TextureVisuals) else loaded.visual
    colors = getattr(visual, "vertex_colors", None)
    if colors is None or len(colors) != len(vertices):
        colors = np.full((len(vertices), 4), 204)
    return structs.Mesh(
        vertices=vertices.astype(np.float32),
        faces=np.asarray(loaded.faces, np.int32),
        colors=(np.asarray(colors)[:, :3] / 255).astype(np.float32),
    )
