"""Rings, windows, and the axis conventions, compared with numbers that were computed by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import cameras

WAVING = cameras.ViewLayout(num_views=16, num_anchors=4, elevation=10.0, elevation_swing=20.0, elevation_waves=1)


# -- Axes -------------------------------------------------------------------------------------------------------------


def test_view_0_is_on_x():
    np.testing.assert_allclose(cameras.ring(128).world_from_cam[0, :3, 3], [1.5, 0, 0], atol=1e-6)


def test_view_0_in_opengl_axes():
    pose = cameras.opengl_from_opencv(cameras.ring(128).world_from_cam)[0]
    np.testing.assert_allclose(pose[:3, :3].T, [[0, 1, 0], [0, 0, 1], [1, 0, 0]], atol=1e-6)


def test_azimuth_grows_from_x_toward_y():
    np.testing.assert_allclose(cameras.ring(128).world_from_cam[8, :3, 3], [0, 1.5, 0], atol=1e-6)


def test_poses_are_right_handed():
    np.testing.assert_allclose(np.linalg.det(cameras.ring(128).world_from_cam[:, :3, :3]), 1, atol=1e-5)


def test_gltf_axes():
    np.testing.assert_array_equal(cameras.gltf_from_world(np.array([[1.0, 2.0, 3.0]])), [[2, 3, 1]])


def test_points_come_back_from_gltf_axes():
    points = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(cameras.world_from_gltf(cameras.gltf_from_world(points)), points)


def test_a_camera_on_the_z_axis_is_refused():
    with pytest.raises(ValueError, match="z axis"):
        cameras.look_at(np.array([0.0, 0.0, 2.0]))


# -- Rays -------------------------------------------------------------------------------------------------------------


def test_the_field_of_view_is_39_6_degrees():
    rays = cameras.pixel_rays(cameras.ring(100)[:1], np.array([[[0.0, 50.0], [100.0, 50.0]]]))
    cosine = float((rays.directions[0, 0] * rays.directions[0, 1]).sum())
    assert np.degrees(np.arccos(cosine)) == pytest.approx(39.6, abs=0.01)


def test_rays_of_image_points():
    rays = cameras.pixel_rays(cameras.ring(64)[:1], np.array([[[32.0, 32.0], [40.0, 32.0], [32.0, 40.0]]]))
    directions = np.asarray(rays.directions[0])
    np.testing.assert_allclose(directions[0], [-1, 0, 0], atol=1e-6)
    assert directions[1, 1] > 0, "image right of view 0 is world +y"
    assert directions[2, 2] < 0, "image down is world -z"


def test_image_rays_pass_through_pixel_centers():
    rays = cameras.image_rays(cameras.ring(4)[:1])
    point = cameras.pixel_rays(cameras.ring(4)[:1], np.array([[[2.5, 0.5]]]))
    np.testing.assert_allclose(rays.directions[0, 0, 2], point.directions[0, 0], atol=1e-6)


# -- Layouts ----------------------------------------------------------------------------------------------------------


def test_the_released_layout_has_32_views_of_which_every_fourth_is_an_anchor():
    layout = cameras.RELEASED
    np.testing.assert_array_equal(layout.anchors, range(0, 32, 4))
    np.testing.assert_array_equal(layout.between, sorted(set(range(32)) - set(range(0, 32, 4))))


def test_the_released_windows_have_nine_frames_of_which_0_4_and_8_are_anchors():
    layout = cameras.RELEASED
    assert layout.window_frames == 9
    np.testing.assert_array_equal(layout.window_anchors, [0, 4, 8])
    np.testing.assert_array_equal(layout.window_new, [1, 2, 3, 5, 6, 7])


def test_a_frame_takes_the_last_anchor_up_to_it():
    np.testing.assert_array_equal(cameras.RELEASED.frame_anchor, [0, 0, 0, 0, 1, 1, 1, 1, 2])


def test_the_released_windows_start_at_anchors_7_1_3_and_5():
    starts = [list(window[[0, 4, 8]] // 4) for window in cameras.RELEASED.windows]
    assert starts == [[7, 0, 1], [1, 2, 3], [3, 4, 5], [5, 6, 7]]


@pytest.mark.parametrize("layout", [cameras.RELEASED, WAVING, cameras.ViewLayout(num_views=6, num_anchors=2)])
def test_windows_cover_every_view_between_anchors_once(layout):
    new = layout.windows[:, layout.window_new]
    np.testing.assert_array_equal(np.sort(new, axis=None), layout.between)


def test_a_window_runs_on_past_the_last_view():
    np.testing.assert_array_equal(WAVING.window(3), [12, 13, 14, 15, 0, 1, 2, 3, 4])


def test_windows_of_an_odd_number_of_anchors_are_refused():
    layout = cameras.ViewLayout(num_views=9, num_anchors=3)
    with pytest.raises(ValueError, match="num_anchors is 3; windows cover the ring only if it is even"):
        layout.windows  # noqa: B018 - raises.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_anchors": 5}, "num_views is 32; expected a multiple of num_anchors, 5"),
        ({"elevation": 60.0, "elevation_swing": 30.0}, "expected less than 90 degrees together"),
        ({"elevation": -60.0, "elevation_swing": 30.0}, "expected less than 90 degrees together"),
        ({"radius": 0.5}, "radius is 0.5; expected above 0.5"),
        ({"focal": 0.0}, "focal is 0.0; expected above 0"),
        ({"num_views": 0}, "num_views is 0; expected at least 1"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        cameras.ViewLayout(**values)


def test_the_released_cameras_are_those_of_the_ring():
    found, expected = cameras.RELEASED.cameras(64), cameras.ring(64)
    np.testing.assert_array_equal(found.world_from_cam, expected.world_from_cam)
    np.testing.assert_array_equal(found.focal, expected.focal)


def test_cameras_stand_at_the_radius_of_the_layout():
    poses = cameras.ViewLayout(radius=1.3).cameras(64).world_from_cam
    np.testing.assert_allclose(np.linalg.norm(poses[:, :3, 3], axis=-1), 1.3, rtol=1e-6)


def test_a_waving_ring_swings_around_its_mean_elevation():
    elevation = np.degrees(cameras.elevation_of(WAVING.cameras(64).world_from_cam))
    np.testing.assert_allclose(elevation, 10 + 20 * np.sin(np.arange(16) * np.pi / 8), atol=1e-4)


def test_a_waving_ring_keeps_the_radius_and_the_azimuths():
    poses = WAVING.cameras(64).world_from_cam
    np.testing.assert_allclose(np.linalg.norm(poses[:, :3, 3], axis=-1), 1.5, rtol=1e-6)
    np.testing.assert_allclose(cameras.azimuth_of(poses), cameras.azimuths(16), atol=1e-5)


def test_all_cameras_look_at_the_origin():
    poses = WAVING.cameras(64).world_from_cam
    toward = -poses[:, :3, 3] / np.linalg.norm(poses[:, :3, 3], axis=-1, keepdims=True)
    np.testing.assert_allclose(poses[:, :3, 2], toward, atol=1e-6)


def test_a_ring_may_start_at_any_azimuth():
    found = cameras.azimuth_of(cameras.ring(64, 4, offset=0.3).world_from_cam)
    np.testing.assert_allclose(found, 0.3 + np.arange(4) * np.pi / 2, atol=1e-5)


# -- Azimuths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [8, 32])
def test_azimuths_of_poses_are_exactly_those_they_were_made_with(count):
    np.testing.assert_array_equal(cameras.azimuth_of(cameras.ring(64, count).world_from_cam), cameras.azimuths(count))


def test_azimuths_are_found_under_jit():
    poses = cameras.ring(64).world_from_cam
    np.testing.assert_allclose(jax.jit(cameras.azimuth_of)(jnp.asarray(poses)), cameras.azimuth_of(poses), atol=1e-5)


def test_an_azimuth_of_almost_a_full_turn_is_zero():
    pose = cameras.ring(64, 1, offset=-1e-7).world_from_cam
    assert cameras.azimuth_of(pose) == 0


def test_relative_azimuths_start_at_the_reference():
    poses = cameras.ring(64, 8).world_from_cam[None]
    np.testing.assert_array_equal(
        cameras.relative_azimuth(poses, poses[:, 3:4])[0], np.roll(cameras.azimuths(8), 3), strict=True
    )


# -- Other worlds -----------------------------------------------------------------------------------------------------


def test_mirrored_cameras_stand_at_negative_azimuths():
    ring = cameras.ring(64, 8)
    found = cameras.mirrored(ring)
    np.testing.assert_allclose(found.world_from_cam, ring.world_from_cam[-np.arange(8) % 8], atol=1e-6)


def test_a_mirrored_camera_sees_the_mirrored_point_in_the_flipped_image():
    camera = dataclasses.replace(cameras.ring(64, 8, offset=0.3, elevation=0.2)[:1], center=np.array([[20.0, 30.0]]))
    point = np.array([0.1, 0.2, 0.3])

    def project(camera, point):
        x, y, z = np.linalg.inv(camera.world_from_cam[0])[:3] @ np.append(point, 1)
        return camera.focal[0] * [x / z, y / z] + camera.center[0]

    x, y = project(camera, point)
    np.testing.assert_allclose(project(cameras.mirrored(camera), point * [1, -1, 1]), [64 - x, y], atol=1e-4)


def test_a_crop_sees_its_points_along_the_same_rays():
    camera = cameras.ring(64)[:1]
    crop = cameras.cropped(camera, np.array([[8.0, 16.0]]), np.array([32.0]), 128)
    whole = cameras.pixel_rays(camera, np.array([[[20.0, 25.0]]]))
    part = cameras.pixel_rays(crop, np.array([[[(20.0 - 8) * 4, (25.0 - 16) * 4]]]))
    np.testing.assert_allclose(part.directions, whole.directions, atol=1e-6)
    assert (crop.width, crop.height) == (128, 128)


# -- Cameras of input images ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    """Cameras of the input images of many objects, four each."""
    rng = np.random.default_rng(0)
    return [cameras.InputCameras(count=4).draw(rng, 64) for _ in range(100)]


def test_the_first_input_camera_is_in_the_direction_of_view_0(drawn):
    np.testing.assert_allclose([cameras.azimuth_of(each.world_from_cam)[0] for each in drawn], 0, atol=1e-6)


def test_other_input_cameras_are_anywhere_around(drawn):
    azimuths = np.concatenate([cameras.azimuth_of(each.world_from_cam)[1:] for each in drawn])
    assert (np.histogram(azimuths, 8, (0, 2 * np.pi))[0] > 15).all()


def test_elevations_of_input_cameras_fill_their_ranges(drawn):
    elevations = np.degrees([cameras.elevation_of(each.world_from_cam) for each in drawn])
    for found, (low, high) in ((elevations[:, 0], (-10, 50)), (elevations[:, 1:], (-10, 60))):
        assert low <= found.min() < low + 3 and high - 3 < found.max() <= high


def test_fields_of_view_fill_their_range(drawn):
    spans = np.degrees([cameras.fov_of(each) for each in drawn])
    assert 20 <= spans.min() < 21 and 54 < spans.max() <= 55


def test_input_cameras_hold_a_ball_of_radius_a_half(drawn):
    for each in drawn:
        distance = np.linalg.norm(each.world_from_cam[:, :3, 3], axis=-1)
        edge = each.focal[:, 0] * np.tan(np.arcsin(0.5 / distance))
        assert (edge < 32).all() and (edge > 28).all()


def test_ranges_with_swapped_ends_are_refused():
    with pytest.raises(ValueError, match=r"fov is 50.0, 20.0; expected the smaller number first"):
        cameras.InputCameras(fov=(50.0, 20.0))


@pytest.mark.parametrize(("name", "degrees"), [("right", 90), ("left", 270), ("210", 210), (-30, 330), ("back", 180)])
def test_directions_are_sides_or_degrees(name, degrees):
    assert cameras.direction(name) == degrees


@pytest.mark.parametrize("name", ["above", "nan", "inf"])
def test_an_unknown_direction_is_named_with_those_there_are(name):
    with pytest.raises(ValueError, match=f"'{name}' is an unknown direction; expected front, right, back, left, or"):
        cameras.direction(name)
