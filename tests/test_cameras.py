"""The ring and the axis conventions, against hand-computed numbers."""

import numpy as np
import pytest

from e3d_jax import cameras


def test_view_0_sits_on_x():
    np.testing.assert_allclose(cameras.ring(128).world_from_cam[0, :3, 3], [1.5, 0, 0], atol=1e-6)


def test_view_0_in_opengl_axes():
    pose = cameras.opengl_from_opencv(cameras.ring(128).world_from_cam)[0]
    np.testing.assert_allclose(pose[:3, :3].T, [[0, 1, 0], [0, 0, 1], [1, 0, 0]], atol=1e-6)


def test_azimuth_grows_from_x_toward_y():
    np.testing.assert_allclose(cameras.ring(128).world_from_cam[8, :3, 3], [0, 1.5, 0], atol=1e-6)


def test_poses_are_right_handed():
    np.testing.assert_allclose(np.linalg.det(cameras.ring(128).world_from_cam[:, :3, :3]), 1, atol=1e-5)


def test_field_of_view_is_39_6_degrees():
    rays = cameras.pixel_rays(cameras.ring(100)[:1], np.array([[[0.0, 50.0], [100.0, 50.0]]]))
    cosine = float((rays.directions[0, 0] * rays.directions[0, 1]).sum())
    assert np.degrees(np.arccos(cosine)) == pytest.approx(39.6, abs=0.01)


def test_rays_of_image_points():
    rays = cameras.pixel_rays(cameras.ring(64)[:1], np.array([[[32.0, 32.0], [40.0, 32.0], [32.0, 40.0]]]))
    directions = np.asarray(rays.directions[0])
    np.testing.assert_allclose(directions[0], [-1, 0, 0], atol=1e-6)
    assert directions[1, 1] > 0, "image right of view 0 is world +y"
    assert directions[2, 2] < 0, "image down is world -z"


def test_image_rays_pass_pixel_centres():
    rays = cameras.image_rays(cameras.ring(4)[:1])
    point = cameras.pixel_rays(cameras.ring(4)[:1], np.array([[[2.5, 0.5]]]))
    np.testing.assert_allclose(rays.directions[0, 0, 2], point.directions[0, 0], atol=1e-6)


def test_windows_cover_every_interpolated_view_once():
    kept = [v for first, _, _ in cameras.WINDOWS for v in cameras.window_views(first) if v not in cameras.ANCHORS]
    assert sorted(kept) == sorted(set(range(32)) - set(range(0, 32, 4)))


def test_window_frames_0_4_8_are_its_anchors():
    for window in cameras.WINDOWS:
        assert tuple(cameras.window_views(window[0])[[0, 4, 8]]) == tuple(4 * a for a in window)


def test_gltf_axes():
    np.testing.assert_array_equal(cameras.gltf_from_world(np.array([[1.0, 2.0, 3.0]])), [[2, 3, 1]])


def test_gltf_round_trip():
    points = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(cameras.world_from_gltf(cameras.gltf_from_world(points)), points)


def test_camera_on_the_z_axis_is_refused():
    with pytest.raises(ValueError, match="z axis"):
        cameras.look_at(np.array([0.0, 0.0, 2.0]))
