import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import anchor, blocks, interpolation, layers, normals, unet

TINY = {"block_out_channels": (8, 16), "attention_levels": (False, False), "layers_per_block": 1, "norm_groups": 4}
DENOISER = TINY | {"heads": 2, "cross_attention_dim": 6}


def types():
    return layers.Types(rngs=nnx.Rngs(0))


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
    """Add noise to the weights of a module: new ones predict zero."""
    generator = np.random.default_rng(0)
    state = nnx.state(module, nnx.Param)
    nnx.update(
        module, jax.tree.map(lambda p: np.asarray(p) + 0.1 * generator.standard_normal(p.shape, np.float32), state)
    )
    return module


def new_anchor_unet(seed=0, dtype=jnp.float32, remat="none", **settings):
    types = layers.Types(dtype=dtype, rngs=nnx.Rngs(seed), remat=remat)
    return anchor.AnchorUNet(anchor.AnchorUNetSpec(**DENOISER | settings), types)


@functools.cache
def anchor_unet(**kwargs):
    return trained(new_anchor_unet(**kwargs))


@functools.cache
def interpolation_unet(dtype=jnp.float32, remat="none", **settings):
    spec = interpolation.InterpolationUNetSpec(**DENOISER | settings, added_time_dim=4)
    types = layers.Types(dtype=dtype, rngs=nnx.Rngs(0), remat=remat)
    return trained(interpolation.InterpolationUNet(spec, types))


def new_estimator(**settings):
    return normals.NormalEstimator(normals.NormalUNetSpec(**TINY | {"heads": 2} | settings), types())


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
    assert reached[0].all() and not reached[1].any()


def test_all_objects_may_share_one_time():
    sample, _, *rest = anchor_inputs()
    assert nnx.eval_shape(anchor_unet(), sample, jnp.array(7), *rest).shape == (2, 2, 3, 4, 4, 4)


def test_windows_are_independent_and_their_frames_are_not():
    sample, *rest = interpolation_inputs()
    change = call(interpolation_unet(), sample.at[0, 0].add(NOISE), *rest) - call(interpolation_unet(), sample, *rest)
    reached = np.abs(np.asarray(change)).max((-3, -2, -1)) > 1e-5
    assert reached[0].all() and not reached[1].any()


@pytest.mark.slow
@pytest.mark.parametrize("network, inputs", [(anchor_unet, anchor_inputs), (interpolation_unet, interpolation_inputs)])
def test_gradients_are_finite_with_rematerialization(network, inputs):
    module = network(remat="full", block_out_channels=(8,), attention_levels=(False,))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient(module, *inputs())))


def test_rematerialization_keeps_the_gradient():
    def level(remat):
        return trained(blocks.Level([blocks.ResBlock(8, 8, types(), norm_groups=4)], remat=remat))

    x = noise(0, 2, 4, 4, 8)
    total = jit(nnx.grad(lambda level: level(x)[0].sum()))
    plain, remat = (total(level(remat)) for remat in ("none", "full"))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_recomputed_layer_gives_the_gradients_of_parameters_and_input_together():
    resnets = [blocks.ResBlock(8, 8, types(), norm_groups=4) for _ in range(2)]
    graph, state = nnx.split(blocks.Level(resnets, remat="full"))

    def total(state, x):
        return nnx.merge(graph, state)(x)[0].sum()

    gradient = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(state, noise(0, 2, 4, 4, 8))
    ties = [len(eqn.invars) for eqn in gradient.eqns if eqn.primitive.name == "optimization_barrier"]
    assert ties == [len(jax.tree.leaves(state)) // 2 + 1] * 2


@pytest.mark.slow
@pytest.mark.parametrize("network, inputs", [(anchor_unet, anchor_inputs), (interpolation_unet, interpolation_inputs)])
def test_bfloat16_agrees_with_float32(network, inputs):
    exact = call(network(), *inputs())
    rough = call(network(dtype=jnp.bfloat16), *inputs())
    assert rough.dtype == jnp.bfloat16
    assert jnp.abs(rough.astype(jnp.float32) - exact).mean() < 0.1 * exact.std()


def test_latents_may_have_any_number_of_channels():
    module = new_anchor_unet(in_channels=16, out_channels=8)
    assert nnx.eval_shape(module, *anchor_inputs(16)).shape == (2, 2, 3, 4, 4, 8)


def test_a_new_denoiser_predicts_zero():
    module = new_anchor_unet()
    np.testing.assert_array_equal(call(module, *anchor_inputs()), 0)


def test_the_seed_decides_the_weights():
    kernels = [new_anchor_unet(seed).conv_in.kernel[...] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert jnp.abs(kernels[0] - kernels[2]).max() > 0.01
    assert float(kernels[0].std()) == pytest.approx((9 * 8) ** -0.5, rel=0.1)


def test_weights_can_be_drawn_under_jit():
    module = nnx.jit(lambda: blocks.EmbeddingMLP(64, 64, 64, layers.Types(rngs=nnx.Rngs(0)).of_network()))()
    assert float(module.linear_1.kernel[...].std()) == pytest.approx(1 / 8, rel=0.1)


def test_sinusoids_hold_cosines_then_sines():
    expected = [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]
    np.testing.assert_allclose(blocks.sinusoids(jnp.array(3), 4), expected, atol=1e-6)


def test_the_blend_moves_from_frames_to_image_with_its_logit():
    mixer = blocks.TimeMixer(20.0, types())
    assert float(mixer(jnp.array([1.0]), jnp.array([2.0]))[0]) == pytest.approx(1)
    mixer = blocks.TimeMixer(20.0, types(), weighs_temporal=True)
    assert float(mixer(jnp.array([1.0]), jnp.array([2.0]))[0]) == pytest.approx(2)


def test_a_size_that_cannot_be_halved_is_refused():
    sample, *rest = anchor_inputs()
    with pytest.raises(ValueError, match="height 3 and width 4 must be multiples of 2"):
        anchor_unet()(sample[..., :3, :, :], *rest)


def test_a_missing_domain_is_refused():
    sample, time, context, labels = anchor_inputs()
    with pytest.raises(ValueError, match="the sample has 1 domains; expected 2"):
        anchor_unet()(sample[:, :1], time, context[:, :1], labels[:, :1])


def test_levels_must_agree():
    with pytest.raises(ValueError, match="got 2 block_out_channels, 1 attention_levels and 2 heads"):
        anchor.AnchorUNetSpec(**DENOISER | {"attention_levels": (True,)})


def test_an_inherited_setting_has_another_default_and_the_same_meaning():
    fields = {spec: spec.__dataclass_fields__["heads"] for spec in (unet.UNetSpec, normals.NormalUNetSpec)}
    assert [field.default for field in fields.values()] == [8, 4]
    assert len({field.metadata["doc"] for field in fields.values()}) == 1


def test_heads_may_be_one_number_for_all_levels():
    assert interpolation.InterpolationUNetSpec(heads=5).level_heads == (5, 5, 5, 5)


@functools.cache
def estimator():
    return trained(new_estimator())


def test_normals_have_unit_length_at_full_resolution():
    got = call(estimator(), noise(0, 2, 8, 8, 4))
    assert got.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(jnp.linalg.norm(got, axis=-1), 1, atol=1e-5)


def test_normals_of_a_new_estimator_face_the_camera():
    module = new_estimator()
    np.testing.assert_allclose(call(module, jnp.ones((1, 8, 8, 4))), jnp.broadcast_to(jnp.eye(3)[0], (1, 8, 8, 3)))


def test_gradients_are_finite_where_the_normal_vanishes():
    module = new_estimator(block_out_channels=(8,), attention_levels=(False,))
    module.conv_out.bias[...] = jnp.zeros(3)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient(module, jnp.zeros((1, 8, 8, 4)))))


def test_a_new_transformer_is_the_identity():
    module = unet.SpatialTransformer(8, 2, types(), norm_groups=4)
    x = noise(0, 2, 4, 4, 8)
    np.testing.assert_array_equal(call(module, x), x)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_views_that_do_not_exist_change_nothing(remat):
    sample, time, context, labels = anchor_inputs()
    network = anchor_unet(remat=remat, attention_levels=(False, True))
    whole = call(network, sample, time, context, labels, jnp.array([2, 3]))
    without = call(network, sample[:, :, :2], time, context[:, :, :2], labels[:, :, :2])
    np.testing.assert_allclose(whole[0, :, :2], without[0], atol=1e-4)
    assert np.abs(whole[1, :, :2] - without[1]).max() > 1e-3


@pytest.mark.slow
def test_gradients_pass_by_views_that_do_not_exist():
    sample, *rest = anchor_inputs()
    network = anchor_unet(remat="full", attention_levels=(False, True))
    found = gradient(network, sample, *rest, jnp.array([2, 3]))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(found))
