"""The views folder: round trip, compatibility with other tools, and errors."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from e3d_jax import cameras, structs, views_io


def some_views(num_views=4, size=16) -> structs.ViewSet:
    generator = np.random.default_rng(0)
    rgba = generator.random((num_views, size, size, 4), np.float32)
    rgba[:, 4:12, 4:12, 3] = 1
    normals = generator.normal(size=(2, size, size, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[:, :4] = 0
    return structs.ViewSet(rgba, cameras.ring(size, num_views), np.array([0, 2]), normals, np.array([0, 2]))


@pytest.fixture
def folder(tmp_path):
    views_io.write_views(tmp_path / "views", some_views())
    return tmp_path / "views"


def edit(folder, change):
    path = folder / "transforms.json"
    transforms = json.loads(path.read_text())
    change(transforms)
    path.write_text(json.dumps(transforms))


def test_round_trip(folder):
    views, back = some_views(), views_io.read_views(folder)
    np.testing.assert_allclose(back.rgba, views.rgba, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(back.normals, views.normals, atol=0.02)
    np.testing.assert_array_equal(back.normal_views, views.normal_views)
    np.testing.assert_array_equal(back.anchors, views.anchors)
    for got, expected in zip(jax.tree.leaves(back.cameras), jax.tree.leaves(views.cameras), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_poses_in_the_file_are_opengl(folder):
    frame = json.loads((folder / "transforms.json").read_text())["frames"][0]
    np.testing.assert_allclose(np.array(frame["transform_matrix"])[:3, 2], [1, 0, 0], atol=1e-6)
    assert frame["file_path"] == "rgb_00.png" and frame["azimuth_deg"] == 0 and frame["anchor"] is True


def test_only_views_with_normals_have_normal_files(folder):
    assert sorted(path.name for path in folder.glob("normal_*")) == ["normal_00.png", "normal_02.png"]


def test_fewer_views_replace_more(folder):
    views_io.write_views(folder, some_views(num_views=3))
    assert len(views_io.read_views(folder).rgba) == 3


def test_nerf_files_are_read(folder):
    """Focal length as a field of view, names without suffix, no anchors."""

    def as_nerf(transforms):
        for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
            del transforms[key]
        transforms["camera_angle_x"] = 2 * np.arctan(0.5 / cameras.RELEASED.focal)
        for frame in transforms["frames"]:
            frame["file_path"] = frame["file_path"].removesuffix(".png")
            del frame["anchor"]

    edit(folder, as_nerf)
    views = views_io.read_views(folder)
    np.testing.assert_allclose(views.cameras.focal, cameras.RELEASED.focal * 16, rtol=1e-6)
    assert len(views.anchors) == 4


def test_missing_folder(tmp_path):
    with pytest.raises(OSError, match=r"has no transforms\.json"):
        views_io.read_views(tmp_path / "nowhere")


def test_missing_frame(folder):
    (folder / "rgb_01.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of the 4 frames.*rgb_01\.png"):
        views_io.read_views(folder)


def test_extra_frame(folder):
    edit(folder, lambda transforms: transforms["frames"].pop())
    with pytest.raises(ValueError, match=r"does not list: rgb_03\.png"):
        views_io.read_views(folder)


def test_frame_of_another_size(folder):
    Image.new("RGBA", (8, 16)).save(folder / "rgb_02.png")
    with pytest.raises(ValueError, match=r"rgb_02\.png is 8 x 16"):
        views_io.read_views(folder)


def test_frame_without_alpha(folder):
    Image.new("RGB", (16, 16)).save(folder / "rgb_02.png")
    with pytest.raises(ValueError, match=r"rgb_02\.png has no alpha"):
        views_io.read_views(folder)


def test_truncated_frame(folder):
    data = (folder / "rgb_02.png").read_bytes()
    (folder / "rgb_02.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"rgb_02\.png is missing or not a readable image"):
        views_io.read_views(folder)


def test_empty_masks(folder):
    for path in folder.glob("rgb_*.png"):
        Image.new("RGBA", (16, 16)).save(path)
    with pytest.raises(ValueError, match=r"no view .* shows an object"):
        views_io.read_views(folder)


def test_pose_with_nan(folder):
    edit(folder, lambda transforms: transforms["frames"][1]["transform_matrix"][0].__setitem__(0, float("nan")))
    with pytest.raises(ValueError, match="frame 1 is not a rotation"):
        views_io.read_views(folder)


def test_scaled_pose(folder):
    def scale(transforms):
        transforms["frames"][2]["transform_matrix"] = (2 * np.eye(4)).tolist()

    edit(folder, scale)
    with pytest.raises(ValueError, match="frame 2 is not a rotation"):
        views_io.read_views(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"frames": 3}', '{"frames": [{}]}'])
def test_malformed_transforms(folder, content):
    (folder / "transforms.json").write_text(content)
    with pytest.raises(ValueError, match="malformed"):
        views_io.read_views(folder)


def test_lens_distortion_is_refused(folder):
    edit(folder, lambda transforms: transforms.update(k1=0.1))
    with pytest.raises(ValueError, match="undistort"):
        views_io.read_views(folder)


def test_short_normals_are_unknown(tmp_path):
    views = some_views()
    views.normals[0, 8, 8] = [0.4, 0, 0]
    views_io.write_views(tmp_path, views)
    assert not views_io.read_views(tmp_path).normals[0, 8, 8].any()


def test_cameras_that_differ_keep_their_intrinsics(tmp_path):
    views = some_views()
    views.cameras.focal[1] = [20, 21]
    views.cameras.center[2] = [7, 9]
    views_io.write_views(tmp_path, views)
    back = views_io.read_views(tmp_path).cameras
    np.testing.assert_allclose(back.focal, views.cameras.focal)
    np.testing.assert_allclose(back.center, views.cameras.center)
