"""The views folder: round trip, compatibility with other tools, and errors."""

import json

import jax
import numpy as np
import pytest
import test_color_profiles
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
    with pytest.raises(ValueError, match=r"says 16 x 16, but rgb_02\.png is 8 x 16"):
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
    with pytest.raises(ValueError, match="transform_matrix of frame 1 is not a rotation"):
        views_io.read_views(folder)


def test_transposed_poses(folder):
    def transpose(transforms):
        for frame in transforms["frames"]:
            frame["transform_matrix"] = np.transpose(frame["transform_matrix"]).tolist()

    edit(folder, transpose)
    with pytest.raises(ValueError, match=r"frame 0: the last row of .*, as if it were transposed"):
        views_io.read_views(folder)


def test_scaled_pose(folder):
    def scale(transforms):
        transforms["frames"][2]["transform_matrix"] = np.diag([2.0, 2, 2, 1]).tolist()

    edit(folder, scale)
    with pytest.raises(ValueError, match="frame 2 is not a rotation"):
        views_io.read_views(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"frames": 3}', '{"frames": [{}]}'])
def test_malformed_transforms(folder, content):
    (folder / "transforms.json").write_text(content)
    with pytest.raises(ValueError, match="malformed"):
        views_io.read_views(folder)


def test_backslashes_are_separators(folder):
    (folder / "images").mkdir()
    for path in folder.glob("rgb_*.png"):
        path.rename(folder / "images" / path.name)

    def as_windows(transforms):
        for frame in transforms["frames"]:
            frame["file_path"] = ".\\images\\" + frame["file_path"]

    edit(folder, as_windows)
    assert len(views_io.read_views(folder).rgba) == 4


def test_alpha_comes_from_masks(folder):
    for view in range(4):
        rgba = Image.open(folder / f"rgb_{view:02d}.png")
        rgba.convert("RGB").save(folder / f"rgb_{view:02d}.jpg")
        (folder / f"rgb_{view:02d}.png").unlink()
        Image.fromarray(np.uint8(np.arange(256).reshape(16, 16) < 128)).save(folder / f"mask_{view}.png")

    def with_masks(transforms):
        for view, frame in enumerate(transforms["frames"]):
            frame |= {"file_path": f"rgb_{view:02d}.jpg", "mask_path": f"mask_{view}.png"}

    edit(folder, with_masks)
    alpha = views_io.read_views(folder).rgba[..., 3]
    assert (alpha[:, :8] == 1).all() and (alpha[:, 8:] == 0).all()


def test_masks_may_be_in_an_alpha_channel(folder):
    mask = np.full((16, 16, 4), 255, np.uint8)
    mask[8:, :, 3] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    Image.new("RGB", (16, 16)).save(folder / "rgb_00.png")
    edit(folder, lambda transforms: transforms["frames"][0].update(mask_path="mask.png"))
    np.testing.assert_array_equal(views_io.read_views(folder).rgba[0, :, 0, 3], np.arange(16) < 8)


def test_color_profiles_of_images_are_applied(folder):
    plain = np.uint8([186, 71, 50, 255]) * np.ones((16, 16, 1), np.uint8)
    Image.fromarray(plain).save(folder / "rgb_00.png", icc_profile=test_color_profiles.ADOBE)
    assert views_io.read_views(folder).rgba[0, 8, 8, 0] > 0.8


def test_a_byte_order_mark_is_skipped(folder):
    path = folder / "transforms.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(views_io.read_views(folder).rgba) == 4


def test_the_last_row_of_poses_may_be_left_out(folder):
    expected = views_io.read_views(folder).cameras.world_from_cam

    def cut(transforms):
        for frame in transforms["frames"]:
            frame["transform_matrix"].pop()

    edit(folder, cut)
    np.testing.assert_array_equal(views_io.read_views(folder).cameras.world_from_cam, expected)


def test_poses_of_another_shape_are_refused(folder):
    edit(folder, lambda transforms: transforms["frames"][1].update(transform_matrix=[[1, 0], [0, 1]]))
    with pytest.raises(ValueError, match="frame 1: its transform_matrix is 2 x 2, expected 4 x 4"):
        views_io.read_views(folder)


@pytest.mark.parametrize("place", ["C:\\Users\\me\\views\\", "/home/me/views/"])
def test_of_an_absolute_path_the_end_counts(folder, place):
    (folder / "images").mkdir()
    (folder / "rgb_00.png").rename(folder / "images" / "rgb_00.png")
    name = place + ("images\\rgb_00.png" if "\\" in place else "images/rgb_00.png")
    edit(folder, lambda transforms: transforms["frames"][0].update(file_path=name))
    assert len(views_io.read_views(folder).rgba) == 4


def test_suffixes_may_be_in_capitals(folder):
    (folder / "rgb_00.png").rename(folder / "photo.PNG")
    edit(folder, lambda transforms: transforms["frames"][0].update(file_path="photo"))
    assert len(views_io.read_views(folder).rgba) == 4


def test_sizes_may_be_strings(folder):
    edit(folder, lambda transforms: transforms.update(w="16", h=16.0))
    assert views_io.read_views(folder).cameras.width == 16


def test_names_with_dots_need_no_suffix(folder):
    (folder / "rgb_00.png").rename(folder / "cam.0001.png")
    edit(folder, lambda transforms: transforms["frames"][0].update(file_path="cam.0001"))
    assert len(views_io.read_views(folder).rgba) == 4


def test_images_of_several_sizes_are_extended_to_the_largest(folder):
    expected = views_io.read_views(folder)
    Image.open(folder / "rgb_01.png").crop((0, 0, 12, 14)).save(folder / "rgb_01.png")
    edit(folder, lambda transforms: transforms["frames"][1].update(w=12, h=14))
    views = views_io.read_views(folder)
    np.testing.assert_array_equal(views.rgba[1, :14, :12], expected.rgba[1, :14, :12])
    assert not views.rgba[1, 14:].any() and not views.rgba[1, :, 12:].any()
    np.testing.assert_array_equal(views.cameras.center, expected.cameras.center)


def test_pixels_need_not_be_square(folder):
    def by_angles(transforms):
        for key in ("fl_x", "fl_y"):
            del transforms[key]
        transforms.update(camera_angle_x=2 * np.arctan(0.5), camera_angle_y=2 * np.arctan(0.25))

    edit(folder, by_angles)
    np.testing.assert_allclose(views_io.read_views(folder).cameras.focal, [[16, 32]] * 4, rtol=1e-6)


@pytest.mark.parametrize("own", [{"camera_angle_x": 2 * np.arctan(0.5)}, {"x_fov": 53.130102}, {"fl_x": 16}])
def test_the_field_of_view_of_a_frame_counts_more_than_the_focal_lengths_of_all(folder, own):
    edit(folder, lambda transforms: transforms["frames"][1].update(own))
    np.testing.assert_allclose(views_io.read_views(folder).cameras.focal[1], [16, 16], rtol=1e-6)


def test_far_poses_keep_their_precision(folder):
    def move(transforms):
        for frame in transforms["frames"]:
            frame["transform_matrix"][0][3] += 5e5

    near = views_io.read_views(folder).cameras.world_from_cam
    edit(folder, move)
    far = views_io.read_views(folder, np.float64).cameras.world_from_cam
    np.testing.assert_allclose(far[:, 0, 3] - 5e5, near[:, 0, 3], atol=1e-6)


@pytest.mark.parametrize(
    "entries",
    [
        {"k1": 0.1},
        {"distortion_params": [0.1, 0, 0, 0, 0, 0]},
        {"camera_model": "OPENCV_FISHEYE"},
        {"is_fisheye": True},
    ],
)
@pytest.mark.parametrize("place", ["file", "frame"])
def test_lens_distortion_is_removed(folder, entries, place):
    expected = views_io.read_views(folder).rgba[1]
    edit(folder, lambda transforms: (transforms if place == "file" else transforms["frames"][1]).update(entries))
    assert not np.allclose(views_io.read_views(folder).rgba[1], expected, atol=0.01)


@pytest.mark.parametrize("model", ["EQUIRECTANGULAR", "FOV", "THIN_PRISM_FISHEYE"])
def test_other_projections_are_refused_by_name(folder, model):
    edit(folder, lambda transforms: transforms["frames"][1].update(camera_model=model))
    with pytest.raises(ValueError, match=f"frame 1 has the camera_model {model}, which is not supported; undistort"):
        views_io.read_views(folder)


def test_an_object_that_the_undistorted_image_cuts_is_refused(folder):
    edit(folder, lambda transforms: transforms.update(k1=-0.9, fl_x=16.0, fl_y=16.0))
    for path in folder.glob("rgb_*.png"):
        rgba = np.zeros((16, 16, 4), np.uint8)
        rgba[1:15, 1:15] = 255
        Image.fromarray(rgba).save(path)
    with pytest.raises(ValueError, match="leaves the image when its lens distortion is removed"):
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
