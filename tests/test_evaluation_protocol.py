"""Fixed lists of objects and poses."""

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
