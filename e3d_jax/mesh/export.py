"""Mesh files. glTF files have their own axes (y up, front +z); all other formats are in world axes."""

import dataclasses
import os
import pathlib

import numpy as np
import trimesh
from PIL import Image

from e3d_jax import cameras, files, images, raycast, structs
from e3d_jax.data.assets import parts, reading
from e3d_jax.mesh import extract

SUFFIXES = (".glb", ".ply", ".obj")
_COLORS = "_LINEAR_COLOR"


def write_glb(path: str | os.PathLike, mesh: structs.Mesh, *, webp: bool = False) -> None:
    """Write a binary glTF with its texture, or otherwise with vertex colors; whole or not at all.

    With ``webp`` the texture is lossy and about a tenth of the size (``EXT_texture_webp``); otherwise it is a PNG.

    As glTF requires, textures are stored display-encoded, and vertex colors as linear light, in 16 bits. The material
    is rough and not metallic, because the colors already contain the lighting.

    Raises:
      ValueError: the mesh has no faces or non-finite vertices.
      OSError: the folder cannot be written.
    """
    # A cyclic permutation of the axes keeps the orientation of the faces.
    out = _to_trimesh(mesh, cameras.gltf_from_world)
    if mesh.texture is None:
        out.visual = trimesh.visual.ColorVisuals()
        linear = parts.decode(np.asarray(mesh.colors, np.float64).clip(0, 1))
        out.vertex_attributes[_COLORS] = np.round(np.pad(linear, ((0, 0), (0, 1)), constant_values=1) * 65535).astype(
            "<u2"
        )
    scene = trimesh.Scene(out)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = trimesh.exchange.gltf.export_glb(
        scene, include_normals=True, tree_postprocessor=_name_colors, extension_webp=webp
    )
    files.write_atomically(path, data)


def _name_colors(tree: dict) -> None:
    """Turn the attribute that holds vertex colors, which trimesh itself would write in 8 bits, into the glTF's own."""
    for each in tree["meshes"]:
        attributes = each["primitives"][0]["attributes"]
        if _COLORS in attributes:
            attributes["COLOR_0"] = attributes.pop(_COLORS)
            tree["accessors"][attributes["COLOR_0"]]["normalized"] = True


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


def write_stl(path: str | os.PathLike, mesh: structs.Mesh) -> None:
    """Write a binary STL in world axes, without colors.

    Raises:
      ValueError: the mesh has no faces or non-finite vertices.
      OSError: the folder cannot be written.
    """
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, trimesh.exchange.stl.export_stl(_welded(mesh)))


def write_ply(path: str | os.PathLike, mesh: structs.Mesh) -> None:
    """Write a binary PLY in world axes, with the colors that the mesh has at its vertices; as closed as the mesh.

    Raises:
      ValueError: the mesh has no faces or non-finite vertices.
      OSError: the folder cannot be written.
    """
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, trimesh.exchange.ply.export_ply(_welded(mesh)))


def _welded(mesh: structs.Mesh) -> trimesh.Trimesh:
    """Return the mesh without its texture, whose mean color at the corners of a vertex is that of the vertex."""
    colors = mesh.colors
    if mesh.texture is not None:
        corners, at = mesh.faces.reshape(-1), mesh.texture.corner_uv.reshape(-1, 2)
        count = np.bincount(corners, minlength=len(mesh.vertices))
        sampled = raycast.sample_texture(mesh.texture.image, at)
        total = np.stack([np.bincount(corners, channel, len(count)) for channel in sampled.T], 1)
        colors = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], colors).astype(np.float32)
    return _to_trimesh(dataclasses.replace(mesh, colors=colors, texture=None), lambda points: points)


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

    The reader is that of assets (:mod:`e3d_jax.data.assets.reading`). A mesh of one texture keeps it, and is welded
    along its seams; one of several materials gets the colors that they have at its vertices. Transparency has no
    effect.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not a mesh in one of these formats, or has no faces.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} has an unsupported mesh format; expected one of {', '.join(SUFFIXES)}")
    found, _ = reading.read_parts(path)
    offsets = np.cumsum([0, *(len(part.vertices) for part in found)])
    faces = np.concatenate(
        [np.zeros((0, 3), np.int64), *(part.faces + first for part, first in zip(found, offsets, strict=False))]
    )
    if not len(faces):
        raise ValueError(f"{path} holds no triangles; give a mesh with faces")
    vertices = np.concatenate([part.vertices for part in found])
    if path.suffix.lower() in reading.GLTF:
        vertices = cameras.world_from_gltf(vertices)
    colors = np.full((len(vertices), 3), parts.GRAY)
    colors[faces] = np.concatenate([_corner_colors(part) for part in found])
    texture = _texture_of(found)
    if texture is not None:
        vertices, first, welded = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
        colors, faces = colors[first], welded.reshape(-1)[faces]
    return structs.Mesh(
        vertices=vertices.astype(np.float32),
        faces=faces.astype(np.int32),
        colors=colors.astype(np.float32),
        texture=texture,
    )


def _corner_colors(part: parts.Part) -> np.ndarray:
    """Return display-encoded colors at the corners of a part, those of its texture at the corners included."""
    colors, texture = np.asarray(part.colors, np.float64), part.material.texture
    pixels = np.ones_like(colors)
    if texture is not None:
        found = raycast.sample_texture(texture.pixels[..., :3], part.uv.reshape(-1, 2), wrap=texture.wrap)
        pixels = found.reshape(colors.shape)
    return parts.encode(parts.decode(pixels) * colors) if part.material.linear else pixels * colors


def _texture_of(found: list[parts.Part]) -> structs.Texture | None:
    """Return the texture that all parts share, if they do and it alone makes their colors."""
    materials = {part.material for part in found}
    texture = next(iter(materials)).texture
    if len(materials) > 1 or texture is None or any(part.material.linear for part in found):
        return None
    return structs.Texture(texture.pixels[..., :3], np.concatenate([part.uv for part in found]))
