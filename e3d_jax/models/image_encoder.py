"""The image encoder of CLIP (arXiv 2103.00020): a vision transformer whose class token is projected."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from e3d_jax.models import attention, layers

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nnx.sigmoid(1.702 * x),
    "gelu": layers.gelu,
}


class MLP(nnx.Module):
    """Two layers with an activation between them."""

    def __init__(self, width: int, hidden: int, *, activation: str, **types: Any):
        self.activation = activation
        self.fc1 = layers.linear(width, hidden, **types)
        self.fc2 = layers.linear(hidden, width, **types)

    def __call__(self, x: Float[jax.Array, "*lead c"]) -> Float[jax.Array, "*lead c"]:
        """Transform each token alone."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class EncoderLayer(nnx.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, hidden: int, heads: int, *, activation: str, **types: Any):
        self.layer_norm1 = layers.layer_norm(width, **types)
        self.self_attn = attention.Attention(width, heads, use_bias=True, **types)
        self.layer_norm2 = layers.layer_norm(width, **types)
        self.mlp = MLP(width, hidden, activation=activation, **types)

    def __call__(self, x: Float[jax.Array, "b n c"]) -> Float[jax.Array, "b n c"]:
        """Transform."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ImageEncoder(nnx.Module):
    """Vision transformer with a projection, as in CLIP.

    Args:
      image_size: height and width of the images in pixels.
      patch_size: height and width of a patch; divides ``image_size``.
      in_channels: channels of the images.
      hidden_size: width of the tokens.
      intermediate_size: width inside the feed-forwards.
      num_layers: transformer layers.
      heads: attention heads.
      projection_dim: width of the result.
      activation: 'quick_gelu' or 'gelu'.
      dtype: of the computation.
      param_dtype: of the weights.

    Raises:
      ValueError: an unknown activation, or patches that do not tile the image.
    """

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 14,
        in_channels: int = 3,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_layers: int = 24,
        heads: int = 16,
        projection_dim: int = 768,
        activation: str = "quick_gelu",
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} pixels do not tile images of {image_size}; choose a divisor")
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": layers.ParamKeys(rngs)}
        self.image_size, self.dtype = image_size, dtype
        tokens = (image_size // patch_size) ** 2 + 1
        self.class_embedding = nnx.Param(layers.embedding_init(types["rngs"].params(), (hidden_size,), param_dtype))
        self.position_embedding = nnx.Embed(tokens, hidden_size, embedding_init=layers.embedding_init, **types)
        self.patch_embedding = layers.conv(
            in_channels,
            hidden_size,
            (patch_size, patch_size),
            strides=patch_size,
            padding=0,
            use_bias=False,
            **types,
        )
        # Spelt as in the released weights.
        self.pre_layrnorm = layers.layer_norm(hidden_size, **types)
        self.layers = nnx.List(
            [
                EncoderLayer(hidden_size, intermediate_size, heads, activation=activation, **types)
                for _ in range(num_layers)
            ]
        )
        self.post_layernorm = layers.layer_norm(hidden_size, **types)
        self.visual_projection = layers.linear(hidden_size, projection_dim, use_bias=False, **types)

    def __call__(self, pixels: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b e"]:
        """Embeddings of images that are already resized to ``image_size`` and normalised by CLIP's mean and deviation.

        Raises:
          ValueError: images of another size.
        """
        if pixels.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {pixels.shape[1]} x {pixels.shape[2]} pixels; resize them to "
                f"{self.image_size} x {self.image_size}"
            )
        patches = self.patch_embedding(pixels)
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        cls = self.class_embedding[...].astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (patches.shape[0], 1, cls.shape[0])), patches], 1)
        x = self.pre_layrnorm(x + self.position_embedding(jnp.arange(x.shape[1])))
        for layer in self.layers:
            x = layer(x)
        return self.visual_projection(self.post_layernorm(x[:, 0]))
