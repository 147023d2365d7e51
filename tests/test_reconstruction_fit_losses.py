"""Losses against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3d_jax.reconstruction import fit_losses as losses

ONES, ALL = np.ones(4, np.float32), np.ones(4, bool)
kept_mean = jax.jit(losses.kept_mean)
color_error = jax.jit(losses.color_error)


def test_kept_mean_leaves_out_the_largest():
    errors = np.float32([1.0, 2.0, 3.0, 4.0])
    assert float(kept_mean(errors, 0.75, valid=ALL, weights=ONES)) == pytest.approx(2)


def test_kept_mean_counts_valid_errors_only():
    errors = np.float32([1.0, 2.0, 3.0, 100.0])
    valid = np.array([True, False, False, True])
    assert float(kept_mean(errors, 0.5, valid=valid, weights=ONES)) == pytest.approx(1)


def test_kept_mean_is_weighted():
    errors = np.float32([1.0, 3.0, 0.0, 0.0])
    weights = np.float32([3.0, 1.0, 0.0, 0.0])
    assert float(kept_mean(errors, 1.0, valid=ALL, weights=weights)) == pytest.approx(1.5)


def test_kept_mean_of_nothing_is_zero():
    value, gradient = jax.value_and_grad(lambda e: kept_mean(e, 0.8, valid=~ALL, weights=ONES))(ONES)
    assert float(value) == 0
    assert np.isfinite(gradient).all()


def test_mask_error_is_zero_for_the_right_opacity():
    alpha = np.float32([0.0, 0.4, 1.0])
    np.testing.assert_allclose(jax.jit(losses.mask_error)(alpha, alpha), 0, atol=1e-6)


def test_mask_error_of_an_opaque_miss_is_finite():
    error, gradient = jax.jit(jax.value_and_grad(lambda o: losses.mask_error(o, jnp.zeros(1)).sum()))(np.ones(1))
    assert np.isfinite(error) and np.isfinite(gradient).all() and float(error) > 1


def test_normal_error_is_one_minus_the_cosine():
    x, y = np.eye(2, 3, dtype=np.float32)
    errors = jax.jit(losses.normal_error)(np.stack([x, x]), np.stack([x, y]))
    np.testing.assert_allclose(errors, [0, 1])


def test_normals_that_face_away_do_not_count():
    normals = np.float32([[1.0, 0, 0], [-1.0, 0, 0], [0.0, 1, 0]])
    weights, faces = jax.jit(losses.facing_weights)(normals, np.float32([[1.0, 0, 0]] * 3))
    assert faces.tolist() == [False, True, False]
    np.testing.assert_allclose(weights, np.exp([1, 1, 0]), rtol=1e-6)


def test_eikonal_error_is_the_squared_difference_of_the_length_from_one():
    gradient = np.float32([[0.0, 0, 1], [0, 0, 3]])
    np.testing.assert_allclose(jax.jit(losses.eikonal_error)(gradient), [0, 4], atol=1e-5)


def test_sparsity_error_falls_with_distance():
    np.testing.assert_allclose(losses.sparsity_error(jnp.array([0.0, -0.01])), [1, np.exp(-1)], rtol=1e-5)


def test_smoothness_has_a_finite_gradient_where_normals_agree():
    gradient = jax.jit(jax.grad(lambda g: losses.smoothness_error(g, jnp.ones((2, 3))).sum()))(np.ones((2, 3)))
    assert np.isfinite(gradient).all()


def test_color_error_grows_with_the_difference_and_is_smooth_at_zero():
    target = np.full((3, 3), 0.5, np.float32)
    predicted = target + np.float32([[0.0], [0.1], [0.4]])
    np.testing.assert_allclose(color_error(predicted, target), [0, 0.1, 0.4], atol=0.003)
    gradient = jax.grad(lambda x: color_error(x, target).sum())(target)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
