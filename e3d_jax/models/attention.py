"""One attention and one transformer block; variants differ only in which axes are folded into tokens.

Activations keep their leading axes: ``[b d v h w c]`` in the anchor network, ``[b t h w c]`` in the interpolation
network. The batch comes first so that it stays split over devices when leading axes are merged. As tokens they are
``[*lead n c]``, and a self-attention names the axes that attend to each other:

    spatial        (n)      SPATIAL         each image on its own
    multi-view     (v n)    MULTI_VIEW      all views of one object and domain
    cross-domain   (d n)    CROSS_DOMAIN    one view in both domains
    temporal       (t)      TEMPORAL        one position in all frames
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from e3d_jax.models import layers

# Axes of [b d v n c] or [b t n c], counted from the end.
SPATIAL = (-2,)
MULTI_VIEW = (-3, -2)
CROSS_DOMAIN = (-4, -2)
TEMPORAL = (-3,)

# With fewer tokens the fused kernel is not faster, and some of its versions refuse short sequences.
MIN_FUSED_TOKENS = 64

# Without a fused kernel, more logits than this (for one head of one sequence) are computed in chunks of queries.
MAX_LOGITS = 2**21

# A CPU computes the logits of one head at a time, as many as its cache holds; for fewer in all it does not pay off.
CACHED_LOGITS = 2**19
MIN_CACHED_LOGITS = 2**12


def implementation(dtype: Any, head_dim: int, num_queries: int, num_keys: int) -> Literal["cudnn"] | None:
    """Return the fastest kernel of ``jax.nn.dot_product_attention`` for these operands: "cudnn", or None for XLA."""
    fused = (
        jax.default_backend() == "gpu"
        and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and head_dim % 8 == 0
        and head_dim <= 128
        and min(num_queries, num_keys) >= MIN_FUSED_TOKENS
        # Its backward pass refuses odd lengths.
        and num_queries % 2 == num_keys % 2 == 0
    )
    return "cudnn" if fused else None


def attend(
    query: Float[jax.Array, "*lead n heads e"],
    key: Float[jax.Array, "*lead m heads e"],
    value: Float[jax.Array, "*lead m heads e"],
    lengths: Int[jax.Array, "*lead"] | None = None,
) -> Float[jax.Array, "*lead n heads e"]:
    """Compute softmax attention with scale 1/sqrt(e); the softmax is in float32 for operands of any type.

    Args:
      query: what asks.
      key: what each query is compared with.
      value: what is averaged.
      lengths: how many of the keys exist, from the first one on; all when not given.
    """
    flat = [x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)]
    flat += [] if lengths is None else [lengths.reshape(-1)]
    if kernel := implementation(query.dtype, query.shape[-1], query.shape[-3], key.shape[-3]):
        # The compilation cache's key would miss options that are not operands, such as causality
        # (distributed.stable_cache_keys); lengths are operands.
        attended = functools.partial(_plain, implementation=kernel)(*flat)
    else:
        # Chosen by where the program will run, which may be elsewhere when a run on other hardware is planned.
        attended = jax.lax.platform_dependent(*flat, cpu=_attend_on_cpu, default=_attend_elsewhere)
    return attended.reshape(query.shape)


def _plain(query, key, value, lengths=None, implementation=None):
    return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation=implementation)


def _attend_on_cpu(query, key, value, lengths=None):
    """Compute attention of [b n heads e] within a cache; batches, possibly split over devices, stay together."""
    batch, num_queries, num_keys = query.shape[0], query.shape[1], key.shape[1]
    if num_queries * num_keys < MIN_CACHED_LOGITS:
        return _plain(query, key, value, lengths)
    heads = [jnp.moveaxis(x, 2, 0) for x in (query, key, value)]
    chunk = _largest_divisor(num_queries, CACHED_LOGITS // (batch * num_keys))
    return jnp.moveaxis(jax.lax.map(lambda head: _attend_in_chunks(*head, chunk, lengths), heads), 0, 2)


def _attend_elsewhere(query, key, value, lengths=None):
    """Compute attention of [b n heads e] in bounded memory."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    if num_queries * num_keys <= 2 * MAX_LOGITS:
        return _plain(query, key, value, lengths)
    heads = [jnp.moveaxis(x, 2, 1) for x in (query, key, value)]
    chunk = _largest_divisor(num_queries, MAX_LOGITS // num_keys)
    return jnp.moveaxis(_attend_in_chunks(*heads, chunk, lengths), 1, 2)


def _attend_in_chunks(query, key, value, chunk: int, lengths=None):
    """Compute attention of [b ... n e] in memory that grows with ``chunk``, also backward (arXiv 2112.05682)."""
    if lengths is not None:
        exists = jnp.arange(key.shape[-2]) < lengths.reshape(-1, *(1,) * (key.ndim - 1))  # [b ... 1 m]

    def attention(part):
        logits = jnp.matmul(part, key.swapaxes(-1, -2), preferred_element_type=accumulate) * part.shape[-1] ** -0.5
        if lengths is not None:
            logits = jnp.where(exists, logits, -jnp.inf)
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        # Normalized last, because the result is smaller than the weights.
        attended = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=accumulate)
        return (attended / weights.sum(-1, keepdims=True)).astype(value.dtype)

    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    parts = jnp.moveaxis(query.reshape(*query.shape[:-2], -1, chunk, query.shape[-1]), -3, 0)
    return jnp.moveaxis(jax.lax.map(jax.checkpoint(attention), parts), 0, -3).reshape(query.shape)


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor up to a limit, or 1."""
    return next(size for size in range(min(max(limit, 1), number), 0, -1) if number % size == 0)


def over_axes(
    function: Callable[[jax.Array], jax.Array], x: Float[jax.Array, "*lead n c"], axes: Sequence[int]
) -> Float[jax.Array, "*lead n c"]:
    """Apply ``function`` (``[*rest tokens c]`` to the same shape) with ``axes`` (negative) folded into its tokens."""
    last = tuple(range(-1 - len(axes), -1))
    moved = jnp.moveaxis(x, axes, last)
    folded = moved.reshape(*moved.shape[: last[0]], -1, moved.shape[-1])
    return jnp.moveaxis(function(folded).reshape(moved.shape), last, axes)


def per_domain(
    color: Callable[[jax.Array], jax.Array], normal: Callable[[jax.Array], jax.Array], x: Float[jax.Array, "b d ..."]
) -> Float[jax.Array, "b d ..."]:
    """Apply one function to the color half of the domain axis and another to the normal half."""
    return jnp.concatenate([color(x[:, :1]), normal(x[:, 1:])], 1)


class Attention(nnx.Module):
    """Multi-head attention: queries from ``x``, keys and values from ``context`` or from ``x`` itself.

    Args:
      channels: width of ``x``, and of all heads' queries, keys and values together.
      heads: number of heads; divides ``channels``.
      types: of the layers.
      context_dim: width of the context; None for self-attention.
      use_bias: whether queries, keys and values have biases.
      zero_out: whether the output projection starts at zero, so that a residual branch starts as the identity.

    Raises:
      ValueError: ``heads`` does not divide ``channels``.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        types: layers.Types,
        *,
        context_dim: int | None = None,
        use_bias: bool = False,
        zero_out: bool = False,
    ):
        if channels % heads:
            raise ValueError(f"{heads} attention heads do not divide {channels} channels; choose a divisor")
        self.heads = heads
        source = channels if context_dim is None else context_dim
        self.to_q = layers.linear(channels, channels, types, use_bias=use_bias)
        self.to_k = layers.linear(source, channels, types, use_bias=use_bias)
        self.to_v = layers.linear(source, channels, types, use_bias=use_bias)
        out_init = layers.zeros if zero_out else layers.fan_in_normal
        self.to_out = layers.linear(channels, channels, types, kernel_init=out_init)

    def __call__(
        self,
        x: Float[jax.Array, "*lead n c"],
        context: Float[jax.Array, "... m e"] | None = None,
        lengths: Int[jax.Array, "*lead"] | None = None,
    ) -> Float[jax.Array, "*lead n c"]:
        """Attend from ``x``; the leading axes of ``context`` broadcast to those of ``x``.

        Args:
          x: queries, and without a context keys and values.
          context: keys and values.
          lengths: see :func:`attend`.
        """
        context = x if context is None else context
        if context.shape[-2] == 1:
            # The softmax over a single key is 1, whatever the query.
            return jnp.broadcast_to(self.to_out(self.to_v(context)), x.shape)
        context = jnp.broadcast_to(context, (*x.shape[:-2], *context.shape[-2:]))
        query, key, value = (
            y.reshape(*y.shape[:-1], self.heads, -1) for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(attend(query, key, value, lengths).reshape(x.shape))


class FeedForward(nnx.Module):
    """Two layers with a gated exact GELU between them (GEGLU, arXiv 2002.05202), four times as wide."""

    def __init__(self, channels: int, types: layers.Types):
        self.proj = layers.linear(channels, 8 * channels, types)
        self.out = layers.linear(4 * channels, channels, types)

    def __call__(self, x: Float[jax.Array, "*lead c"]) -> Float[jax.Array, "*lead c"]:
        """Transform each token on its own."""
        return self.out(layers.geglu(*layers.linear_halves(self.proj, x)))


class TransformerBlock(nnx.Module):
    """Pre-norm residual branches: self-attention, cross-domain attention, cross-attention, feed-forward.

    Args:
      channels: width of the tokens.
      heads: number of heads of each attention.
      types: of the layers.
      context_dim: width of the cross-attention's context; None for no cross-attention.
      self_axes: axes that ``attn1`` folds into tokens.
      domains: whether the second axis is (color, normal): adds the cross-domain attention and gives normals
        a feed-forward of their own.
      leading_ff: whether a feed-forward comes first, as in the temporal blocks of Stable Video Diffusion.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        types: layers.Types,
        *,
        context_dim: int | None = None,
        self_axes: tuple[int, ...] = SPATIAL,
        domains: bool = False,
        leading_ff: bool = False,
    ):
        self.self_axes, self.domains, self.leading_ff = self_axes, domains, leading_ff
        self.crosses = context_dim is not None
        if leading_ff:
            self.norm_in = layers.layer_norm(channels, types)
            self.ff_in = FeedForward(channels, types)
        self.norm1 = layers.layer_norm(channels, types)
        self.attn1 = Attention(channels, heads, types)
        if domains:
            self.norm_joint_mid = layers.layer_norm(channels, types)
            self.attn_joint_mid = Attention(channels, heads, types, zero_out=True)
            self.ff_normal = FeedForward(channels, types)
        if self.crosses:
            self.norm2 = layers.layer_norm(channels, types)
            self.attn2 = Attention(channels, heads, types, context_dim=context_dim)
        self.norm3 = layers.layer_norm(channels, types)
        self.ff = FeedForward(channels, types)

    def __call__(
        self,
        x: Float[jax.Array, "*lead n c"],
        context: Float[jax.Array, "... m e"] | None = None,
        num_views: Int[jax.Array, " b"] | None = None,
    ) -> Float[jax.Array, "*lead n c"]:
        """Transform tokens.

        Args:
          x: tokens.
          context: of the cross-attention; broadcasts over the leading axes of ``x``.
          num_views: how many views of each object exist, of tokens ``[b d v n c]``; nothing attends to the others,
            which come last. All when not given.
        """
        if self.leading_ff:
            x = x + self.ff_in(self.norm_in(x))
        attend_self: Callable[[jax.Array], jax.Array] = self.attn1
        if num_views is not None:
            lengths = jnp.broadcast_to(num_views[:, None] * x.shape[-2], x.shape[:2])
            attend_self = functools.partial(self.attn1, lengths=lengths)
        x = x + over_axes(attend_self, self.norm1(x), self.self_axes)
        if self.domains:
            x = x + over_axes(self.attn_joint_mid, self.norm_joint_mid(x), CROSS_DOMAIN)
        if self.crosses:
            x = x + self.attn2(self.norm2(x), context)
        y = self.norm3(x)
        return x + (per_domain(self.ff, self.ff_normal, y) if self.domains else self.ff(y))
