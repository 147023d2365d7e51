import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import anchor, blocks, interpolation, normals, unet

TINY = {"block_out_channels": (8, 16), "attention_levels": (False, True), "layers_per_block": 1, "norm_groups": 4}
DENOISER = TINY | {"heads": 2, "cross_attention_dim": 6}


@functools.cache
def anchor_inputs(channels=8):
    keys = jax.random.split(jax.random.key(0), 3)
    sample = jax.random.normal(keys[0], (2, 2, 3, 4, 4, channels))
    context = jax.random.normal(keys[1], (2, 2, 3, 1, 6))
    return sample, jnp.array([10, 900]), context, jax.random.normal(keys[2], (2, 2, 3, 12))


@functools.cache
def interpolation_inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    sample, context = jax.random.normal(keys[0], (2, 3, 4, 4, 8)), jax.random.normal(keys[1], (2, 1, 6))
    return sample, jnp.array([0.1, -0.5]), context, jnp.ones((2, 3)), jax.random.normal(keys[2], (2, 3, 6))


def trained(module):
    """The module with noise on its weights: new ones predict zero."""
    generator = np.random.default_rng(0)
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda p: p + 0.1 * generator.standard_normal(p.shape).astype(p.dtype), state))
    return module


@functools.cache
def anchor_unet(**kwargs):
    return trained(anchor.AnchorUNet(**DENOISER, rngs=nnx.Rngs(0), **kwargs))


@functools.cache
def interpolation_unet(**kwargs):
    return trained(interpolation.InterpolationUNet(**DENOISER, added_time_dim=4, rngs=nnx.Rngs(0), **kwargs))


@nnx.jit
def call(module, *args):
    return module(*args)


@nnx.jit
def gradient(module, *args):
    return nnx.grad(lambda module: (module(*args).astype(jnp.float32) ** 2).mean())(module)


def test_views_of_one_object_depend_on_each_other():
    sample, *rest = anchor_inputs()
    module = anchor_unet()
    change = call(module, sample.at[0, 0, 2].add(1.0), *rest) - call(module, sample, *rest)
    reached = np.abs(np.asarray(change)).max((-3, -2, -1)) > 1e-5
    # All views of both domains of the first object, nothing of the second.
    assert reached[:, 0].all() and not reached[:, 1].any()


def test_one_time_for_all_equals_the_same_time_for_each():
    sample, _, *rest = anchor_inputs()
    one, each = (call(anchor_unet(), sample, t, *rest) for t in (jnp.array(7), jnp.array([7, 7])))
    np.testing.assert_array_equal(one, each)


def test_windows_of_a_batch_are_independent():
    sample, time, *rest = interpolation_inputs()
    both = call(interpolation_unet(), sample, time, *rest)
    second = call(interpolation_unet(), sample[1:], time[1:], *(x[1:] for x in rest))
    np.testing.assert_allclose(both[1:], second, atol=1e-4)


def test_frames_of_a_window_depend_on_each_other():
    sample, *rest = interpolation_inputs()
    change = call(interpolation_unet(), sample.at[0, 0].add(1.0), *rest) - call(interpolation_unet(), sample, *rest)
    assert (np.abs(np.asarray(change[0])).max((-3, -2, -1)) > 1e-5).all()


@pytest.mark.parametrize("network, inputs", [(anchor_unet, anchor_inputs), (interpolation_unet, interpolation_inputs)])
def test_gradients_are_finite_and_rematerialisation_keeps_them(network, inputs):
    plain, remat = (nnx.to_pure_dict(gradient(network(remat=remat), *inputs())) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        assert jnp.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network, inputs", [(anchor_unet, anchor_inputs), (interpolation_unet, interpolation_inputs)])
def test_bfloat16_agrees_with_float32(network, inputs):
    exact = call(network(), *inputs())
    rough = call(network(dtype=jnp.bfloat16), *inputs())
    assert rough.dtype == jnp.bfloat16
    assert jnp.abs(rough.astype(jnp.float32) - exact).mean() < 0.1 * exact.std()


def test_channels_of_latents_are_free():
    module = anchor.AnchorUNet(**DENOISER, in_channels=16, out_channels=8, rngs=nnx.Rngs(0))
    assert nnx.eval_shape(call, module, *anchor_inputs(16)).shape == (2, 2, 3, 4, 4, 8)


def test_a_new_denoiser_predicts_zero():
    module = anchor.AnchorUNet(**DENOISER, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(call(module, *anchor_inputs()), 0)


def test_the_seed_decides_the_weights():
    kernels = [anchor.AnchorUNet(**DENOISER, rngs=nnx.Rngs(seed)).conv_in.kernel[...] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert jnp.abs(kernels[0] - kernels[2]).max() > 0.01
    assert float(kernels[0].std()) == pytest.approx((9 * 8) ** -0.5, rel=0.1)


def test_weights_can_be_drawn_under_jit():
    module = nnx.jit(lambda: blocks.EmbeddingMLP(64, 64, 64, dtype=None, param_dtype=jnp.float32, rngs=nnx.Rngs(0)))()
    assert float(module.linear_1.kernel[...].std()) == pytest.approx(1 / 8, rel=0.1)


def test_sinusoids_hold_cosines_then_sines():
    expected = [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]
    np.testing.assert_allclose(blocks.sinusoids(jnp.array(3), 4), expected, atol=1e-6)


def test_the_blend_moves_from_frames_to_image_with_its_logit():
    mixer = blocks.TimeMixer(20.0)
    assert float(mixer(jnp.array([1.0]), jnp.array([2.0]))[0]) == pytest.approx(1)
    mixer = blocks.TimeMixer(20.0, weighs_temporal=True)
    assert float(mixer(jnp.array([1.0]), jnp.array([2.0]))[0]) == pytest.approx(2)


def test_a_size_that_cannot_be_halved_is_refused():
    sample, *rest = anchor_inputs()
    with pytest.raises(ValueError, match="height 3 and width 4 must be multiples of 2"):
        anchor_unet()(sample[..., :3, :, :], *rest)


def test_a_missing_domain_is_refused():
    sample, time, context, labels = anchor_inputs()
    with pytest.raises(ValueError, match="leading axis of the sample is 1"):
        anchor_unet()(sample[:1], time, context[:1], labels[:1])


def test_levels_must_agree():
    with pytest.raises(ValueError, match="got 2 block_out_channels, 1 attention flags"):
        anchor.AnchorUNet(**DENOISER | {"attention_levels": (True,)}, rngs=nnx.Rngs(0))


@functools.cache
def estimator():
    return trained(normals.NormalEstimator(**TINY, heads=2, rngs=nnx.Rngs(0)))


def test_normals_have_unit_length_at_full_resolution():
    got = call(estimator(), jax.random.normal(jax.random.key(0), (2, 8, 8, 4)))
    assert got.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(jnp.linalg.norm(got, axis=-1), 1, atol=1e-5)


def test_a_new_estimator_says_towards_the_camera():
    module = normals.NormalEstimator(**TINY, heads=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(call(module, jnp.ones((1, 8, 8, 4))), jnp.broadcast_to(jnp.eye(3)[0], (1, 8, 8, 3)))


def test_gradients_of_normals_are_finite():
    grads = gradient(estimator(), jnp.zeros((1, 8, 8, 4)))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_new_transformer_is_the_identity():
    module = unet.SpatialTransformer(8, 2, norm_groups=4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    np.testing.assert_array_equal(module(x), x)
