"""Scenes of glTF 2.0 files as parts: nodes, instances, skins, morph targets, and primitives of all modes."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import DracoPy
import numpy as np
from scipy import spatial

from e3d_jax.data.assets import gltf_materials, parts
from e3d_jax.data.assets.gltf_document import Document

_TRIANGLES, _STRIP, _FAN = 4, 5, 6


def read(path: pathlib.Path, warnings: list[str]) -> list[parts.Part]:
    """Read the default scene of a .glb or .gltf in its rest pose.

    Args:
      path: of the file.
      warnings: gets a line for each texture that cannot be loaded.

    Raises:
      UnreadableError: it is of another version, or requires an extension that cannot be read.
      ValueError: it is damaged.
    """
    document = Document(path, warnings)
    return list(_Scene(document, gltf_materials.Materials(document)).collect())


class _Scene:
    def __init__(self, document: Document, materials: gltf_materials.Materials):
        self._document, self._materials = document, materials
        self._json = document.json
        self._nodes: list[dict[str, Any]] = self._json.get("nodes", [])
        self._worlds: dict[int, np.ndarray] = {}
        self._hidden: set[int] = set()

    def collect(self) -> Iterator[parts.Part]:
        """Yield the parts of all nodes."""
        drawn = self._place(self._roots())
        self._place([root for root in self._all_roots() if root not in self._worlds])  # For joints outside the scene.
        for index in drawn:
            if "mesh" in self._nodes[index] and index not in self._hidden:
                yield from self._node_parts(index)

    def _roots(self) -> list[int]:
        scenes = self._json.get("scenes")
        return scenes[self._json.get("scene", 0)].get("nodes", []) if scenes else self._all_roots()

    def _all_roots(self) -> list[int]:
        children = {child for node in self._nodes for child in node.get("children", [])}
        return [index for index in range(len(self._nodes)) if index not in children]

    def _place(self, roots: list[int]) -> list[int]:
        """Find the transforms of nodes and all below them; return them in order."""
        found, stack = [], [(root, np.eye(4), False) for root in reversed(roots)]
        while stack:
            index, above, hidden = stack.pop()
            if index in self._worlds:
                continue  # A node has one parent; damaged files have cycles.
            node = self._nodes[index]
            hidden = hidden or not node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True)
            if hidden:
                self._hidden.add(index)
            self._worlds[index] = above @ _local(node)
            found.append(index)
            stack += [(child, self._worlds[index], hidden) for child in reversed(node.get("children", []))]
        return found

    def _node_parts(self, index: int) -> Iterator[parts.Part]:
        node = self._nodes[index]
        mesh = self._json["meshes"][node["mesh"]]
        weights = node.get("weights", mesh.get("weights", []))
        instances = self._instances(node)
        for primitive in mesh["primitives"]:
            if primitive.get("mode", _TRIANGLES) not in (_TRIANGLES, _STRIP, _FAN):
                continue  # Points and lines have no surface.
            attributes, faces = self._primitive(primitive, weights)
            if "POSITION" not in attributes or not len(faces):
                continue
            if "skin" in node:
                placed = [self._skinned(self._json["skins"][node["skin"]], attributes)]
            else:
                placed = [_transform(attributes["POSITION"], self._worlds[index] @ instance) for instance in instances]
            for vertices, mirrored in placed:
                turned = np.where(mirrored[faces[:, :1]], faces[:, ::-1], faces) if mirrored.any() else faces
                yield self._part(vertices, turned, attributes, primitive.get("material"))

    def _instances(self, node: dict[str, Any]) -> list[np.ndarray]:
        """Return the transforms of EXT_mesh_gpu_instancing, or that of the node's one mesh."""
        given = node.get("extensions", {}).get("EXT_mesh_gpu_instancing", {}).get("attributes", {})
        read = {
            name: self._document.accessor(given[name], normalized=name == "ROTATION")
            for name in ("TRANSLATION", "ROTATION", "SCALE")
            if name in given
        }
        if not read:
            return [np.eye(4)]
        names = {"TRANSLATION": "translation", "ROTATION": "rotation", "SCALE": "scale"}
        count = len(next(iter(read.values())))
        return [_local({names[name]: values[at] for name, values in read.items()}) for at in range(count)]

    def _primitive(self, primitive: dict[str, Any], weights: list[float]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the attributes of a primitive, with morph targets applied, and its triangles."""
        given = primitive["attributes"]
        wanted = [name for name in given if name.split("_")[0] in _ATTRIBUTES]
        draco = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
        compressed, triangles = self._draco(draco) if draco is not None else ({}, None)
        attributes = {}
        for name in wanted:
            always = name.startswith(("COLOR", "WEIGHTS"))
            if name in compressed:
                values = compressed[name]
                if always or self._json["accessors"][given[name]].get("normalized"):
                    values = Document.to_floats(values)
                attributes[name] = values
            else:
                attributes[name] = self._document.accessor(given[name], normalized=always)
        for target, weight in zip(primitive.get("targets", []), weights, strict=False):
            for name in target:
                if weight and name in attributes:
                    delta = self._document.accessor(target[name], normalized=name.startswith("COLOR"))
                    attributes[name] = attributes[name] + weight * delta.astype(np.float64)
        if triangles is None:
            if "indices" in primitive:
                order = self._document.accessor(primitive["indices"])[:, 0].astype(np.int64)
            else:
                order = np.arange(len(attributes.get("POSITION", ())))
            triangles = _triangles(order, primitive.get("mode", _TRIANGLES))
        count = len(attributes.get("POSITION", ()))
        if len(triangles) and triangles.max() >= count:
            raise ValueError(f"a triangle has vertex {triangles.max()} of {count}")
        return attributes, triangles

    def _draco(self, extension: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        mesh = DracoPy.decode(self._document.view(extension["bufferView"])[0].tobytes())
        names = {number: name for name, number in extension["attributes"].items()}
        found = {
            names[each["unique_id"]]: np.asarray(each["data"]).reshape(-1, each["num_components"])
            for each in mesh.attributes
            if each["unique_id"] in names
        }
        return found, np.asarray(mesh.faces, np.int64).reshape(-1, 3)

    def _skinned(self, skin: dict[str, Any], attributes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return vertices where the joints put them, whatever the node's own transform, and which were mirrored."""
        worlds = np.stack([self._worlds[joint] for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self._document.accessor(skin["inverseBindMatrices"]).astype(np.float64)
            worlds = worlds @ inverse[: len(worlds)].reshape(-1, 4, 4).swapaxes(1, 2)  # Stored by columns.
        points = np.asarray(attributes["POSITION"], np.float64)
        matrices, total = np.zeros((len(points), 4, 4)), np.zeros(len(points))
        for number in range(sum(name.startswith("JOINTS_") for name in attributes)):
            joints, weights = attributes[f"JOINTS_{number}"].astype(np.int64), attributes[f"WEIGHTS_{number}"]
            for joint, weight in zip(joints.T, weights.T.astype(np.float64), strict=True):
                matrices += weight[:, None, None] * worlds[joint.clip(0, len(worlds) - 1)]
                total += weight
        matrices[total <= 0], total = np.eye(4), np.where(total <= 0, 1, total)
        matrices /= total[:, None, None]
        moved = np.einsum("nij,nj->ni", matrices[:, :3, :3], points) + matrices[:, :3, 3]
        return moved, np.linalg.det(matrices[:, :3, :3]) < 0

    def _part(self, vertices, faces, attributes: dict[str, np.ndarray], material: int | None) -> parts.Part:
        look = self._materials.look(material)
        uv = _corner_uv(attributes, look.placement, faces)
        emission_uv = _corner_uv(attributes, look.emission_placement, faces)
        colors, alpha = attributes.get("COLOR_0"), look.opacity
        if colors is not None:
            colors = colors.astype(np.float64).clip(0, 1)
            if colors.shape[1] > 3:
                alpha = look.opacity * colors[:, 3][faces]
            colors = colors[:, :3]
            if np.ptp(colors, axis=0).any() or (look.material.texture is not None and (colors != 1).any()):
                linear = dataclasses.replace(look.material, linear=True)
                colors = np.array(look.factor) * colors[faces]
                return parts.part(vertices, faces, linear, colors=colors, alpha=alpha, uv=uv, emission_uv=emission_uv)
            factor = np.array(look.factor) * colors[0]
        else:
            factor = np.array(look.factor)
        if look.material.texture is not None:
            tinted = self._materials.tinted(look)
            return parts.part(vertices, faces, tinted, colors=1.0, alpha=alpha, uv=uv, emission_uv=emission_uv)
        colors = parts.encode(factor)
        return parts.part(vertices, faces, look.material, colors=colors, alpha=alpha, uv=uv, emission_uv=emission_uv)


_ATTRIBUTES = ("POSITION", "TEXCOORD", "COLOR", "JOINTS", "WEIGHTS")


def _corner_uv(attributes, placement: gltf_materials.Placement | None, faces) -> np.ndarray | None:
    """Return texture coordinates at corners, (0, 0) lower left."""
    if placement is None or f"TEXCOORD_{placement.uv_set}" not in attributes:
        return None
    uv = attributes[f"TEXCOORD_{placement.uv_set}"].astype(np.float64)
    matrix = np.array(placement.matrix)
    uv = uv @ matrix[:, :2].T + matrix[:, 2]
    return np.stack([uv[:, 0], 1 - uv[:, 1]], -1)[faces]


def _triangles(order: np.ndarray, mode: int) -> np.ndarray:
    """Return the triangles of indices in a list, strip or fan."""
    if mode == _TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _FAN:
        return np.stack([np.broadcast_to(order[0], len(order) - 2), order[1:-1], order[2:]], -1)
    strip = np.stack([order[:-2], order[1:-1], order[2:]], -1)
    strip[1::2] = strip[1::2][:, [0, 2, 1]]
    return strip


def _transform(points: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points in the world, and for each whether the transform mirrors."""
    moved = np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    return moved, np.full(len(points), np.linalg.det(matrix[:3, :3]) < 0)


def _local(node: dict[str, Any]) -> np.ndarray:
    """Return the transform of a node."""
    if "matrix" in node:
        return np.asarray(node["matrix"], np.float64).reshape(4, 4).T
    out = np.eye(4)
    rotation = np.asarray(node.get("rotation", (0, 0, 0, 1)), np.float64)
    turn = spatial.transform.Rotation.from_quat(rotation).as_matrix() if np.linalg.norm(rotation) > 0 else np.eye(3)
    out[:3, :3] = turn * np.asarray(node.get("scale", (1, 1, 1)), np.float64)
    out[:3, 3] = node.get("translation", (0, 0, 0))
    return out
