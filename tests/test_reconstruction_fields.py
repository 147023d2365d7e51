"""The field: its start, its gradient, its grids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax.reconstruction import fields

BOX = jnp.array([[-0.5, -0.4, -0.3], [0.5, 0.4, 0.3]])
POINTS = jax.random.uniform(jax.random.key(1), (50, 3), minval=BOX[0], maxval=BOX[1])


sample = jax.jit(fields.sample)


def make_field(levels=(4, 8)):
    points = fields.lattice(BOX, (17, 17, 17))
    return fields.create(
        jax.random.key(0),
        jnp.linalg.norm(points, axis=-1) - 0.2,
        BOX,
        num_views=2,
        levels=levels,
        color_levels=(4,),
        features=2,
        hidden=8,
        sharpness=50.0,
    )


def rough_field():
    """One whose correction is not zero."""
    field = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), make_field())
    return dataclasses.replace(field, box=BOX)


def test_a_new_field_is_its_base():
    found = sample(make_field(), POINTS, jnp.ones(2))
    np.testing.assert_allclose(found.distance, jnp.linalg.norm(POINTS, axis=-1) - 0.2, atol=0.01)


def test_gradient_is_that_of_the_distance():
    field, step = rough_field(), 1e-3
    found = sample(field, POINTS, jnp.ones(2))
    numeric = [
        (sample(field, POINTS + d, jnp.ones(2)).distance - sample(field, POINTS - d, jnp.ones(2)).distance) / (2 * step)
        for d in step * jnp.eye(3)
    ]
    # Cells have kinks at their faces, where the two differ.
    assert float(jnp.median(jnp.abs(jnp.stack(numeric, -1) - found.gradient))) < 2e-3


def test_interpolation_is_exact_for_trilinear_functions():
    def function(p):
        return p[..., :1] * p[..., 1:2] + 2 * p[..., 2:]

    grid = function(fields.lattice(BOX, (3, 5, 9)))
    np.testing.assert_allclose(fields.interpolate(grid, BOX, POINTS), function(POINTS), atol=1e-6)


def test_points_outside_read_the_border():
    outside = jnp.array([[3.0, 0.0, 0.0]])
    field = rough_field()
    at_border = sample(field, jnp.array([[0.5, 0.0, 0.0]]), jnp.ones(2)).distance
    assert float(sample(field, outside, jnp.ones(2)).distance[0]) == pytest.approx(float(at_border[0]))


def test_level_weight_zero_silences_a_level():
    field = rough_field()
    changed = dataclasses.replace(field, levels=(field.levels[0], field.levels[1] + 1.0))
    weights = jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(sample(field, POINTS, weights).distance, sample(changed, POINTS, weights).distance)


def test_normalize_has_a_finite_gradient_at_zero():
    assert np.isfinite(jax.grad(lambda v: fields.normalize(v).sum())(jnp.zeros(3))).all()


def test_colors_are_between_0_and_1():
    field = rough_field()
    feature = sample(field, POINTS, jnp.ones(2)).feature
    unit = fields.normalize(POINTS)
    color = fields.color(field, POINTS, 100 * feature, unit, unit)
    assert float(color.min()) >= 0 and float(color.max()) <= 1


def test_levels_need_cells():
    with pytest.raises(ValueError, match="at least 1 cell"):
        make_field(levels=(0, 8))
