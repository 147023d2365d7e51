"""Meshes as artists and scanners make them, read into one list of triangles with colors at their corners."""

import dataclasses
import os
import pathlib

import numpy as np
import trimesh
from jaxtyping import Float, Int
from scipy import sparse, spatial
from scipy.sparse import csgraph

from e3d_jax import cameras, raycast
from e3d_jax.data.assets import gltf, obj, parts, ply, stl

_READERS = {".glb": gltf.read, ".gltf": gltf.read, ".obj": obj.read, ".ply": ply.read, ".stl": stl.read}
SUFFIXES = tuple(_READERS)
GLTF = (".glb", ".gltf")
CREASE = np.radians(45)


@dataclasses.dataclass(frozen=True)
class Asset:
    """Triangles of any number of parts, in the world frame; welded, so that neighbors share vertices.

    Attributes:
      vertices: positions; the bounding box is centered at the origin and the farthest vertex 0.5 from it.
      faces: vertex indices.
      corner_normals: unit normals at the corners of each face, smooth except across creases.
      corner_colors: RGB in [0, 1] at the corners, see :class:`parts.Material`.
      corner_alpha: opacity at the corners, of materials that are not opaque.
      corner_uv: texture coordinates, (0, 0) lower left.
      emission_uv: those of the emission's texture.
      face_material: index into ``materials``.
      materials: how the faces look.
      warnings: a line for each texture or part that could not be loaded.
    """

    vertices: Float[np.ndarray, "p 3"]
    faces: Int[np.ndarray, "f 3"]
    corner_normals: Float[np.ndarray, "f 3 3"]
    corner_colors: Float[np.ndarray, "f 3 3"]
    corner_alpha: Float[np.ndarray, "f 3"]
    corner_uv: Float[np.ndarray, "f 3 2"]
    emission_uv: Float[np.ndarray, "f 3 2"]
    face_material: Int[np.ndarray, " f"]
    materials: tuple[parts.Material, ...]
    warnings: tuple[str, ...] = ()

    @property
    def opaque(self) -> bool:
        """Whether no ray passes through any surface."""
        return all(material.alpha == "opaque" for material in self.materials)

    def color(self, hits: raycast.Hits, light: Float[np.ndarray, "*h #3"]) -> Float[np.ndarray, "h 3"]:
        """Return the display-encoded color under a light, gray or colored, with what the surface emits."""
        color = self.albedo(hits)
        shaded = color * light
        for material, at in self._hits_of(hits, lambda each: each.unlit or any(each.emission)):
            if material.unlit:
                shaded[at] = color[at]
                continue
            emission = np.array(material.emission)
            if material.emission_texture is not None:
                uv = raycast.corner_values(self.emission_uv[hits.face[at]], _some(hits, at))
                emission = emission * parts.decode(_sample(material.emission_texture, uv))
            shaded[at] = parts.encode((parts.decode(shaded[at]) + emission).clip(0, 1))
        return shaded

    def albedo(self, hits: raycast.Hits) -> Float[np.ndarray, "h 3"]:
        """Return the display-encoded color of the material."""
        color = raycast.corner_values(self.corner_colors[hits.face], hits)
        uv = self._uv(hits)
        for material, at in self._hits_of(hits, lambda each: each.texture is not None or each.linear):
            factor = 1.0 if material.texture is None else _sample(material.texture, uv[at])[:, :3]
            color[at] = parts.encode(parts.decode(factor) * color[at]) if material.linear else color[at] * factor
        return color

    def opacity(self, hits: raycast.Hits) -> Float[np.ndarray, " h"]:
        """Return how much of the ray the surface takes: 0 for none, 1 for all."""
        opacity = np.ones(len(hits.face), np.float32)
        for material, at in self._hits_of(hits, lambda each: each.alpha != "opaque"):
            some = _some(hits, at)
            alpha = (self.corner_alpha[some.face] * some.weights).sum(-1)
            if material.texture is not None and material.texture.pixels.shape[-1] == 4:
                uv = raycast.corner_values(self.corner_uv[some.face], some)
                alpha = alpha * _sample(material.texture, uv)[:, 3]
            opacity[at] = alpha >= material.cutoff if material.alpha == "mask" else alpha
        return opacity.clip(0, 1)

    def normals(self, hits: raycast.Hits) -> Float[np.ndarray, "h 3"]:
        """Return unit normals; on the back of a sheet they are turned to the viewer."""
        normals = raycast.corner_values(self.corner_normals[hits.face], hits)
        a, b, c = np.moveaxis(self.vertices[self.faces[hits.face]], 1, 0)
        behind = (np.cross(b - a, c - a) * hits.directions).sum(-1, keepdims=True) > 0
        return np.where(behind, -1, 1) * normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)

    def _uv(self, hits):
        if all(material.texture is None for material in self.materials):
            return np.zeros((len(hits.face), 2), np.float32)
        return raycast.corner_values(self.corner_uv[hits.face], hits)

    def _hits_of(self, hits, chosen):
        """Yield the materials that a condition is true of, with the hits of each."""
        indices = [index for index, material in enumerate(self.materials) if chosen(material)]
        if len(indices) == len(self.materials) == 1:
            yield self.materials[0], slice(None)
            return
        found = self.face_material[hits.face] if indices else None
        for index in indices:
            if len(at := np.flatnonzero(found == index)):
                yield self.materials[index], at


def _some(hits: raycast.Hits, at: np.ndarray | slice) -> raycast.Hits:
    return raycast.Hits(hits.face[at], hits.weights[at], hits.directions[at], hits.depth[at])


def _sample(texture: parts.Texture, uv: np.ndarray) -> np.ndarray:
    return raycast.sample_texture(texture.pixels, uv, wrap=texture.wrap)


def read_parts(path: str | os.PathLike) -> tuple[list[parts.Part], list[str]]:
    """Read a mesh file, in its own axes.

    Returns:
      All parts, and a line for each texture that could not be loaded.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, of another format, or needs what cannot be read.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a mesh that can be read; expected one of {', '.join(SUFFIXES)}")
    path.open("rb").close()  # A file that cannot be opened is not a damaged mesh.
    warnings: list[str] = []
    try:
        found = _READERS[suffix](path, warnings)
    except parts.UnreadableError as error:
        raise ValueError(f"{path} {error}") from error
    except Exception as error:  # Parsers raise errors of any kind.
        raise ValueError(f"{path} is damaged or not a {suffix} file ({type(error).__name__}: {error})") from error
    return found, warnings


def read_asset(
    path: str | os.PathLike, *, y_up: bool = False, rotation: spatial.transform.Rotation | None = None
) -> Asset:
    """Read a mesh file with all its parts, textures and vertex colors, rotate it in the world frame, and normalize it.

    glTF files have axes of their own (y up, front +z); other formats are read as z up, front +x, or like glTF if
    ``y_up``. docs/formats.md says what is read of each format.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, of another format, needs what cannot be read, or holds no triangle.
    """
    found, warnings = read_parts(path)
    arrays, materials = _arrays(found)
    if arrays is None:
        raise ValueError(f"{path} holds no triangles of positive area and finite size")
    triangles, colors, alpha, uv, emission_uv, material = arrays
    if pathlib.Path(path).suffix.lower() in GLTF or y_up:
        triangles = cameras.world_from_gltf(triangles.reshape(-1, 3)).reshape(-1, 3, 3)
    vertices, faces = np.unique(triangles.reshape(-1, 3), axis=0, return_inverse=True)
    faces = faces.reshape(-1, 3)
    if rotation is not None:
        vertices = rotation.apply(vertices)
    vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
    vertices = vertices * (0.5 / np.linalg.norm(vertices, axis=-1).max())
    normals = crease_normals(vertices, faces)
    return Asset(vertices, faces, normals, colors, alpha, uv, emission_uv, material, materials, tuple(warnings))


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


def _arrays(found: list[parts.Part]):
    """Return (triangles, corner colors, alpha, uv, emission's uv, material per face), or None; and the materials."""
    rows: list[tuple[np.ndarray, ...]] = []
    materials: dict[parts.Material, int] = {}
    for part in found:
        triangles = part.vertices[part.faces]
        with np.errstate(invalid="ignore", over="ignore"):
            area = np.linalg.norm(
                np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1
            )
        good = np.isfinite(triangles).all((1, 2)) & (area > 0) & np.isfinite(area)
        index = materials.setdefault(part.material, len(materials))
        corners = (part.colors, part.alpha, part.uv, part.emission_uv)
        rows.append((triangles[good], *(each[good] for each in corners), np.full(good.sum(), index)))
    if not sum(len(row[0]) for row in rows):
        return None, ()
    return [np.concatenate(column) for column in zip(*rows, strict=True)], tuple(materials)
