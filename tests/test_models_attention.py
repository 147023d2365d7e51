import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e3d_jax.models import attention, layers


def types():
    return layers.Types(rngs=nnx.Rngs(1))


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def attend_slowly(query, key, value):
    """Attend with one query head at a time, in NumPy."""
    out = np.zeros_like(query)
    for index in np.ndindex(*query.shape[:-3], query.shape[-2]):
        q, k, v = (x[(*index[:-1], slice(None), index[-1])] for x in (query, key, value))
        logits = q @ k.T / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[(*index[:-1], slice(None), index[-1])] = weights / weights.sum(-1, keepdims=True) @ v
    return out


def block(**kwargs):
    """Build a block whose cross-domain attention is not zero."""
    module = attention.TransformerBlock(16, 2, types(), **kwargs)
    if kwargs.get("domains"):
        module.attn_joint_mid.to_out.kernel[...] = noise(3, 16, 16)
    return module


@jax.jit
def call(module, *args):
    return module(*args)


def changed_positions(module, x, changed):
    """Return which positions [b d v n] of the result a change of ``x`` at ``changed`` reaches."""
    other = x.at[changed].add(jnp.linspace(-1, 1, x.shape[-1]))  # A constant would vanish in the norms.
    return np.abs(np.asarray(call(module, other) - call(module, x))).max(-1) > 1e-6


TOKENS = noise(0, 2, 2, 3, 4, 16)  # b d v n c


def test_attention_matches_its_definition():
    query = noise(0, 2, 3, 5, 2, 4)
    key, value = (noise(seed, 2, 3, 6, 2, 4) for seed in (1, 2))
    expected = attend_slowly(*(np.asarray(x) for x in (query, key, value)))
    np.testing.assert_allclose(attention.attend(query, key, value), expected, atol=1e-6)


def test_gated_gelu_matches_its_definition():
    value, gate = noise(0, 3, 4), noise(1, 3, 4)
    normal = np.vectorize(statistics.NormalDist().cdf)(np.asarray(gate))
    np.testing.assert_allclose(layers.geglu(value, gate), value * gate * normal, atol=1e-6)


def test_the_gradient_of_gated_gelu_is_that_of_its_parts():
    value, gate, outer = noise(0, 3, 4), noise(1, 3, 4), noise(2, 3, 4)
    gradients = jax.vjp(layers.geglu, value, gate)[1](outer)
    expected = jax.vjp(lambda value, gate: value * layers.gelu(gate), value, gate)[1](outer)
    np.testing.assert_allclose(gradients, expected, atol=1e-6)


def test_gated_gelu_keeps_only_its_inputs_for_the_backward_pass():
    kept = jax.tree.leaves(jax.vjp(layers.geglu, noise(0, 3, 4), noise(1, 3, 4))[1])
    assert sum(array.size for array in kept if array.ndim) == 3 * 8


def test_halves_of_a_linear_layer_are_those_of_its_result():
    layer, x = layers.linear(4, 6, types()), noise(0, 3, 4)
    np.testing.assert_allclose(np.concatenate(layers.linear_halves(layer, x), -1), layer(x), atol=1e-6)


def test_spatial_attention_stays_in_its_image():
    reached = changed_positions(block(), TOKENS, (0, 0, 1, 2))
    assert reached[0, 0, 1].all() and reached.sum() == 4


def test_multi_view_attention_mixes_the_views_of_one_object_and_domain():
    reached = changed_positions(block(self_axes=attention.MULTI_VIEW), TOKENS, (0, 0, 1, 2))
    assert reached[0, 0].all() and reached.sum() == 12


def test_temporal_attention_mixes_frames_at_one_position():
    reached = changed_positions(block(self_axes=attention.TEMPORAL), TOKENS, (0, 0, 1, 2))
    assert reached[0, 0, :, 2].all() and reached.sum() == 3


def test_cross_domain_attention_mixes_domains_of_one_view():
    reached = changed_positions(block(domains=True), TOKENS, (0, 0, 1, 2))
    assert reached[0, :, 1].all() and reached.sum() == 8


def test_new_cross_domain_attention_is_the_identity():
    module = attention.TransformerBlock(16, 2, types(), domains=True)
    before = call(module, TOKENS)
    module.domains = False
    # In the color domain, whose feed-forward both have.
    np.testing.assert_array_equal(call(module, TOKENS)[:, 0], before[:, 0])


def test_normals_have_their_own_feed_forward():
    module = block(domains=True)
    before = call(module, TOKENS)
    module.ff_normal.out.bias[...] += 1.0
    after = call(module, TOKENS)
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    np.testing.assert_allclose(after[:, 1], before[:, 1] + 1, atol=1e-5)


def test_a_single_key_gives_its_value_to_every_query():
    module = attention.Attention(16, 2, types(), context_dim=8)
    context = noise(1, 2, 2, 1, 1, 8)
    twice = jnp.concatenate([context, context], -2)  # The same key twice: the general path.
    np.testing.assert_allclose(call(module, TOKENS, context), call(module, TOKENS, twice), atol=1e-5)


def test_the_plain_kernel_is_used_without_a_gpu():
    assert attention.implementation(jnp.bfloat16, 64, 256, 256) is None


@pytest.mark.parametrize(
    "implementation, limits",
    [
        ("_attend_elsewhere", {"MAX_LOGITS": 7 * 24}),  # chunks of six queries of all heads
        ("_attend_on_cpu", {"MIN_CACHED_LOGITS": 0, "CACHED_LOGITS": 3 * 5 * 24}),  # chunks of four queries of one head
    ],
)
def test_long_sequences_are_attended_in_chunks(monkeypatch, implementation, limits):
    query, key, value = (noise(i, 3, 24, 2, 8) for i in range(3))

    def gradients(attend):
        return jax.jit(jax.value_and_grad(lambda *x: (attend(*x) ** 2).sum(), (0, 1, 2)))(query, key, value)

    for name, limit in limits.items():
        monkeypatch.setattr(attention, name, limit)
    whole, chunked = gradients(jax.nn.dot_product_attention), gradients(getattr(attention, implementation))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, chunked)


def test_cpus_attend_one_head_at_a_time():
    query = noise(0, 1, 128, 2, 8)
    traced = jax.jit(attention.attend).trace(query, query, query)
    loops = {platform: "while" in traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu")}
    assert loops == {"cpu": True, "tpu": False}


@pytest.mark.parametrize(
    "dtype, head_dim, tokens, kernel",
    [
        (jnp.bfloat16, 64, 256, "cudnn"),
        (jnp.float32, 64, 256, None),
        (jnp.bfloat16, 60, 256, None),
        (jnp.bfloat16, 160, 256, None),
        (jnp.bfloat16, 64, 9, None),
    ],
)
def test_the_fused_kernel_is_used_where_it_works(monkeypatch, dtype, head_dim, tokens, kernel):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attention.implementation(dtype, head_dim, tokens, tokens) == kernel


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="3 attention heads do not divide 16 channels"):
        attention.Attention(16, 3, types())


def test_group_norm_normalizes_each_image_and_group():
    x = 5 + 3 * noise(0, 2, 3, 4, 4, 8)
    y = np.asarray(call(layers.GroupNorm(8, types(), groups=2), x)).reshape(2, 3, 4, 4, 2, 4)
    np.testing.assert_allclose(y.mean((2, 3, 5)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((2, 3, 5)), 1, atol=1e-4)


def test_group_norm_survives_a_large_mean_in_bfloat16():
    x = (1000 + jnp.arange(64.0)).reshape(1, 4, 4, 4).astype(jnp.bfloat16)
    y = layers.GroupNorm(4, layers.Types(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), groups=1)(x)
    assert y.dtype == jnp.bfloat16 and float(y.std()) == pytest.approx(1, abs=0.02)


def test_norm_groups_must_divide_channels():
    with pytest.raises(ValueError, match="32 norm groups do not divide 48 channels"):
        layers.GroupNorm(48, types())


@pytest.mark.parametrize(
    "implementation, limits",
    [
        ("_attend_elsewhere", {}),
        ("_attend_elsewhere", {"MAX_LOGITS": 7 * 24}),
        ("_attend_on_cpu", {"MIN_CACHED_LOGITS": 0, "CACHED_LOGITS": 3 * 5 * 24}),
    ],
)
def test_nothing_attends_to_keys_beyond_the_lengths(monkeypatch, implementation, limits):
    query, key, value = (noise(i, 3, 24, 2, 8) for i in range(3))
    for name, limit in limits.items():
        monkeypatch.setattr(attention, name, limit)
    found = getattr(attention, implementation)(query, key, value, jnp.array([24, 7, 1]))
    for row, length in enumerate((24, 7, 1)):
        expected = jax.nn.dot_product_attention(query[row], key[row, :length], value[row, :length])
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
