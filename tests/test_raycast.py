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


def test_mirrored_texture_outside_its_range():
    image = np.float32([[0, 0.5, 1]])[..., None]  # One row.
    uv = np.array([[1 + 1 / 6, 0.5], [-0.5, 0.5], [2.5, 0.5]])
    values = raycast.sample_texture(image, uv, wrap=("mirror", "clamp"))
    np.testing.assert_allclose(values[:, 0], [1, 0.5, 0.5], atol=1e-6)


# Squares at x = 0.2, 0.1 and 0, seen from +x.
LAYERS = np.concatenate([SQUARE - [0.1 * at, 0, 0] for at in range(3)]).astype(np.float32)
LAYER_FACES = np.concatenate([FACES + 4 * at for at in range(3)])


def through(opacities):
    """Contributions of the layers to one ray, and which stands for it."""
    ray = np.float32([[1.5, 0.05, 0.02]]), np.float32([[-1, 0, 0]])
    surface = raycast.Surface(LAYERS, LAYER_FACES)
    rays, hits, taken, stands = surface.cast_through(*ray, lambda hits: np.array(opacities)[hits.face // 2])
    np.testing.assert_allclose(hits.depth, 1.3 + 0.1 * (hits.face // 2), atol=1e-4)
    assert stands.sum() == len(rays[:1])
    return taken.tolist(), (hits.face[stands] // 2).tolist()


@pytest.mark.parametrize(
    ("opacities", "taken", "stands"),
    [
        ([1.0, 1, 1], [1], [0]),
        ([0.0, 1, 1], [1], [1]),
        ([0.2, 0.5, 1], [0.2, 0.4, 0.4], [1]),
        ([0.1, 0.3, 0.05], [0.1, 0.27, 0.0315], [1]),
        ([0.0, 0, 0], [], []),
    ],
)
def test_rays_pass_through_surfaces_from_front_to_back(opacities, taken, stands):
    found, standing = through(opacities)
    np.testing.assert_allclose(found, taken, atol=1e-6)
    assert standing == stands


def test_opaque_surfaces_render_alike_with_and_without_opacity():
    surface = raycast.Surface(LAYERS, LAYER_FACES)
    options = {"shade": lambda hits: np.stack([hits.depth, hits.face], -1), "supersampling": 2}
    plain = surface.render(cameras.ring(16)[:1], **options)
    passed = surface.render(cameras.ring(16)[:1], **options, opacity=lambda hits: np.ones(len(hits.face)), blended=1)
    np.testing.assert_allclose(passed[0], plain[0], atol=1e-6)
    np.testing.assert_allclose(passed[1], plain[1])
