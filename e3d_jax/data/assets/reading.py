"""Meshes as artists and scanners make them, read into one list of triangles with colors at their corners."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import trimesh
from jaxtyping import Float, Int
from PIL import Image
from scipy import sparse, spatial
from scipy.sparse import csgraph

from e3d_jax import cameras, raycast

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
GLTF = (".glb", ".gltf")
# Larger textures are shrunk: no view shows more detail, and a few of 16k would fill the memory.
MAX_TEXTURE = 4096
GRAY = 0.8
CREASE = np.radians(45)


@dataclasses.dataclass(frozen=True)
class Asset:
    """Triangles of any number of parts, in the world frame; welded, so that neighbors share vertices.

    Attributes:
      vertices: positions; the bounding box is centered at the origin and the farthest vertex 0.5 from it.
      faces: vertex indices.
      corner_normals: unit normals at the corners of each face, smooth except across creases.
      corner_colors: display-encoded RGB in [0, 1] at the corners; where there is a texture, what it is multiplied by.
      corner_uv: texture coordinates, (0, 0) lower left.
      face_texture: index into ``textures`` or -1.
      textures: display-encoded RGB in [0, 1].
    """

    vertices: Float[np.ndarray, "p 3"]
    faces: Int[np.ndarray, "f 3"]
    corner_normals: Float[np.ndarray, "f 3 3"]
    corner_colors: Float[np.ndarray, "f 3 3"]
    corner_uv: Float[np.ndarray, "f 3 2"]
    face_texture: Int[np.ndarray, " f"]
    textures: list[np.ndarray]

    def albedo(self, hits: raycast.Hits) -> Float[np.ndarray, "h 3"]:
        """Return the display-encoded color of the material."""
        color = raycast.corner_values(self.corner_colors[hits.face], hits)
        uv = raycast.corner_values(self.corner_uv[hits.face], hits)
        for index, texture in enumerate(self.textures):
            at = np.flatnonzero(self.face_texture[hits.face] == index)
            color[at] *= raycast.sample_texture(texture, uv[at], wrap=True)
        return color

    def normals(self, hits: raycast.Hits) -> Float[np.ndarray, "h 3"]:
        """Return unit normals; on the back of a sheet they are turned to the viewer."""
        normals = raycast.corner_values(self.corner_normals[hits.face], hits)
        a, b, c = np.moveaxis(self.vertices[self.faces[hits.face]], 1, 0)
        behind = (np.cross(b - a, c - a) * hits.directions).sum(-1, keepdims=True) > 0
        return np.where(behind, -1, 1) * normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)


def read_asset(
    path: str | os.PathLike, *, y_up: bool = False, rotation: spatial.transform.Rotation | None = None
) -> Asset:
    """Read a mesh file with all its parts, textures and vertex colors, rotate it in the world frame, and normalize it.

    glTF files have axes of their own (y up, front +z); other formats are read as z up, front +x, or like glTF if
    ``y_up``. Vertex colors are read as display-encoded, which nearly all tools write.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, of another format, or holds no triangle.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a mesh that can be read; expected one of {', '.join(SUFFIXES)}")
    path.open("rb").close()  # A file that cannot be opened is not a damaged mesh.
    try:
        scene = trimesh.load_scene(path, process=False)
        parts = [(*scene.graph[node],) for node in scene.graph.nodes_geometry]
        meshes = [(scene.geometry[name], transform) for transform, name in parts]
        arrays, textures = _arrays([part for part in meshes if isinstance(part[0], trimesh.Trimesh)])
    except Exception as error:  # Parsers raise errors of any kind.
        raise ValueError(f"{path} is damaged or not a {suffix} file ({type(error).__name__}: {error})") from error
    if arrays is None:
        raise ValueError(f"{path} holds no triangles of positive area and finite size")
    triangles, colors, uv, texture = arrays
    if suffix in GLTF or y_up:
        triangles = cameras.world_from_gltf(triangles.reshape(-1, 3)).reshape(-1, 3, 3)
    vertices, faces = np.unique(triangles.reshape(-1, 3), axis=0, return_inverse=True)
    faces = faces.reshape(-1, 3)
    if rotation is not None:
        vertices = rotation.apply(vertices)
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    vertices = vertices * (0.5 / np.linalg.norm(vertices, axis=-1).max())
    return Asset(vertices, faces, crease_normals(vertices, faces), colors, uv, texture, textures)


def crease_normals(
    vertices: Float[np.ndarray, "p 3"], faces: Int[np.ndarray, "f 3"], angle: float = CREASE
) -> Float[np.ndarray, "f 3 3"]:
    """Return normals at the corners of faces: means over the faces around the vertex that smooth edges connect.

    An edge is smooth if its faces meet below ``angle`` (radians). Files' own normals are not used: many have none, some
    have wrong ones, and this way every format looks alike.
    """
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    smooth = mesh.face_adjacency_angles < angle
    pairs, edges = mesh.face_adjacency[smooth], mesh.face_adjacency_edges[smooth]

    # Corners 3 * face + k are linked across smooth edges; a vertex's linked corners share one normal.
    def corner(side, end):
        return 3 * pairs[:, side] + (faces[pairs[:, side]] == edges[:, [end]]).argmax(1)

    a, b = (np.concatenate([corner(side, 0), corner(side, 1)]) for side in (0, 1))
    links = sparse.coo_array((np.ones(len(a), bool), (a, b)), (faces.size, faces.size))
    count, group = csgraph.connected_components(links, directed=False)
    weighted = (mesh.face_normals[:, None] * mesh.face_angles[..., None]).reshape(-1, 3)
    normals = np.stack([np.bincount(group, weighted[:, axis], count) for axis in range(3)], -1)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return (normals / np.maximum(length, 1e-12))[group].reshape(-1, 3, 3)


def _arrays(parts):
    """Return (triangles, corner colors, corner uv, texture per face) of all parts, or None; and the textures."""
    rows, textures = [], []
    for mesh, transform in parts:
        triangles = trimesh.transform_points(mesh.vertices, transform)[mesh.faces]
        if np.linalg.det(transform[:3, :3]) < 0:
            triangles = triangles[:, ::-1]
        colors, uv, image = _surface(mesh)
        if np.linalg.det(transform[:3, :3]) < 0:
            colors, uv = colors[:, ::-1], uv[:, ::-1]
        with np.errstate(invalid="ignore", over="ignore"):
            area = np.linalg.norm(
                np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1
            )
        good = np.isfinite(triangles).all((1, 2)) & (area > 0) & np.isfinite(area)
        index = -1
        if image is not None:
            index = len(textures)
            textures.append(image)
        rows.append((triangles[good], colors[good], uv[good], np.full(good.sum(), index)))
    if not sum(len(row[0]) for row in rows):
        return None, textures
    return [np.concatenate(column) for column in zip(*rows, strict=True)], textures


def _surface(mesh: trimesh.Trimesh):
    """Return corner colors, corner uv and texture of one part."""
    visual: Any = mesh.visual
    count = len(mesh.faces)
    colors, uv, image = np.full((count, 3, 3), GRAY), np.zeros((count, 3, 2)), None
    if visual.kind == "vertex":
        colors = visual.vertex_colors[mesh.faces][..., :3] / 255
    elif visual.kind == "face":
        colors = np.repeat(visual.face_colors[:, None, :3] / 255, 3, 1)
    elif visual.kind == "texture":
        material = visual.material
        factor = getattr(material, "baseColorFactor", None)  # glTF: linear light
        factor = np.ones(3) if factor is None else np.asarray(factor, float)[:3] / 255
        texture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if texture is not None and visual.uv is not None:
            image = _texture(texture)
            if (factor != 1).any():
                image = _encode(_decode(image) * factor).astype(np.float32)
            colors, uv = np.ones((count, 3, 3)), np.nan_to_num(np.asarray(visual.uv))[mesh.faces]
        elif "color" in visual.vertex_attributes:
            colors = _bytes_to_unit(visual.vertex_attributes["color"])[mesh.faces][..., :3]
        elif getattr(material, "baseColorFactor", None) is not None:
            colors = np.broadcast_to(_encode(factor), (count, 3, 3))
        else:
            colors = np.broadcast_to(np.asarray(material.main_color)[:3] / 255, (count, 3, 3))
    return np.asarray(colors, np.float32), np.asarray(uv, np.float32), image


def _bytes_to_unit(values):
    values = np.asarray(values)
    return values / np.iinfo(values.dtype).max if np.issubdtype(values.dtype, np.integer) else values


def _texture(image: Image.Image) -> Float[np.ndarray, "h w 3"]:
    if max(image.size) > MAX_TEXTURE:
        image = image.copy()
        image.thumbnail((MAX_TEXTURE, MAX_TEXTURE), Image.Resampling.BOX)
    return np.asarray(image.convert("RGB"), np.float32) / 255


def _decode(display):
    """Return linear light from display-encoded values (IEC 61966-2-1)."""
    return np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)


def _encode(linear):
    """Return the inverse of :func:`_decode`."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
