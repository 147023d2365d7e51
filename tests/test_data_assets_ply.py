"""PLY files: polygons, strips, colors of all types, textures."""

import struct

import gltf_files
import numpy as np
import pytest

from e3d_jax.data.assets import reading

# A square with a roof, x y z: area 5.
HOUSE = [(0, -1, -1), (0, 1, -1), (0, 1, 1), (0, -1, 1), (0, 0, 2)]
FACES = [(0, 1, 2, 3), (3, 2, 4)]


def header(order, *lines):
    return "\n".join(["ply", f"format {order} 1.0", *lines, "end_header", ""]).encode()


def house(order, extra=""):
    lines = ["element vertex 5", *(f"property float {axis}" for axis in "xyz")]
    lines += ["element face 2", "property list uchar int vertex_indices"]
    if extra:
        lines.append("property float quality")
    if order == "ascii":
        body = "".join(f"{x} {y} {z}\n" for x, y, z in HOUSE)
        body += "".join(f"{len(face)} {' '.join(map(str, face))}{extra and ' 1'}\n" for face in FACES)
        return header(order, *lines) + body.encode()
    sign = "<" if "little" in order else ">"
    body = b"".join(struct.pack(f"{sign}3f", *point) for point in HOUSE)
    for face in FACES:
        body += struct.pack(f"{sign}B{len(face)}i", len(face), *face) + (struct.pack(f"{sign}f", 1) if extra else b"")
    return header(f"{order}_endian", *lines) + body


def area(asset):
    a, b, c = np.moveaxis(asset.vertices[asset.faces] * 3 / np.ptp(asset.vertices, axis=0).max(), 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


@pytest.fixture
def read(tmp_path):
    def read(data):
        (tmp_path / "file.ply").write_bytes(data)
        return reading.read_asset(tmp_path / "file.ply")

    return read


@pytest.mark.parametrize("order", ["ascii", "binary_little", "binary_big"])
@pytest.mark.parametrize("extra", ["", "quality"])
def test_mixed_polygons(read, order, extra):
    asset = read(house(order, extra))
    assert len(asset.faces) == 3 and area(asset) == pytest.approx(5, abs=1e-5)


def test_a_comment_does_not_end_the_header(read):
    assert len(read(house("ascii").replace(b"element vertex", b"comment end_header\nelement vertex")).faces) == 3


def test_concave_polygons(read):
    corners = [(0, 3, 0), (0, 3, 1), (0, 1, 1), (0, 1, 3), (0, 0, 3), (0, 0, 0)]
    lines = ["element vertex 6", *(f"property float {axis}" for axis in "xyz")]
    lines += ["element face 1", "property list uchar int vertex_index"]
    body = "".join(f"{x} {y} {z}\n" for x, y, z in corners) + "6 0 1 2 3 4 5\n"
    assert area(read(header("ascii", *lines) + body.encode())) == pytest.approx(5, abs=1e-5)


@pytest.mark.parametrize("order", ["ascii", "binary_little"])
def test_triangle_strips(read, order):
    points = [(0, -1, -1), (0, 1, -1), (0, -1, 1), (0, 1, 1), (0, -1, 3), (0, 1, 3)]
    strip = [0, 1, 2, 3, -1, 2, 3, 4, 5]
    lines = ["element vertex 6", *(f"property float {axis}" for axis in "xyz")]
    lines += ["element face 0", "property list uchar int vertex_indices"]
    lines += ["element tristrips 1", "property list int int vertex_indices"]
    if order == "ascii":
        body = "".join(f"{x} {y} {z}\n" for x, y, z in points) + f"9 {' '.join(map(str, strip))}\n"
        data = header(order, *lines) + body.encode()
    else:
        body = b"".join(struct.pack("<3f", *point) for point in points) + struct.pack("<10i", 9, *strip)
        data = header("binary_little_endian", *lines) + body
    asset = read(data)
    a, b, c = np.moveaxis(asset.vertices[asset.faces], 1, 0)
    assert len(asset.faces) == 4 and (np.cross(b - a, c - a)[:, 0] > 0).all()


@pytest.mark.parametrize(
    ("kind", "value"), [("uchar", (255, 128, 40)), ("ushort", (65535, 32896, 10280)), ("float", (1, 0.50196, 0.15686))]
)
@pytest.mark.parametrize("prefix", ["", "diffuse_"])
def test_colors_of_vertices(read, kind, value, prefix):
    lines = ["element vertex 3", *(f"property float {axis}" for axis in "xyz")]
    lines += [f"property {kind} {prefix}{name}" for name in ("red", "green", "blue")]
    lines += ["element face 1", "property list uchar int vertex_indices"]
    body = "".join(f"{x} {y} {z} {' '.join(map(str, value))}\n" for x, y, z in HOUSE[:3]) + "3 0 1 2\n"
    asset = read(header("ascii", *lines) + body.encode())
    np.testing.assert_allclose(asset.corner_colors[0], [[1, 128 / 255, 40 / 255]] * 3, atol=1e-4)


def test_colors_of_faces(read):
    lines = ["element vertex 5", *(f"property float {axis}" for axis in "xyz")]
    lines += ["element face 2", "property list uchar int vertex_indices"]
    lines += [f"property uchar {name}" for name in ("red", "green", "blue")]
    body = "".join(f"{x} {y} {z}\n" for x, y, z in HOUSE) + "4 0 1 2 3 255 0 0\n3 3 2 4 0 0 255\n"
    asset = read(header("ascii", *lines) + body.encode())
    np.testing.assert_allclose(asset.corner_colors[:, 0], [[1, 0, 0], [1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("where", ["vertices", "faces"])
def test_textures(read, tmp_path, where):
    (tmp_path / "skin.png").write_bytes(gltf_files.png(gltf_files.QUARTERS))
    uv = [(0, 0), (1, 0), (1, 1), (0, 1)]
    lines = ["comment TextureFile skin.png", "element vertex 4", *(f"property float {axis}" for axis in "xyz")]
    lines += ["property float s", "property float t"] if where == "vertices" else []
    lines += ["element face 1", "property list uchar int vertex_indices"]
    lines += ["property list uchar float texcoord"] if where == "faces" else []
    rows = [[*point, *(at if where == "vertices" else ())] for point, at in zip(HOUSE[:4], uv, strict=True)]
    body = "".join(" ".join(map(str, row)) + "\n" for row in rows) + "4 0 1 2 3"
    body += (" 8 " + " ".join(str(value) for at in uv for value in at) if where == "faces" else "") + "\n"
    asset = read(header("ascii", *lines) + body.encode())
    assert asset.materials[0].texture is not None and not asset.warnings
    np.testing.assert_allclose(asset.corner_uv[0], uv[:3])


def test_a_file_that_ends_too_early_is_damaged(read):
    with pytest.raises(ValueError, match="damaged"):
        read(house("binary_little")[:-6])
