"""DPT-hybrid: shapes, the frame of its normals, and its parts; parity is tested in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax import cameras, presets, stages
from e3d_jax.models import dpt, dpt_backbone, layers

SPEC = stages.parse_config(presets.load("envision3d:smoke").to_dict())["normals"].model.network


@pytest.fixture(scope="module")
def toy():
    return dpt.DPTNormalEstimator(SPEC, layers.Types(rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def estimate(toy):
    compiled = jax.jit(lambda module, rgba: module(rgba), compiler_options={"xla_backend_optimization_level": 0})
    return lambda rgba: compiled(toy, rgba)


@pytest.fixture(scope="module")
def rgba():
    return jax.random.uniform(jax.random.key(0), (2, 40, 56, 4), minval=-1, maxval=1)


def test_normals_have_unit_length_at_the_size_of_the_image(estimate, rgba):
    normals = estimate(rgba)
    assert normals.shape == (2, 40, 56, 3) and normals.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-3)


def test_normals_depend_on_colors_and_not_on_alpha(estimate, rgba):
    np.testing.assert_array_equal(estimate(rgba), estimate(rgba.at[..., 3].set(-1)))
    assert np.abs(estimate(rgba) - estimate(-rgba)).max() > 1e-3


@pytest.mark.parametrize("normal", [(0, 0, -1), (1, 0, 0), (0, 1, 0), (0.6, 0, -0.8)])
def test_normals_of_the_input_camera_become_those_of_the_world(toy, monkeypatch, normal):
    encoded = (jnp.array(normal) + 1) / 2
    monkeypatch.setattr(
        dpt.DPTNormalEstimator, "encoded", lambda self, rgb: jnp.broadcast_to(encoded, (*rgb.shape[:3], 3))
    )
    expected = cameras.ring(8).world_from_cam[0, :3, :3] @ np.array(normal)
    np.testing.assert_allclose(toy(jnp.ones((1, 16, 16, 4)))[0, 3, 5], expected, atol=1e-6)


def test_the_network_gets_images_in_0_1(toy, monkeypatch):
    given = []

    def record(self, rgb):
        given.append(rgb)
        return jnp.ones_like(rgb)

    monkeypatch.setattr(dpt.DPTNormalEstimator, "encoded", record)
    toy(jnp.concatenate([-jnp.ones((1, 16, 8, 4)), jnp.ones((1, 16, 8, 4))], 2))
    assert given[0].shape == (1, 64, 64, 3)
    np.testing.assert_allclose([given[0].min(), given[0].max()], [0, 1], atol=1e-6)


def test_doubling_keeps_corners_and_lines():
    x = jnp.arange(4.0).reshape(1, 4, 1, 1) * jnp.ones((1, 4, 3, 1))
    doubled = dpt.double(x)
    assert doubled.shape == (1, 8, 6, 1)
    np.testing.assert_allclose(doubled[0, :, 2, 0], np.linspace(0, 3, 8), atol=1e-5)


def test_standardized_kernels_ignore_scale_and_offset():
    conv = dpt_backbone.StandardizedConv(3, 4, 3, layers.Types(rngs=nnx.Rngs(0)), stride=2)
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    before = conv(x)
    conv.kernel.set_value(3 * conv.kernel[...] + 5)
    assert before.shape == (1, 4, 4, 4)
    np.testing.assert_allclose(conv(x), before, atol=1e-3)


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="image_size is 80 pixels; expected a multiple of 32, at least 64"):
        dpt.DPTSpec(image_size=80)


def test_output_layers_must_increase():
    with pytest.raises(ValueError, match=r"output_layers is \(3, 3\); expected two increasing"):
        dpt.DPTSpec(output_layers=(3, 3))
