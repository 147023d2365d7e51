"""Fixed lists of objects and poses."""

import dataclasses

import numpy as np
import pytest

from e3d_jax import cameras
from e3d_jax.evaluation import protocol


@pytest.mark.parametrize("name, count", [("synthetic40", 40), ("scans20", 20)])
def test_protocols_have_their_number_of_objects(name, count):
    assert len(set(protocol.load(name).objects)) == count


@pytest.mark.parametrize("name", protocol.names())
def test_poses_are_those_of_the_anchors_of_the_ring(name):
    layout, found = cameras.RELEASED, protocol.load(name)
    expected = cameras.opengl_from_opencv(np.asarray(layout.cameras(64)[layout.anchors].world_from_cam))
    np.testing.assert_allclose(found.poses, expected, atol=1e-6)
    assert found.focal == layout.focal and found.views == layout.anchors.tolist()


def test_the_input_view_is_not_scored():
    images = {view: np.zeros((2, 2, 4), np.float32) for view in range(32)}
    assert list(protocol.load("scans20").scored(images)) == [4, 8, 12, 16, 20, 24, 28]


def test_a_missing_view_is_an_error():
    with pytest.raises(ValueError, match="view 4 is missing, which the protocol scans20 scores"):
        protocol.load("scans20").scored({})


def test_an_unknown_protocol_is_an_error():
    with pytest.raises(ValueError, match="no protocol 'other'; known: scans20, synthetic40"):
        protocol.load("other")


@pytest.mark.parametrize(
    "layout, named",
    [
        (cameras.RELEASED, None),
        (cameras.ViewLayout(radius=1.6), "the pose of view 0"),
        (cameras.ViewLayout(elevation_swing=20.0), "the pose of view 4"),
        (cameras.ViewLayout(focal=1.4), "the focal length of view 0"),
    ],
)
def test_what_differs_from_the_cameras_of_a_protocol_is_named(layout, named):
    assert protocol.load("scans20").difference(range(32), layout.cameras(64)) == named


def test_poses_that_were_rounded_in_a_file_are_those_of_a_protocol():
    cams = cameras.RELEASED.cameras(64)
    rounded = dataclasses.replace(cams, world_from_cam=cams.world_from_cam.round(4))
    assert protocol.load("scans20").difference(range(32), rounded) is None


def test_an_image_that_is_cut_off_center_is_not_that_of_a_protocol():
    cams = cameras.RELEASED.cameras(64)
    moved = dataclasses.replace(cams, center=cams.center + np.float32(1))
    assert protocol.load("scans20").difference(range(32), moved) == "the principal point of view 0"


def square(view, size=4):
    return np.full((size, size, 4), view / 32, np.float32)


def test_views_that_are_there_have_the_poses_of_their_numbers():
    fixed = protocol.load("scans20")
    posed = fixed.posed({view: square(view) for view in (0, 8, 12, 13)}, {8: square(32)})
    np.testing.assert_array_equal(posed.rgba[:, 0, 0, 0], np.float32([0, 8 / 32, 12 / 32]))
    np.testing.assert_array_equal(posed.cameras.world_from_cam, fixed.cameras(4).world_from_cam[[0, 2, 3]])
    assert posed.normal_views.tolist() == [1] and posed.normals.shape == (1, 4, 4, 3)


@pytest.mark.parametrize(
    "rgba, message",
    [
        ({1: square(1)}, "none of the views"),
        ({0: square(0), 4: square(4, 5)}, "one is 5 x 5 px and the first 4 px high"),
    ],
)
def test_views_that_cannot_have_the_poses_of_a_protocol_are_refused(rgba, message):
    with pytest.raises(ValueError, match=message):
        protocol.load("scans20").posed(rgba, {})
