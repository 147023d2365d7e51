"""The cameras of pictures, relative to a mesh of known size and colors."""

import dataclasses
import math

import numpy as np
import pytest
import trimesh

from e3d_jax import cameras, images, structs
from e3d_jax.mesh import preview
from e3d_jax.reconstruction import pipeline, registration


@pytest.fixture(scope="module")
def brick() -> structs.Mesh:
    """A brick with a knob, whose color is its position."""
    brick = trimesh.creation.box((0.3, 0.6, 0.4)).subdivide().subdivide().subdivide()
    knob = trimesh.creation.icosphere(3, 0.1)
    knob.apply_translation([0.1, 0.15, 0.25])
    both = trimesh.util.concatenate([brick, knob])
    vertices = both.vertices.astype(np.float32)
    return structs.Mesh(vertices, both.faces.astype(np.int32), (vertices + 0.4).clip(0, 1))


def taken(mesh, elevation, fov, *, given=False, size=192) -> registration.Picture:
    shot = cameras.InputCameras(count=1, elevation=(elevation, elevation), fov=(fov, fov))
    whole = preview.render_mesh(mesh, shot.draw(np.random.default_rng(0), size))[0]
    angles = {"elevation": elevation, "fov": fov} if given else {}
    return registration.cropped(whole, images.object_box(whole[..., 3]), 0.0, **angles)


def test_elevation_and_field_of_view_are_found(brick):
    found = registration.find(brick, taken(brick, 27.0, 48.0))
    assert found.elevation == pytest.approx(27, abs=1.5)
    assert found.fov == pytest.approx(48, abs=8)
    assert abs(found.roll) < 1 and found.agreement > 0.96


def test_what_is_given_is_kept_and_the_rest_is_found(brick):
    picture = taken(brick, 10.0, 30.0, given=True)
    dim = dataclasses.replace(picture, rgba=picture.rgba * np.float32([0.7, 0.8, 0.9, 1]))
    found = registration.find(brick, dim)
    assert (found.elevation, found.fov) == (10.0, 30.0)
    assert cameras.elevation_of(found.camera.world_from_cam)[0] == pytest.approx(math.radians(10), abs=1e-5)
    distance = np.linalg.norm(found.camera.world_from_cam[0, :3, 3])
    assert distance == pytest.approx(cameras.FIT / math.sin(math.radians(15)), rel=0.02)


@pytest.mark.parametrize("given", [True, False])
def test_a_picture_from_nearly_above_is_found_only_if_its_elevation_is_given(brick, given):
    found = registration.find(brick, taken(brick, 78.0, 30.0, given=given))
    elevation = math.degrees(cameras.elevation_of(found.camera.world_from_cam)[0])
    assert elevation == pytest.approx(78, abs=1e-3) if given else elevation < 65.1


def test_the_camera_is_that_of_the_crop(brick):
    picture = taken(brick, 10.0, 30.0, given=True)
    left, top, right, bottom = picture.frame
    found = registration.find(brick, picture)
    np.testing.assert_allclose(found.camera.center[0], [(left + right) / 2, (top + bottom) / 2], atol=1e-3)
    assert found.camera.focal[0, 0] == pytest.approx((right - left) / 2 / math.tan(math.radians(15)), rel=1e-4)
    shown = preview.render_mesh(brick, found.camera)[0]
    assert np.abs(shown[..., 3] - picture.rgba[..., 3]).mean() < 0.01


def test_another_object_does_not_agree(brick):
    rod = trimesh.creation.cylinder(0.05, 0.9)
    thin = structs.Mesh(rod.vertices.astype(np.float32), rod.faces, np.ones_like(rod.vertices, np.float32))
    assert registration.find(brick, taken(thin, 0.0, 30.0, given=True)).agreement < 0.6


def test_a_picture_of_the_object_differs_little(brick):
    assert registration.find(brick, taken(brick, 27.0, 48.0)).difference < 0.1


def test_half_of_another_object_beside_the_object_is_noticed_though_most_of_the_silhouette_agrees(brick):
    rgba = np.pad(taken(brick, 10.0, 30.0).rgba, ((0, 0), (0, 60), (0, 0)))
    row, column = np.nonzero(rgba[..., 3] > 0.5)
    rgba[row.max() - 60 : row.max(), column.max() : column.max() + 50] = [0.5, 0.4, 0.3, 1]
    found = registration.find(brick, registration.cropped(rgba, images.object_box(rgba[..., 3]), 0.0))
    assert found.agreement > 0.7 and found.difference > registration.MOST_DIFFERENT


def test_an_object_of_the_same_shape_but_of_another_color_is_noticed(brick):
    picture = taken(dataclasses.replace(brick, colors=np.full_like(brick.colors, [0.1, 0.2, 0.8])), 27.0, 48.0)
    red = dataclasses.replace(brick, colors=np.full_like(brick.colors, [0.8, 0.2, 0.1]))
    found = registration.find(red, picture)
    assert found.agreement > 0.9 and found.difference > registration.MOST_DIFFERENT


def test_light_and_exposure_make_little_difference(brick):
    picture = taken(brick, 27.0, 48.0)
    dim = dataclasses.replace(picture, rgba=picture.rgba * np.float32([0.6, 0.5, 0.4, 1]))
    assert registration.find(brick, dim).difference < registration.MOST_DIFFERENT / 2


def test_a_picture_of_another_object_is_left_out_with_a_warning(brick):
    rod = trimesh.creation.cylinder(0.05, 0.9)
    thin = structs.Mesh(rod.vertices.astype(np.float32), rod.faces, np.ones_like(rod.vertices, np.float32))
    picture = taken(thin, 0.0, 30.0)
    with pytest.warns(UserWarning, match="the picture from azimuth 0 does not seem to show the object"):
        assert not pipeline._checked(brick, picture, registration.find(brick, picture), np.zeros(2)).used


def test_large_crops_are_shrunk():
    whole = np.ones((40, 60, 4), np.float32)
    picture = registration.cropped(whole, (10.0, 5.0, 20.0), 90.0)
    assert picture.rgba.shape == (20, 20, 4) and picture.frame == (-10, -5, 50, 35)
    large = registration.cropped(whole, (0.0, 0.0, 2.0 * registration.LARGEST), 90.0)
    assert len(large.rgba) == registration.LARGEST and large.frame[2] == 30
