import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import anchor, blocks, interpolation, normals, unet

TINY = {"block_out_channels": (8, 16), "attention_levels": (False, False), "layers_per_block": 1, "norm_groups": 4}
DENOISER = TINY | {"heads": 2, "cross_attention_dim": 6}


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


NOISE = noise(9, 4, 4, 8)


@functools.cache
def anchor_inputs(channels=8):
    context, labels = noise(1, 2, 2, 3, 1, 6), noise(2, 2, 2, 3, 12)
    return noise(0, 2, 2, 3, 4, 4, channels), jnp.array([10, 900]), context, labels


@functools.cache
def interpolation_inputs():
    context, labels = noise(1, 2, 1, 6), noise(2, 2, 3, 6)
    return noise(0, 2, 3, 4, 4, 8), jnp.array([0.1, -0.5]), context, jnp.ones((2, 3)), labels


def trained(module):
    """The module with noise on its weights: new ones predict zero."""
    generator = np.random.default_rng(0)
    state = nnx.state(module, nnx.Param)
    nnx.update(
        module, jax.tree.map(lambda p: np.asarray(p) + 0.1 * generator.standard_normal(p.shape, np.float32), state)
    )
    return module


@functools.cache
def anchor_unet(**kwargs):
    return trained(anchor.AnchorUNet(**DENOISER | kwargs, rngs=nnx.Rngs(0)))


@functools.cache
def interpolation_unet(**kwargs):
    return trained(interpolation.InterpolationUNet(**DENOISER | kwargs, added_time_dim=4, rngs=nnx.Rngs(0)))


# Compiling takes nearly all of the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@jit
def call(module, *args):
    return module(*args)


@jit
def gradient(module, *args):
    return nnx.grad(lambda module: (module(*args).astype(jnp.float32) ** 2).mean())(module)


def test_views_of_one_object_depend_on_each_other():
    sample, *rest = anchor_inputs()
    module = anchor_unet()
    change = call(module, sample.at[0, 0, 2].add(NOISE), *rest) - call(module, sample, *rest)
    reached = np.abs(np.asarray(change)).max((-3, -2, -1)) > 1e-5
    # All views of both domains of the first object, nothing of the second.
    assert reached[:, 0].all() and not reached[:, 1].any()


def test_one_time_may_stand_for_all():
    sample, _, *rest = anchor_inputs()
    assert nnx.eval_shape(anchor_unet(), sample, jnp.array(7), *rest).shape == (2, 2, 3, 4, 4, 4)


def test_windows_are_independent_and_their_frames_are_not():
    sample, *rest = interpolation_inputs()
    change = call(interpolation_unet(), sample.at[0, 0].add(NOISE), *rest) - call(interpolation_unet(), sample, *rest)
    reached = np.abs(np.asarray(change)).max((-3, -2, -1)) > 1e-5
    assert reached[0].all() and not reached[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("network, inputs", [(anchor_unet, anchor_inputs), (interpolation_unet, interpolation_inputs)])
def test_gradients_are_finite_with_rematerialisation(network, inputs):
    module = network(remat="full", block_out_channels=(8,), attention_levels=(False,))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient(module, *inputs())))


def test_rematerialisation_keeps_the_gradient():
    def stage(remat):
        return trained(blocks.Stage([blocks.ResBlock(8, 8, norm_groups=4, rngs=nnx.Rngs(0))], remat=remat))

    x = noise(0, 2, 4, 4, 8)
    total = jit(nnx.grad(lambda stage: stage(x)[0].sum()))
    plain, remat = (total(stage(remat)) for remat in ("none", "full"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_recomputed_layer_gives_the_gradients_of_parameters_and_input_together():
    layers = [blocks.ResBlock(8, 8, norm_groups=4, rngs=nnx.Rngs(i)) for i in range(2)]
    graph, state = nnx.split(blocks.Stage(layers, remat="full"))
    total = lambda state, x: nnx.merge(graph, state)(x)[0].sum()  # noqa: E731
    gradient = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(state, noise(0, 2, 4, 4, 8))
    ties = [len(eqn.invars) for eqn in gradient.eqns if eqn.primitive.name == "optimization_barrier"]
    assert ties == [len(jax.tree.leaves(state)) // 2 + 1] * 2


@pytest.mark.parametrize("network, inputs", [(anchor_unet, anchor_inputs), (interpolation_unet, interpolation_inputs)])
def test_bfloat16_agrees_with_float32(network, inputs):
    exact = call(network(), *inputs())
    rough = call(network(dtype=jnp.bfloat16), *inputs())
    assert rough.dtype == jnp.bfloat16
    assert jnp.abs(rough.astype(jnp.float32) - exact).mean() < 0.1 * exact.std()


def test_channels_of_latents_are_free():
    module = anchor.AnchorUNet(**DENOISER, in_channels=16, out_channels=8, rngs=nnx.Rngs(0))
    assert nnx.eval_shape(module, *anchor_inputs(16)).shape == (2, 2, 3, 4, 4, 8)


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
    got = call(estimator(), noise(0, 2, 8, 8, 4))
    assert got.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(jnp.linalg.norm(got, axis=-1), 1, atol=1e-5)


def test_a_new_estimator_says_towards_the_camera():
    module = normals.NormalEstimator(**TINY, heads=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(call(module, jnp.ones((1, 8, 8, 4))), jnp.broadcast_to(jnp.eye(3)[0], (1, 8, 8, 3)))


def test_gradients_are_finite_where_the_normal_vanishes():
    module = normals.NormalEstimator(
        **TINY | {"block_out_channels": (8,), "attention_levels": (False,)}, rngs=nnx.Rngs(0)
    )
    module.conv_out.bias[...] = jnp.zeros(3)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient(module, jnp.zeros((1, 8, 8, 4)))))


def test_a_new_transformer_is_the_identity():
    module = unet.SpatialTransformer(8, 2, norm_groups=4, rngs=nnx.Rngs(0))
    x = noise(0, 2, 4, 4, 8)
    np.testing.assert_array_equal(call(module, x), x)
