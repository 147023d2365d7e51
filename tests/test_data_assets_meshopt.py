"""Buffers that meshoptimizer packed, as files hold them."""

import gltf_files
import numpy as np
import pytest
from gltf_files import extents

from e3d_jax.data.assets import meshopt

# By meshoptimizer's own encoder: a grid of 5 x 5 vertices, x, y, z and padding, 16 bits each.
MESHOPT_VERTICES = {
    0: "a00700c8c8c8c8e0c8c8c8c8e0c8c8c8c8e0ffffc000c8c8c8c8e0c8c8c8c80508120481204800000500300c034ade8d00c00000060500"
    "0008020080000005000fffff9a9a9a420fcbdccbdc1fffffc000318989892f10101010000000000000000000000000000000000000000000"
    "00000000000038ffd4fe00000000",
    1: "a157a900c8c8c8c81fc8c8c8c81fc8c8c8c81fc8c8c8c81fc8c8c8c80020840303031000030020844ade721000060000800110000200c0"
    "ff9a9a9a420fcbdccbdc1fff01318989892f10101010000000000000000000000000000038ffd4fe000000000100",
}
MESHOPT_TRIANGLES = (
    "e1fe1e100e100e100ece1e160e150e140ece1e140e140e140ece1e140e140e140e0f0a007687566778a9866589689801690000"
)
MESHOPT_SEQUENCE = (
    "d10004100e14020e04100e14020e04100e14020e04100e14020a04100e14020e04100e14020e04100e14020e04100e14020a04100e14020e04"
    "100e14020e04100e14020e04100e14020a04100e14020e04100e14020e04100e14020e04100e140200000000"
)


def grid():
    y, x = np.mgrid[:5, :5]
    points = np.stack([x * 100 - 200, y * y * 37 - 300, (x * y * 977) % 300, 0 * x], -1).reshape(-1, 4)
    corner = (5 * y + x)[:4, :4].reshape(-1, 1)
    return points.astype(np.int16), (corner + np.array([0, 1, 5, 1, 6, 5])).reshape(-1, 3)


@pytest.mark.parametrize("version", [0, 1])
def test_meshopt_vertices(version):
    data = bytes.fromhex(MESHOPT_VERTICES[version])
    np.testing.assert_array_equal(meshopt.decode(data, 25, 8, "ATTRIBUTES").view(np.int16), grid()[0])


def test_meshopt_triangles_up_to_rotation():
    found = meshopt.decode(bytes.fromhex(MESHOPT_TRIANGLES), 96, 4, "TRIANGLES").view(np.uint32).reshape(-1, 3)
    rolled = [np.roll(face, -face.argmin()) for face in found.astype(int)]
    np.testing.assert_array_equal(rolled, [np.roll(face, -face.argmin()) for face in grid()[1]])


def test_meshopt_sequences():
    found = meshopt.decode(bytes.fromhex(MESHOPT_SEQUENCE), 96, 4, "INDICES").view(np.uint32).reshape(-1, 3)
    np.testing.assert_array_equal(found, grid()[1])


@pytest.mark.parametrize(
    ("filter", "data", "kind", "expected", "tolerance"),
    [
        (
            "EXPONENTIAL",
            "a0000130000000540001300000000a00013000000028012000000001300000000a0130000000ff01300000006701100000000130000000"
            "0a0000000000000000000000000000000000000000000800f400ecfff4003000f4",
            np.float32, [[0.5, -1.25, 3], [100, 0, -7]], 2e-3,
        ),
        (
            "QUATERNION",
            "a00130000000af0130000000030130000000b201300000000b0130000000b101300000000a0130000000030000000000000000000000000"
            "0000000000000000000000000ff0700000000fe07",
            np.int16, np.array([[0, 0, 0.7071, 0.7071], [0.5, 0.5, -0.5, 0.5]]) * 32767, 32,
        ),
        (
            "OCTAHEDRAL",
            "a00130000000fe01300000009200000000000000000000000000000000000000000000000000000000000000007f00",
            np.int8, [[0, 0, 127, 0], [76, 0, -102, 0]], 1,
        ),
        (
            "COLOR",
            "a1feff000900040019000100050002000500000000000000000000000000000009ff0501ffff0f0000",
            np.uint16, np.array([[1, 0.5, 0.25, 1], [0, 0, 1, 0.5]]) * 65535, 40,
        ),
    ],
)  # fmt: skip
def test_meshopt_filters(filter, data, kind, expected, tolerance):
    stride = np.dtype(kind).itemsize * np.shape(expected)[1]
    found = meshopt.decode(bytes.fromhex(data), 2, stride, "ATTRIBUTES", filter).view(kind)
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("extension", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
def test_meshopt_views(tmp_path, extension):
    file = gltf_files.File(extensionsRequired=[extension, "KHR_mesh_quantization"])

    def packed(data, **more):
        view = file.view(bytes.fromhex(data))
        place = {name: file.json["bufferViews"][view][name] for name in ("buffer", "byteOffset", "byteLength")}
        return file.add("bufferViews", {**place, "extensions": {extension: {**place, **more}}})

    points = packed(MESHOPT_VERTICES[0], mode="ATTRIBUTES", count=25, byteStride=8)
    faces = packed(MESHOPT_TRIANGLES, mode="TRIANGLES", count=96, byteStride=4)
    primitive = {
        "attributes": {
            "POSITION": file.add(
                "accessors", {"bufferView": points, "componentType": 5122, "count": 25, "type": "VEC3"}
            )
        },
        "indices": file.add("accessors", {"bufferView": faces, "componentType": 5125, "count": 96, "type": "SCALAR"}),
    }
    file.mesh(primitive)
    np.testing.assert_allclose(
        extents(file.save(tmp_path / "file.glb")),
        np.ptp(grid()[0], axis=0)[:3] / 592,
        atol=1e-5,
    )
