"""Stanford PLY files as parts: faces of any mixture of polygons, or triangle strips."""

import dataclasses
import pathlib
import re

import numpy as np

from e3d_jax.data.assets import parts, polygons, textures

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_UVS = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
_INDICES = ("vertex_indices", "vertex_index")


@dataclasses.dataclass(frozen=True)
class _Property:
    name: str
    kind: str
    count_kind: str | None = None  # Of a list.


@dataclasses.dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: list[_Property]


@dataclasses.dataclass(frozen=True)
class _List:
    """A list per row, all in one array."""

    values: np.ndarray
    counts: np.ndarray


_Columns = dict[str, "np.ndarray | _List"]


def read(path: pathlib.Path, warnings: list[str]) -> list[parts.Part]:
    """Read a .ply with colors of vertices or faces, or its texture.

    Args:
      path: of the file.
      warnings: gets a line for a texture that cannot be loaded.

    Raises:
      ValueError: it is damaged.
    """
    data = path.read_bytes()
    order, elements, comments, start = _header(data)
    reader = _Text(data[start:]) if order is None else _Binary(data, start, order)
    columns: dict[str, _Columns] = {}
    for element in elements:
        columns[element.name] = reader.read(element)
    vertex = columns.get("vertex", {})
    if not {"x", "y", "z"} <= set(vertex):
        raise ValueError("its vertices have no x, y, z")
    vertices = np.stack([np.asarray(vertex[axis], np.float64) for axis in "xyz"], -1)
    face, strips = columns.get("face", {}), columns.get("tristrips", {})
    lists = next((face[name] for name in _INDICES if name in face), None)
    if isinstance(lists, _List) and len(lists.counts):
        corners = lists.values.astype(np.int64)
        triangles, polygon = _polygons(vertices, corners, lists.counts)
        faces = corners[triangles]
    else:
        strip = next((strips[name] for name in _INDICES if name in strips), None)
        faces = _strips(strip) if isinstance(strip, _List) else np.zeros((0, 3), np.int64)
        triangles = polygon = np.zeros(0, np.int64)
        face = {}
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertices)):
        raise ValueError(f"a face has a vertex that is not one of the {len(vertices)}")
    texture, uv = _texture(path, comments, vertex, face, faces, triangles, warnings)
    if texture is not None:
        return [parts.part(vertices, faces, parts.Material(texture), colors=1.0, uv=uv)]
    if (colors := _colors(vertex)) is not None:
        return [parts.part(vertices, faces, colors=colors[faces])]
    if (colors := _colors(face)) is not None:
        return [parts.part(vertices, faces, colors=np.repeat(colors[polygon][:, None], 3, 1))]
    return [parts.part(vertices, faces)]


def _polygons(vertices, corners, counts):
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        raise ValueError(f"a face has a vertex that is not one of the {len(vertices)}")
    return polygons.triangulate(vertices, corners, counts)


def _strips(strip: _List) -> np.ndarray:
    """Return the triangles of strips; -1 starts the next one."""
    out = [np.zeros((0, 3), np.int64)]
    ends = np.cumsum(strip.counts)
    for first, end in zip(ends - strip.counts, ends, strict=True):
        indices = strip.values[first:end].astype(np.int64)
        for run in np.split(indices, np.flatnonzero(indices < 0)):
            run = run[run >= 0]
            triangles = np.stack([run[:-2], run[1:-1], run[2:]], -1) if len(run) > 2 else np.zeros((0, 3), np.int64)
            triangles[1::2] = triangles[1::2][:, [1, 0, 2]]
            out.append(triangles)
    return np.concatenate(out)


def _colors(columns: _Columns) -> np.ndarray | None:
    """Return display-encoded colors in [0, 1]; integers by the range of their type."""
    for names in _COLORS:
        if all(isinstance(columns.get(name), np.ndarray) for name in names):
            values = np.stack([np.asarray(columns[name]) for name in names], -1)
            if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
                return values / np.iinfo(values.dtype).max
            return (values / 255.0 if values.size and values.max() > 1 else values.astype(np.float64)).clip(0, 1)
    return None


def _texture(path, comments, vertex, face, faces, triangles, warnings):
    """Return the texture that a comment names, and texture coordinates of corners; (None, None) without either."""
    uv = None
    for names in _UVS:
        if all(isinstance(vertex.get(name), np.ndarray) for name in names):
            uv = np.stack([vertex[name] for name in names], -1).astype(np.float64)[faces]
            break
    given = face.get("texcoord")
    if isinstance(given, _List) and len(triangles) and given.values.size == 2 * (indices := _index_count(face)):
        uv = given.values.reshape(indices, 2).astype(np.float64)[triangles]
    named = [comment.split(None, 1)[1] for comment in comments if re.match(r"texturefile\s+\S", comment, re.I)]
    if uv is None or not named:
        return None, None
    if len(named) > 1:
        warnings.append(f"{path}: only the first of its {len(named)} textures is used")
    found, note = textures.find(path.parent, named[0].strip())
    if note:
        warnings.append(f"{path}: texture {note}")
    try:
        if found is None:
            raise ValueError("it is not there")
        image = textures.open_image(found.read_bytes(), str(found)).convert("RGB")
        return parts.Texture(textures.pixels(image)), uv
    except (OSError, ValueError) as error:
        warnings.append(f"{path}: texture {textures.printable(named[0].strip())!r} was left out: {error}")
        return None, None


def _index_count(face) -> int:
    return next(face[name].values.size for name in _INDICES if name in face)


def _header(data: bytes) -> tuple[str | None, list[_Element], list[str], int]:
    """Return byte order (None for text), elements, comments, and where the header ends."""
    end = re.search(rb"[\r\n]end_header[ \t]*(\r\n|\n|\r)", data)
    if data[:3] != b"ply" or end is None:
        raise ValueError("it has no PLY header")
    order, elements, comments = None, [], []
    for line in data[: end.start()].decode("utf-8", "surrogateescape").splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            order = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}[words[1]]
        elif words[:1] == ["element"]:
            elements.append(_Element(words[1], int(words[2]), []))
        elif words[:2] == ["property", "list"]:
            elements[-1].properties.append(_Property(words[4], _TYPES[words[3]], _TYPES[words[2]]))
        elif words[:1] == ["property"]:
            elements[-1].properties.append(_Property(words[2], _TYPES[words[1]]))
        elif words[:1] in (["comment"], ["obj_info"]):
            comments.append(line.strip().partition(" ")[2])
    return order, elements, comments, end.end()


def _split(rows: np.ndarray, properties: list[_Property], counts: dict[str, int]) -> _Columns:
    """Return the columns of rows that are alike."""
    out: _Columns = {}
    for each in properties:
        if each.count_kind is None:
            out[each.name] = rows[each.name]
        else:
            values = rows[each.name].reshape(-1)
            out[each.name] = _List(values, np.full(len(rows), counts[each.name], np.int64))
    return out


class _Binary:
    def __init__(self, data: bytes, at: int, order: str):
        self._data, self._at, self._order = data, at, order

    def read(self, element: _Element) -> _Columns:
        """Return the columns of an element."""
        if not element.count:
            return {}
        counts = self._first_counts(element)
        kind = np.dtype(
            [
                field
                for each in element.properties
                for field in (
                    [(each.name, self._order + each.kind)]
                    if each.count_kind is None
                    else [
                        (f"{each.name} count", self._order + each.count_kind),
                        (each.name, self._order + each.kind, (counts[each.name],)),
                    ]
                )
            ]
        )
        if self._at + kind.itemsize * element.count <= len(self._data):
            rows = np.frombuffer(self._data, kind, element.count, self._at)
            if all((rows[f"{name} count"] == count).all() for name, count in counts.items()):
                self._at += kind.itemsize * element.count
                return _split(rows, element.properties, counts)
        if not counts:
            raise ValueError(f"it ends within its element {element.name}")
        return self._mixed(element)

    def _first_counts(self, element: _Element) -> dict[str, int]:
        """Return the lengths of the lists of the first row."""
        at, out = self._at, {}
        for each in element.properties:
            if each.count_kind is None:
                at += np.dtype(each.kind).itemsize
            else:
                count = self._count(each, at)
                out[each.name] = count
                at += np.dtype(each.count_kind).itemsize + count * np.dtype(each.kind).itemsize
        return out

    def _count(self, each: _Property, at: int) -> int:
        kind = np.dtype(each.count_kind)
        if at + kind.itemsize > len(self._data):
            raise ValueError("it ends within a list")
        order = "little" if self._order == "<" else "big"
        return int.from_bytes(self._data[at : at + kind.itemsize], order)  # type: ignore[arg-type]

    def _mixed(self, element: _Element) -> _Columns:
        """Read rows of different lengths."""
        starts: dict[str, list[int]] = {each.name: [] for each in element.properties}
        counts: dict[str, list[int]] = {each.name: [] for each in element.properties}
        sizes = [
            (each, np.dtype(each.kind).itemsize, np.dtype(each.count_kind or "u1").itemsize)
            for each in element.properties
        ]
        data, order = self._data, "little" if self._order == "<" else "big"
        at = self._at
        for _ in range(element.count):
            for each, size, count_size in sizes:
                count = 1
                if each.count_kind is not None:
                    count = int.from_bytes(data[at : at + count_size], order)  # type: ignore[arg-type]
                    at += count_size
                starts[each.name].append(at)
                counts[each.name].append(count)
                at += count * size
            if at > len(data):
                raise ValueError(f"it ends within its element {element.name}")
        self._at = at
        raw, out = np.frombuffer(data, np.uint8), dict[str, "np.ndarray | _List"]()
        for each, size, _ in sizes:
            lengths = np.array(counts[each.name], np.int64)
            first = np.repeat(np.array(starts[each.name], np.int64), lengths)
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            where = (first + within * size)[:, None] + np.arange(size)
            values = np.ascontiguousarray(raw[where]).view(self._order + each.kind).reshape(-1)
            out[each.name] = values if each.count_kind is None else _List(values, lengths)
        return out


class _Text:
    def __init__(self, data: bytes):
        self._tokens, self._at = data.split(), 0

    def read(self, element: _Element) -> _Columns:
        """Return the columns of an element."""
        if not any(each.count_kind for each in element.properties):
            width = len(element.properties)
            tokens = self._take(width * element.count)
            rows = np.array(tokens, np.float64).reshape(element.count, width)
            return {each.name: rows[:, at].astype(each.kind) for at, each in enumerate(element.properties)}
        values: dict[str, list[bytes]] = {each.name: [] for each in element.properties}
        counts: dict[str, list[int]] = {each.name: [] for each in element.properties}
        for _ in range(element.count):
            for each in element.properties:
                count = 1 if each.count_kind is None else int(self._take(1)[0])
                counts[each.name].append(count)
                values[each.name] += self._take(count)
        out: _Columns = {}
        for each in element.properties:
            column = np.array(values[each.name], np.float64).astype(each.kind)
            out[each.name] = column if each.count_kind is None else _List(column, np.array(counts[each.name], np.int64))
        return out

    def _take(self, count: int) -> list[bytes]:
        if self._at + count > len(self._tokens):
            raise ValueError(f"it has {len(self._tokens)} values; expected more")
        self._at += count
        return self._tokens[self._at - count : self._at]
