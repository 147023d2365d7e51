"""A field: its initial surface, its gradient, its grids."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax.reconstruction import fields
from e3d_jax.training import plan

BOX = np.float32([[-0.5, -0.4, -0.3], [0.5, 0.4, 0.3]])
POINTS = np.random.default_rng(1).uniform(*BOX, (50, 3)).astype(np.float32)
ALL = np.ones(2, np.float32)

sample = jax.jit(fields.sample)


def make_field(levels=(4, 8)):
    axes = np.linspace(*BOX, 17).T
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    return fields.create(
        jax.random.key(0),
        (np.linalg.norm(points, axis=-1) - 0.2).astype(np.float32),
        BOX,
        num_views=2,
        levels=levels,
        color_levels=(4,),
        features=2,
        hidden=8,
        sharpness=50.0,
    )


@pytest.fixture(scope="module")
def field():
    """A field whose correction is not zero."""
    rng = np.random.default_rng(2)
    rough = jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype), make_field())
    return dataclasses.replace(rough, box=jnp.asarray(BOX))


def test_a_new_field_is_its_base():
    distance = sample(make_field(), POINTS, ALL).distance
    np.testing.assert_allclose(distance, np.linalg.norm(POINTS, axis=-1) - 0.2, atol=0.01)


def test_the_gradient_is_that_of_the_distance(field):
    step = 1e-3
    numeric = [
        np.subtract(*(sample(field, POINTS + sign * offset, ALL).distance for sign in (1, -1))) / (2 * step)
        for offset in step * np.eye(3, dtype=np.float32)
    ]
    # The two differ at the faces of cells, where the distance has kinks.
    assert np.median(np.abs(np.stack(numeric, -1) - sample(field, POINTS, ALL).gradient)) < 2e-3


def test_the_slope_changes_with_the_grids_as_differentiated(field):
    rng = np.random.default_rng(3)
    directions = [jnp.asarray(rng.normal(size=level.shape), jnp.float32) for level in field.levels]

    @jax.jit
    def slope(step):
        levels = tuple(level + step * way for level, way in zip(field.levels, directions, strict=True))
        return sample(dataclasses.replace(field, levels=levels), jnp.asarray(POINTS), jnp.asarray(ALL)).gradient.sum()

    numeric = (slope(1e-2) - slope(-1e-2)) / 2e-2
    np.testing.assert_allclose(jax.jit(jax.grad(slope))(0.0), numeric, rtol=2e-3)


def test_interpolation_is_exact_for_trilinear_functions():
    def function(p):
        return p[..., :1] * p[..., 1:2] + 2 * p[..., 2:]

    grid = function(fields.lattice(BOX, (3, 5, 9)))
    np.testing.assert_allclose(jax.jit(fields.interpolate)(grid, BOX, POINTS), function(POINTS), atol=1e-6)


def test_points_outside_have_the_values_of_the_border(field):
    outside, border = POINTS.copy(), POINTS.copy()
    outside[:, 0], border[:, 0] = 3.0, 0.5
    np.testing.assert_allclose(sample(field, outside, ALL).distance, sample(field, border, ALL).distance, rtol=1e-6)


def test_a_level_of_weight_zero_has_no_effect(field):
    changed = dataclasses.replace(field, levels=(field.levels[0], field.levels[1] + 1.0))
    weights = np.float32([1.0, 0.0])
    np.testing.assert_array_equal(sample(field, POINTS, weights).distance, sample(changed, POINTS, weights).distance)


def test_normalize_has_a_finite_gradient_at_zero():
    assert np.isfinite(jax.jit(jax.grad(lambda v: fields.normalize(v).sum()))(np.zeros(3))).all()


def test_colors_are_between_0_and_1(field):
    feature = np.asarray(sample(field, POINTS, ALL).feature)
    unit = POINTS / np.linalg.norm(POINTS, axis=-1, keepdims=True)
    color = jax.jit(fields.color)(field, POINTS, 100 * feature, unit, unit)
    assert float(color.min()) >= 0 and float(color.max()) <= 1


def test_levels_need_cells():
    with pytest.raises(ValueError, match="at least 1 cell"):
        make_field(levels=(0, 8))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_gradient_compiles_for_tpus(field):
    (device,) = plan.tpu_devices("v5e:1x1")
    on_tpu = jax.sharding.SingleDeviceSharding(device)
    leaves, tree = jax.tree.flatten((field, jnp.zeros((1024, 3)), jnp.asarray(ALL)))
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_tpu) for leaf in leaves]
    plan.compile_for(device, jax.jit(lambda *leaves: fields.sample(*jax.tree.unflatten(tree, leaves))).trace(*shapes))
