"""Textures of a ball whose color is its position."""

import dataclasses
import functools

import numpy as np
import pytest
import trimesh

from e3d_jax import cameras, raycast, structs
from e3d_jax.mesh import preview, texture

RADIUS = 0.4
SIZE = 64


def position_color(points):
    return np.asarray(points, np.float32) / 2 + 0.5


@functools.cache
def ball(subdivisions=3) -> structs.Mesh:
    sphere = trimesh.creation.icosphere(subdivisions, RADIUS)
    vertices = sphere.vertices.astype(np.float32)
    return structs.Mesh(vertices, sphere.faces.astype(np.int32), position_color(vertices))


@functools.cache
def views_of_ball(num_views=16, size=64) -> structs.ViewSet:
    """Views of the ball, rendered from its vertex colors."""
    ring = cameras.ring(size, num_views)
    none = np.zeros((0, size, size, 3), np.float32)
    return structs.ViewSet(preview.render_mesh(ball(4), ring), ring, np.arange(0), none, np.arange(num_views))


def gray(points):
    return np.full_like(points, 0.5)


def colors_at(mesh, directions):
    """Return the colors of the textured ball where rays from its center leave it."""
    directions = np.asarray(directions, np.float32)
    surface = raycast.Surface(mesh.vertices, mesh.faces)
    _, hits = surface.cast(np.zeros_like(directions), directions)
    uv = raycast.corner_values(mesh.texture.corner_uv[hits.face], hits)
    return raycast.sample_texture(mesh.texture.image, uv)


def directions_near_the_equator(count=40):
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    z = 0.3 * np.sin(3 * angle)
    return np.stack([np.cos(angle) * np.sqrt(1 - z**2), np.sin(angle) * np.sqrt(1 - z**2), z], -1)


@pytest.fixture(scope="module")
def painted():
    return texture.paint(ball(), gray, views_of_ball(), SIZE)


def test_views_paint_what_they_see(painted):
    directions = directions_near_the_equator()
    np.testing.assert_allclose(colors_at(painted, directions), position_color(RADIUS * directions), atol=0.04)


def test_unseen_surface_has_the_fitted_color():
    bare = dataclasses.replace(views_of_ball(), rgba=np.ones((16, 64, 64, 4), np.float32) * [1, 1, 1, 0])
    mesh = texture.paint(ball(), position_color, bare, SIZE)
    np.testing.assert_allclose(colors_at(mesh, [[1.0, 0, 0]]), position_color([[RADIUS, 0, 0]]), atol=0.02)


def test_unseen_parts_continue_the_colors_around_them():
    def noise(points):
        return np.random.default_rng(0).random(points.shape).astype(np.float32)

    views = views_of_ball()
    rgba = np.where(views.rgba[..., 3:] > 0, np.float32([0.2, 0.6, 0.4, 1]), views.rgba)
    mesh = texture.paint(ball(), noise, dataclasses.replace(views, rgba=rgba), SIZE)
    np.testing.assert_allclose(colors_at(mesh, [[0.05, 0, 1.0], [0, 0.1, -1]]), [[0.2, 0.6, 0.4]] * 2, atol=0.1)


def test_one_wrong_view_is_outvoted(painted):
    views = views_of_ball()
    rgba = views.rgba.copy()
    rgba[0, ..., :3] = [1, 0, 0]
    mesh = texture.paint(ball(), position_color, dataclasses.replace(views, rgba=rgba), SIZE)
    assert np.abs(colors_at(mesh, [[1.0, 0, 0]]) - position_color([[RADIUS, 0, 0]])).max() < 0.05


def test_views_of_weight_zero_have_no_effect():
    views, only = views_of_ball(), np.eye(16)[0]
    rgba = views.rgba.copy()
    rgba[1:, ..., :3] = 0
    mesh = texture.paint(ball(), position_color, dataclasses.replace(views, rgba=rgba), SIZE, view_weights=only)
    assert colors_at(mesh, [[1.0, 0, 0]])[0, 0] > 0.6


def test_hidden_parts_are_not_painted_with_what_hides_them():
    small, big = trimesh.creation.icosphere(2, 0.1), trimesh.creation.icosphere(2, 0.2)
    small.apply_translation([0.4, 0, 0])
    both = trimesh.util.concatenate([big, small])
    mesh = structs.Mesh(both.vertices.astype(np.float32), both.faces, np.zeros_like(both.vertices, np.float32))
    colors = np.where(np.arange(len(both.vertices))[:, None] < len(big.vertices), [0, 0, 1.0], [1.0, 0, 0])
    ring = cameras.ring(64)[:1]  # the small ball is in front of the big one
    rgba = preview.render_mesh(dataclasses.replace(mesh, colors=colors), ring)
    views = structs.ViewSet(rgba, ring, np.arange(0), np.zeros((0, 64, 64, 3), np.float32), np.arange(1))
    image = texture.paint(mesh, lambda points: np.full_like(points, 0.5), views, SIZE).texture
    covered = colors_at(dataclasses.replace(mesh, texture=image), [[1.0, 0, 0]])
    assert covered[0, 2] > 0.7 and covered[0, :2].max() < 0.1


@functools.cache
def painted_cup():
    """A cup, red inside and blue outside, painted from above."""
    profile = [[0, -0.4], [0.25, -0.4], [0.25, 0], [0.25, 0.4], [0.23, 0.4], [0.23, 0], [0.23, -0.38], [0, -0.38]]
    shape = trimesh.creation.revolve(profile, sections=32).subdivide()
    radius, height = np.linalg.norm(shape.vertices[:, :2], axis=-1), shape.vertices[:, 2]
    inside = (radius < 0.24) & (height > -0.39)
    colors = np.where(inside[:, None], np.float32([1, 0, 0]), np.float32([0, 0, 1]))
    mesh = structs.Mesh(shape.vertices.astype(np.float32), shape.faces.astype(np.int32), colors)
    ring = cameras.ViewLayout(num_views=8, elevation=30.0).cameras(64)
    none = np.zeros((0, 64, 64, 3), np.float32)
    views = structs.ViewSet(preview.render_mesh(mesh, ring), ring, np.arange(0), none, np.arange(8))
    bare = dataclasses.replace(mesh, colors=gray(mesh.vertices))
    return texture.paint(bare, gray, views, 2 * SIZE)


def redness(height, outside=False):
    """Return red minus blue along a circle on the inside or the outside of the cup."""
    angle, mesh = np.linspace(0, 2 * np.pi, 50), painted_cup()
    outward = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1).astype(np.float32)
    origins = outward * outside + np.float32([0, 0, height])
    _, hits = raycast.Surface(mesh.vertices, mesh.faces).cast(origins, -outward if outside else outward)
    uv = raycast.corner_values(mesh.texture.corner_uv[hits.face], hits)
    colors = raycast.sample_texture(mesh.texture.image, uv)
    return colors[:, 0] - colors[:, 2]


def test_colors_do_not_bleed_through_walls():
    for height in (0.2, 0.3):
        assert redness(height).min() > 0.5 and redness(height, outside=True).max() < -0.5


def test_what_no_view_sees_inside_a_cup_continues_the_inside():
    for height in (-0.35, -0.2, 0.0):
        assert redness(height).min() > 0.5


def test_seams_are_padded(painted):
    # At the corners of charts, sampling reads texels outside the charts; their color must be close to the surface.
    image, uv = painted.texture.image, painted.texture.corner_uv
    seen = np.abs(painted.vertices[painted.faces][..., 2]) < 0.2
    at_corners = raycast.sample_texture(image, uv[seen])
    np.testing.assert_allclose(at_corners, position_color(painted.vertices[painted.faces][seen]), atol=0.1)


def test_charts_do_not_overlap():
    uv = texture.unwrap(ball(), SIZE)
    assert uv.min() >= 0 and uv.max() <= 1
    a, b, c = np.moveaxis(uv.astype(np.float64), 1, 0)
    area = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    assert 0.3 < area.sum() < 1


def test_the_geometry_is_unchanged(painted):
    np.testing.assert_array_equal(painted.faces, ball().faces)
    assert painted.texture.image.shape == (SIZE, SIZE, 3)


def test_depth_maps_are_along_the_optical_axis():
    depth = texture.depth_maps(ball(), cameras.ring(33)[:1])[0]
    assert depth[16, 16] == pytest.approx(1.5 - RADIUS, abs=2e-3)
    assert np.isinf(depth[0, 0])


def test_tiny_textures_are_refused():
    with pytest.raises(ValueError, match="at least 16"):
        texture.paint(ball(), gray, views_of_ball(), 8)


def photo_of_ball(light=1.0, size=96) -> structs.Photo:
    """A photo from the front, in another light and with a pattern that the views lack."""
    camera = cameras.ring(size, 1)
    rgba = preview.render_mesh(ball(4), camera)[0]
    rgba[..., :3] *= light
    rgba[46:50, 46:50, :3] = 0
    return structs.Photo(rgba, camera)


def test_a_photo_paints_what_it_sees():
    mesh = texture.paint(ball(), gray, views_of_ball(), 4 * SIZE, photos=[photo_of_ball()])
    front, beside = colors_at(mesh, [[1.0, 0, 0], [1.0, 0.2, 0]])
    assert front.max() < 0.05, "although 16 views show another color"
    np.testing.assert_allclose(beside, position_color(RADIUS * np.array([1, 0.2, 0]) / 1.02), atol=0.02)


def test_the_light_of_a_photo_goes_on_behind_its_border():
    mesh = texture.paint(ball(), gray, views_of_ball(), 2 * SIZE, photos=[photo_of_ball(light=0.7)])
    angle = np.radians(np.arange(20, 160, 4.0))
    around = np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
    shown = colors_at(mesh, around) / position_color(RADIUS * around)
    np.testing.assert_allclose(shown[:10], 0.7, atol=0.05)
    assert np.abs(np.diff(shown, axis=0)).max() < 0.06, "no step"
    assert shown[-1].max() < 0.85
