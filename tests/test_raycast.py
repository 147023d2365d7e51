"""Rays against a square of two triangles, and sampling of textures."""

import numpy as np
import pytest

from e3d_jax import cameras, raycast

# In the plane x = 0.2; seen from view 0, y is right and z is up.
SQUARE = np.float32([[0.2, -0.2, -0.2], [0.2, 0.2, -0.2], [0.2, 0.2, 0.2], [0.2, -0.2, 0.2]])
FACES = np.array([[0, 1, 2], [0, 2, 3]])


def test_hits_are_where_the_weights_say():
    surface = raycast.Surface(SQUARE, FACES)
    rng = np.random.default_rng(0)
    origins = np.stack([np.full(50, 1.5), *rng.uniform(-0.3, 0.3, (2, 50))], -1)
    hit, hits = surface.cast(origins, np.tile([-1.0, 0, 0], (50, 1)))
    np.testing.assert_array_equal(hit, np.flatnonzero(np.abs(origins[:, 1:]).max(-1) < 0.2))
    at = raycast.corner_values(SQUARE[FACES[hits.face]], hits)
    np.testing.assert_allclose(at[:, 1:], origins[hit, 1:], atol=1e-6)
    np.testing.assert_allclose(hits.depth, 1.3, atol=1e-5)


def test_rendered_pixels_have_coverage_and_mean_values():
    surface = raycast.Surface(SQUARE, FACES)

    def position(hits):
        return raycast.corner_values(SQUARE[FACES[hits.face]], hits)[:, 1:]

    values, alpha = surface.render(cameras.ring(40)[:1], position, supersampling=4)
    assert alpha.sum() == pytest.approx((40 * cameras.RELEASED.focal * 0.4 / 1.3) ** 2, rel=0.02)
    right, up = values[12, 25]
    pixel = 1.3 / (40 * cameras.RELEASED.focal)
    np.testing.assert_allclose([right, up], [5.5 * pixel, 7.5 * pixel], atol=1e-3)


def test_a_surface_behind_the_camera_is_not_lost():
    around = np.float32([[0.2, -0.2, -0.2], [0.2, 0.2, -0.2], [0.2, 0, 0.3], [3, 0, 0.3], [3, 0.1, 0.3], [3, 0, 0.2]])
    surface = raycast.Surface(around, np.array([[0, 1, 2], [3, 4, 5]]))
    _, alpha = surface.render(cameras.ring(16)[:1], lambda hits: np.ones((len(hits.face), 1)), supersampling=1)
    assert alpha.sum() > 0


@pytest.mark.parametrize(("wrap", "expected"), [(False, 1.0), (True, 0.0)])
def test_texture_outside_its_range(wrap, expected):
    image = np.float32([[0, 1, 1]]).T[
        :, :, None
    ]  # rows from top to bottom; with wrapping, the top row follows the bottom row
    value = raycast.sample_texture(image, np.array([[0.5, -1 / 6]]), wrap=wrap)
    np.testing.assert_allclose(value, expected)


def test_texture_is_bilinear_with_the_origin_lower_left():
    image = np.float32([[0, 0], [0.4, 0.8]])[..., None]
    value = raycast.sample_texture(image, np.array([[0.25, 0.25], [0.5, 0.25], [0.75, 0.75]]))
    np.testing.assert_allclose(value[:, 0], [0.4, 0.6, 0.0], atol=1e-6)
