"""Models of COLMAP are read as views."""

import struct

import numpy as np
import pytest
from PIL import Image

from e3d_jax import cameras, colmap, views_io

SIZE, RING = 16, cameras.ring(16, 3)
NAMES = ["a b.png", "c.png", "d.png"]


def poses():
    """Quaternions and translations of the cameras from the world."""
    for pose in np.asarray(RING.world_from_cam, np.float64):
        rotation = pose[:3, :3].T
        w = np.sqrt(max(1 + np.trace(rotation), 1e-12)) / 2
        x, y, z = (rotation[[2, 0, 1], [1, 2, 0]] - rotation[[1, 2, 0], [2, 0, 1]]) / (4 * w)
        yield (w, x, y, z), -rotation @ pose[:3, 3]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    for name in NAMES:
        rgba = np.zeros((SIZE, SIZE, 4), np.uint8)
        rgba[4:12, 4:12] = 255
        Image.fromarray(rgba).save(tmp_path / "images" / name)
    return tmp_path


def write_text(folder, camera=f"1 SIMPLE_PINHOLE {SIZE} {SIZE} 20 8 8"):
    model = folder / "sparse" / "0"
    (model / "cameras.txt").write_text(f"# Cameras\n{camera}\n")
    lines = ["# Images"]
    for number, (name, (quaternion, translation)) in enumerate(zip(NAMES, poses(), strict=True)):
        lines += [f"{number} {' '.join(map(str, [*quaternion, *translation]))} 1 {name}", "" if number else "1 2 3"]
    (model / "images.txt").write_text("\n".join(lines) + "\n")


def write_binary(folder):
    model = folder / "sparse" / "0"
    (model / "cameras.bin").write_bytes(struct.pack("<QiiQQ3d", 1, 1, 0, SIZE, SIZE, 20, 8, 8))
    data = struct.pack("<Q", 3)
    for number, (name, (quaternion, translation)) in enumerate(zip(NAMES, poses(), strict=True)):
        data += struct.pack("<i7di", number, *quaternion, *translation, 1) + name.encode() + b"\0"
        data += struct.pack("<Q", number) + struct.pack("<ddq", 1, 2, -1) * number
    (model / "images.bin").write_bytes(data)


@pytest.mark.parametrize("write", [write_text, write_binary])
def test_a_model_is_read(folder, write):
    write(folder)
    views = views_io.read_views(folder)
    np.testing.assert_allclose(views.cameras.world_from_cam, RING.world_from_cam, atol=1e-5)
    np.testing.assert_array_equal(views.cameras.focal, [[20, 20]] * 3)


def test_masks_are_named_like_the_images(folder):
    write_text(folder)
    (folder / "masks").mkdir()
    for name in NAMES:
        Image.new("L", (SIZE, SIZE), 255).save(folder / "masks" / f"{name}.png")
        Image.new("RGB", (SIZE, SIZE)).save(folder / "images" / name)
    assert (views_io.read_views(folder).rgba[..., 3] == 1).all()


def test_distortion_of_a_model_is_read(folder):
    write_text(folder, f"1 SIMPLE_RADIAL {SIZE} {SIZE} 20 8 8 0.25")
    assert colmap.read(folder, folder / "sparse" / "0")["frames"][0]["k1"] == 0.25


def test_a_camera_model_of_later_versions_is_named(folder):
    write_binary(folder)
    path = folder / "sparse" / "0" / "cameras.bin"
    path.write_bytes(struct.pack("<QiiQQ", 1, 1, 11, SIZE, SIZE) + bytes(16 * 8))
    with pytest.raises(ValueError, match="camera 1 is of model 11, which is not supported; undistort the images first"):
        views_io.read_views(folder)


@pytest.mark.parametrize("write", [write_text, write_binary])
def test_a_damaged_model_is_named(folder, write):
    write(folder)
    for path in (folder / "sparse" / "0").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not a whole model of COLMAP"):
        views_io.read_views(folder)
