"""Tiny glTF files, built by hand."""

import base64
import io
import json
import pathlib
import struct

import numpy as np
from PIL import Image

from e3d_jax.data.assets import reading

_COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
_WIDTHS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}

SQUARE = np.float32([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
SQUARE_UV = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])
SQUARE_FACES = np.uint16([0, 1, 2, 0, 2, 3])
# Upper left red, upper right green, lower left blue, lower right yellow.
QUARTERS = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]]).repeat(8, 0).repeat(8, 1)


def png(pixels) -> bytes:
    """An encoded image."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class File:
    """A file that grows by arrays, primitives and nodes; front is +z, as glTF has it."""

    def __init__(self, **more):
        self.json = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}], **more}
        self.binary = b""

    def add(self, key: str, value) -> int:
        """Append to one of the lists."""
        self.json.setdefault(key, []).append(value)
        return len(self.json[key]) - 1

    def view(self, data: bytes, **more) -> int:
        """Append bytes."""
        self.binary += bytes(-len(self.binary) % 4)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **more}
        self.binary += data
        return self.add("bufferViews", view)

    def accessor(self, values, **more) -> int:
        """Append an array, a row per element."""
        values = np.ascontiguousarray(values)
        values = values.astype(np.float32) if values.dtype == np.float64 else values
        values = values.reshape(len(values), -1)
        return self.add(
            "accessors",
            {
                "bufferView": self.view(values.tobytes()),
                "componentType": _COMPONENTS[values.dtype.str[1:]],
                "count": len(values),
                "type": _WIDTHS[values.shape[1]],
                **more,
            },
        )

    def texture(self, pixels=QUARTERS, **sampler) -> dict:
        """Append a texture and return a reference to it."""
        image = self.add("images", {"bufferView": self.view(png(pixels)), "mimeType": "image/png"})
        texture = {"source": image}
        if sampler:
            texture["sampler"] = self.add("samplers", sampler)
        return {"index": self.add("textures", texture)}

    def material(self, color=(1, 1, 1, 1), texture=None, **more) -> int:
        """Append a material."""
        surface = {"baseColorFactor": list(color), **({"baseColorTexture": texture} if texture else {})}
        return self.add("materials", {"pbrMetallicRoughness": surface, **more})

    def primitive(self, points=SQUARE, faces=SQUARE_FACES, material=None, *, primitive=None, **attributes) -> dict:
        """Return a primitive; attributes are accessors' indices or arrays."""
        found = {"POSITION": points, "TEXCOORD_0": SQUARE_UV if len(points) == 4 else None, **attributes}
        out = {
            "attributes": {
                name: value if isinstance(value, int) else self.accessor(value)
                for name, value in found.items()
                if value is not None
            },
            **(primitive or {}),
        }
        if faces is not None:
            out["indices"] = self.accessor(faces)
        if material is not None:
            out["material"] = material
        return out

    def mesh(self, *primitives, root=True, **node) -> int:
        """Append a node with a mesh of primitives."""
        mesh = self.add("meshes", {"primitives": list(primitives)})
        return self.node(root=root, mesh=mesh, **node)

    def node(self, *, root=True, **node) -> int:
        """Append a node, by default to the scene."""
        index = self.add("nodes", node)
        if root:
            self.json["scenes"][0]["nodes"].append(index)
        return index

    def save(self, path: pathlib.Path) -> pathlib.Path:
        """Write a .glb, or a .gltf with its buffer inside."""
        if path.suffix == ".gltf":
            uri = "data:application/octet-stream;base64," + base64.b64encode(self.binary).decode()
            buffers = self.json.get("buffers") or [{"uri": uri, "byteLength": len(self.binary)}]
            path.write_text(json.dumps({**self.json, "buffers": buffers}))
            return path
        buffers = [{"byteLength": len(self.binary)}]
        text = json.dumps({**self.json, **({"buffers": buffers} if self.binary else {})}).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + bytes(-len(self.binary) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


def extents(path):
    """Sizes along glTF's x (right), y (up) and z."""
    sizes = np.ptp(reading.read_asset(path).vertices, axis=0)[[1, 2, 0]]
    return sizes / sizes.max()
