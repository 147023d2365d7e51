"""NeuS weights against values computed by hand, and where samples are placed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax import structs
from e3d_jax.reconstruction import fields, volume

BOX = jnp.array([[-0.5] * 3, [0.5] * 3])
neus_alpha = jax.jit(volume.neus_alpha)
transmittance_weights = jax.jit(volume.transmittance_weights)


def rays_along_x(offsets):
    origins = np.float32([[-1.5, y, 0.0] for y in offsets])
    return structs.Rays(origins=origins, directions=np.float32([[1.0, 0.0, 0.0]] * len(origins)))


def sphere_distance(points, radius=0.3):
    return jnp.linalg.norm(points, axis=-1) - radius


def sphere_samples(points):
    return fields.Samples(sphere_distance(points), fields.normalize(points), jnp.zeros((len(points), 1)))


def red(points, feature, normals, directions):
    return jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0]), points.shape)


# At the center, just inside and just outside the outline, and beyond the band.
OFFSETS = (0.0, 0.27, 0.33, 0.45)


@pytest.fixture(scope="module")
def sphere():
    """The samples of four rays, and their rendering."""

    @jax.jit
    def render():
        rays = rays_along_x(OFFSETS)
        placed = volume.place_samples(
            jax.random.key(0), rays, BOX, sphere_distance, band=jnp.array(0.1), candidates=64, samples=64
        )
        return placed, volume.render(
            rays, placed, sphere_samples, red, sharpness=jnp.array(300.0), annealing=jnp.array(1.0)
        )

    return render()


def test_alpha_by_hand():
    # sigmoid(1) and sigmoid(-1) at the ends of an interval centered on the surface.
    alpha = neus_alpha(0.0, -1.0, 0.02, 100.0)
    entering, leaving = 0.731059, 0.268941
    assert float(alpha) == pytest.approx((entering - leaving) / entering, abs=1e-4)


def test_alpha_is_zero_where_the_ray_leaves():
    alpha = neus_alpha(0.0, volume.annealed_slope(jnp.array(1.0), jnp.array(1.0)), 0.02, 100.0)
    assert float(alpha) < 1e-4


def test_alpha_has_finite_gradient_deep_inside():
    gradient = jax.grad(neus_alpha)(-0.5, -1.0, 0.02, 2000.0)
    assert np.isfinite(gradient)


def test_slope_without_annealing_is_softened():
    assert float(volume.annealed_slope(jnp.array(0.0), jnp.array(0.0))) == pytest.approx(-0.5)


def test_weights_by_hand():
    weights = transmittance_weights(np.float32([[0.5, 0.5, 1.0, 0.3]]))
    np.testing.assert_allclose(weights, [[0.5, 0.25, 0.25, 0.0]], atol=1e-7)


def test_weights_sum_to_one_at_most():
    alpha = np.random.default_rng(0).random((100, 30), np.float32)
    assert float(transmittance_weights(alpha).sum(1).max()) <= 1 + 1e-6


def test_rays_enter_and_leave_the_box():
    near, far = jax.jit(volume.box_interval)(rays_along_x([0.0, 0.7]), BOX)
    np.testing.assert_allclose([near[0], far[0]], [1.0, 2.0], atol=1e-6)
    assert near[1] == far[1]


def test_samples_gather_at_the_first_surface(sphere):
    edges = np.asarray(sphere[0].edges[0])
    assert (np.abs(edges - 1.2) < 0.1).mean() > 0.6
    assert (np.diff(edges) >= 0).all()


def test_rays_far_from_the_surface_are_skipped(sphere):
    assert sphere[0].occupied.tolist() == [True, True, True, False]


def test_sphere_is_opaque_inside_and_clear_outside(sphere):
    np.testing.assert_allclose(sphere[1].opacity, [1, 1, 0, 0], atol=0.05)


def test_a_sphere_has_its_color_and_its_normal(sphere):
    np.testing.assert_allclose(sphere[1].color[0], [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(sphere[1].normal[0], [-1, 0, 0], atol=0.02)
