"""Mesh files. glTF files have their own axes (y up, front +z); all other formats are in world axes."""

import os
import pathlib

import numpy as np
import trimesh
from PIL import Image

from e3d_jax import cameras, files, images, structs
from e3d_jax.mesh import extract

SUFFIXES = (".glb", ".ply", ".obj")


def write_glb(path: str | os.PathLike, mesh: structs.Mesh) -> None:
    """Write a binary glTF with its texture, or otherwise with vertex colors; whole or not at all.

    Colors are stored display-encoded: glTF requires it of textures, and most mesh tools also expect it of vertex
    colors. The material is rough and not metallic, because the colors already contain the lighting.

    Raises:
      ValueError: the mesh has no faces or non-finite vertices.
      OSError: the folder cannot be written.
    """
    # A cyclic permutation of the axes keeps the orientation of the faces.
    scene = trimesh.Scene(_to_trimesh(mesh, cameras.gltf_from_world))
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, trimesh.exchange.gltf.export_glb(scene, include_normals=True))


def write_obj(path: str | os.PathLike, mesh: structs.Mesh) -> None:
    """Write a Wavefront OBJ in world axes, with its material and texture beside it, named after it.

    Raises:
      ValueError: the mesh has no faces or non-finite vertices.
      OSError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    out = _to_trimesh(mesh, lambda points: points)
    text, others = trimesh.exchange.obj.export_obj(
        out, include_normals=True, return_texture=True, mtl_name=f"{path.stem}.mtl", header=None
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, data in others.items():
        files.write_atomically(path.parent / name, data)
    files.write_atomically(path, text.encode())


def _to_trimesh(mesh: structs.Mesh, from_world) -> trimesh.Trimesh:
    """Convert to the axes of a file; vertices are duplicated along the seams of the texture."""
    if len(mesh.faces) == 0:
        raise ValueError("the mesh has no faces, so there is nothing to write")
    if not np.isfinite(mesh.vertices).all():
        raise ValueError("the mesh has non-finite vertices, so no viewer could open it")
    if mesh.texture is None:
        colors = np.round(np.asarray(mesh.colors).clip(0, 1) * 255).astype(np.uint8)
        colors = np.concatenate([colors, np.full_like(colors[:, :1], 255)], 1)
        return trimesh.Trimesh(from_world(mesh.vertices), mesh.faces, vertex_colors=colors, process=False)
    # Normals of the welded mesh, so that seams stay invisible.
    normals = extract.vertex_normals(mesh)
    corners = np.concatenate([mesh.faces.reshape(-1, 1), mesh.texture.corner_uv.reshape(-1, 2)], 1)
    unique, faces = np.unique(corners, axis=0, return_inverse=True)
    vertex = unique[:, 0].astype(np.int64)
    image = Image.fromarray(images.to_uint8(mesh.texture.image))
    material = trimesh.visual.material.PBRMaterial(
        name="texture", baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0
    )
    return trimesh.Trimesh(
        from_world(mesh.vertices)[vertex],
        faces.reshape(-1, 3),
        vertex_normals=from_world(normals)[vertex],
        visual=trimesh.visual.TextureVisuals(uv=unique[:, 1:], material=material),
        process=False,
    )


def read_mesh(path: str | os.PathLike) -> structs.Mesh:
    """Read a .glb (glTF axes), .ply or .obj (world axes) as one mesh in the world frame; gray without colors.

    A textured mesh is welded along the seams of its texture.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not a mesh in one of these formats, or has no faces.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} has an unsupported mesh format; expected one of {', '.join(SUFFIXES)}")
    path.open("rb").close()  # Raises OSError, so that the errors below are about damaged files.
    try:
        loaded = trimesh.load_scene(path, process=False).to_mesh()
    except Exception as error:  # trimesh passes on any error of its parsers
        raise ValueError(f"{path} is damaged or not a {path.suffix} file: {error}") from error
    if not isinstance(loaded, trimesh.Trimesh) or len(loaded.faces) == 0:
        raise ValueError(f"{path} holds no triangles")
    vertices = np.asarray(loaded.vertices)
    if path.suffix.lower() == ".glb":
        vertices = cameras.world_from_gltf(vertices)
    faces, texture, visual = np.asarray(loaded.faces, np.int32), _texture_of(loaded), loaded.visual
    if isinstance(visual, trimesh.visual.TextureVisuals):
        visual = visual.to_color()
    colors = getattr(visual, "vertex_colors", None)
    if colors is None or len(colors) != len(vertices):
        colors = np.full((len(vertices), 4), 204)
    if texture is not None:
        vertices, first, welded = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
        colors, faces = np.asarray(colors)[first], welded.reshape(-1).astype(np.int32)[faces]
    return structs.Mesh(
        vertices=vertices.astype(np.float32),
        faces=faces,
        colors=(np.asarray(colors)[:, :3] / 255).astype(np.float32),
        texture=texture,
    )


def _texture_of(loaded: trimesh.Trimesh) -> structs.Texture | None:
    """Return the texture of a mesh that trimesh read, if it has one."""
    material, uv = getattr(loaded.visual, "material", None), getattr(loaded.visual, "uv", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is None or uv is None:
        return None
    rgb = np.asarray(image.convert("RGB"), np.float32) / 255
    return structs.Texture(rgb, np.asarray(uv, np.float32)[loaded.faces])
