"""glTF 2.0 files: their JSON, buffers, and accessors."""

import base64
import json
import pathlib
import struct
import urllib.parse
from typing import Any

import numpy as np
from jaxtyping import Shaped

from e3d_jax.data.assets import meshopt, parts, textures

# Those that change geometry or base color, and are read.
_READ = frozenset(
    {
        "EXT_mesh_gpu_instancing",
        "EXT_meshopt_compression",
        "EXT_texture_avif",
        "EXT_texture_webp",
        "KHR_draco_mesh_compression",
        "KHR_materials_emissive_strength",
        "KHR_materials_pbrSpecularGlossiness",
        "KHR_materials_transmission",
        "KHR_materials_unlit",
        "KHR_mesh_quantization",
        "KHR_meshopt_compression",
        "KHR_node_visibility",
        "KHR_texture_transform",
        "MSFT_texture_dds",
    }
)
# Those that change nothing that is drawn here: reflections, lights, animations, other looks to choose from, notes.
_WITHOUT_EFFECT = frozenset(
    {
        "CESIUM_primitive_outline",
        "EXT_lights_image_based",
        "EXT_mesh_features",
        "EXT_structural_metadata",
        "FB_ngon_encoding",
        "KHR_animation_pointer",
        "KHR_lights_punctual",
        "KHR_materials_anisotropy",
        "KHR_materials_clearcoat",
        "KHR_materials_diffuse_transmission",
        "KHR_materials_dispersion",
        "KHR_materials_ior",
        "KHR_materials_iridescence",
        "KHR_materials_sheen",
        "KHR_materials_specular",
        "KHR_materials_variants",
        "KHR_materials_volume",
        "KHR_xmp",
        "KHR_xmp_json_ld",
    }
)
_COMPONENTS = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}


class Document:
    """An open file.

    Attributes:
      path: of the file.
      json: its JSON.
    """

    def __init__(self, path: pathlib.Path, warnings: list[str]):
        """Read a .glb or .gltf.

        Args:
          path: of the file.
          warnings: see :meth:`warn`.

        Raises:
          UnreadableError: it is of another version, or requires an extension that cannot be read.
          ValueError: it is damaged.
        """
        self.path, self._warnings = path, warnings
        data = path.read_bytes()
        text, self._binary = _chunks(data) if data[:4] == b"glTF" else (data, None)
        self.json: dict[str, Any] = json.loads(text.decode("utf-8-sig").rstrip("\0 "))
        version = str(self.json.get("asset", {}).get("minVersion") or self.json.get("asset", {}).get("version", "2.0"))
        if version.split(".")[0] != "2":
            raise parts.UnreadableError(f"is of glTF {version}; convert it to glTF 2.0")
        unknown = sorted(set(self.json.get("extensionsRequired", [])) - _READ - _WITHOUT_EFFECT)
        if unknown:
            raise parts.UnreadableError(f"requires {', '.join(unknown)}, which cannot be read; export it without")
        self._buffers: dict[int, bytes] = {}
        self._views: dict[int, tuple[np.ndarray, int | None]] = {}

    def warn(self, text: str) -> None:
        """Add a line about this file to the warnings."""
        self._warnings.append(f"{self.path}: {text}")

    def uri(self, uri: str) -> bytes:
        """Return what a URI means: data of its own, or a file beside this one.

        Raises:
          ValueError: it is not there.
        """
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            data = urllib.parse.unquote_to_bytes(body)
            return base64.b64decode(data) if head.endswith(";base64") else data
        for name in dict.fromkeys((urllib.parse.unquote(uri, errors="surrogateescape"), uri)):
            found, note = textures.find(self.path.parent, name)
            if found is not None:
                if note:
                    self.warn(note)
                return found.read_bytes()
        raise ValueError(f"{urllib.parse.unquote(uri, errors='replace')} is not there")

    def view(self, index: int) -> tuple[Shaped[np.ndarray, " n"], int | None]:
        """Return the bytes of a buffer view and its stride."""
        if index not in self._views:
            view = self.json["bufferViews"][index]
            extensions = view.get("extensions", {})
            packed = extensions.get("KHR_meshopt_compression") or extensions.get("EXT_meshopt_compression")
            if packed is None:
                self._views[index] = self._slice(view), view.get("byteStride")
            else:
                rows = meshopt.decode(
                    self._slice(packed).tobytes(),
                    packed["count"],
                    packed["byteStride"],
                    packed["mode"],
                    packed.get("filter", "NONE"),
                )
                stride = packed["byteStride"] if packed["mode"] == "ATTRIBUTES" else None
                self._views[index] = rows.reshape(-1), stride
        return self._views[index]

    def accessor(self, index: int, *, normalized: bool = False) -> Shaped[np.ndarray, "n c"]:
        """Return the values of an accessor; normalized integers as floats.

        Args:
          index: of the accessor.
          normalized: integers are normalized whatever the accessor says.
        """
        accessor = self.json["accessors"][index]
        kind, count, width = np.dtype(_COMPONENTS[accessor["componentType"]]), accessor["count"], accessor["type"]
        if "bufferView" in accessor:
            values = self._read(accessor["bufferView"], accessor.get("byteOffset", 0), kind, count, width)
        else:
            values = np.zeros((count, _WIDTHS[width]), kind)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            of, to = sparse["indices"], sparse["values"]
            kind_of = np.dtype(_COMPONENTS[of["componentType"]])
            at = self._read(of["bufferView"], of.get("byteOffset", 0), kind_of, sparse["count"], "SCALAR")[:, 0]
            values = values.copy()
            values[at] = self._read(to["bufferView"], to.get("byteOffset", 0), kind, sparse["count"], width)
        return self.to_floats(values) if accessor.get("normalized") or normalized else values

    @staticmethod
    def to_floats(values: Shaped[np.ndarray, "n c"]) -> Shaped[np.ndarray, "n c"]:
        """Return normalized integers as floats from -1 or 0 to 1, and floats as they are."""
        if not np.issubdtype(values.dtype, np.integer):
            return values
        return np.maximum(values / np.iinfo(values.dtype).max, -1.0)

    def _read(self, view: int, offset: int, kind: np.dtype, count: int, width: str) -> np.ndarray:
        data, stride = self.view(view)
        # Columns of matrices start at multiples of four bytes.
        rows = {"MAT2": 2, "MAT3": 3}.get(width, 0)
        padded = -(-rows * kind.itemsize // 4) * 4 // kind.itemsize if rows else 0
        columns = rows * padded if padded else _WIDTHS[width]
        size = columns * kind.itemsize
        stride = stride or size
        data = data[offset:]
        if count and (count - 1) * stride + size > len(data):
            raise ValueError(f"a buffer view ends before its {count} values do")
        data = np.ascontiguousarray(data)
        strided = np.lib.stride_tricks.as_strided(data, (count, size), (stride, 1)) if count else np.zeros((0, size))
        values = np.ascontiguousarray(strided, np.uint8).view(kind.newbyteorder("<")).reshape(count, columns)
        values = values.astype(kind, copy=False)
        return values.reshape(count, rows, padded)[:, :, :rows].reshape(count, -1) if padded else values

    def _slice(self, view: dict) -> np.ndarray:
        start, length = view.get("byteOffset", 0), view["byteLength"]
        data = self._buffer(view["buffer"])
        if start + length > len(data):
            raise ValueError(f"a buffer has {len(data)} bytes; expected at least {start + length}")
        return np.frombuffer(data, np.uint8, length, start)

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            buffer = self.json["buffers"][index]
            if "uri" in buffer:
                self._buffers[index] = self.uri(buffer["uri"])
            elif self._binary is not None:
                self._buffers[index] = self._binary
            else:
                raise ValueError(f"buffer {index} has no data")
        return self._buffers[index]


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """Return the JSON and the binary chunk of a .glb."""
    version = struct.unpack_from("<I", data, 4)[0]
    if version == 1:
        raise parts.UnreadableError(f"is of binary glTF {version}; convert it to glTF 2.0")
    found: dict[bytes, bytes] = {}
    offset = 12
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from("<I4s", data, offset)
        if offset + 8 + length > len(data):
            raise ValueError(f"it ends after {len(data)} bytes, within a chunk")
        found.setdefault(kind, data[offset + 8 : offset + 8 + length])
        offset += 8 + -(-length // 4) * 4
    return found[b"JSON"], found.get(b"BIN\0")
