"""The image encoder of CLIP (arXiv 2103.00020): a vision transformer whose class token is projected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from e3d_jax import settings
from e3d_jax.models import attention, layers

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def quick_gelu(x: Float[jax.Array, "*s"]) -> Float[jax.Array, "*s"]:
    """Approximate GELU by a sigmoid, as the first models of CLIP do."""
    return x * nnx.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": layers.gelu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoderSpec(settings.Settings):
    """Size of an image encoder; the defaults are those of CLIP ViT-L/14."""

    image_size: int = settings.setting("Height and width of the images in pixels.", 224, at_least=1)
    patch_size: int = settings.setting("Height and width of a patch in pixels; divides image_size.", 14, at_least=1)
    in_channels: int = settings.setting("Channels of the images.", 3, at_least=1)
    hidden_size: int = settings.setting("Width of the tokens.", 1024, at_least=1)
    intermediate_size: int = settings.setting("Width inside the feed-forward layers.", 4096, at_least=1)
    num_layers: int = settings.setting("Transformer layers.", 24, at_least=1)
    heads: int = settings.setting("Attention heads.", 16, at_least=1)
    projection_dim: int = settings.setting("Width of the result.", 768, at_least=1)
    activation: str = settings.setting(
        "Activation of the feed-forward layers.", "quick_gelu", choices=tuple(ACTIVATIONS)
    )

    def check(self) -> None:
        """Refuse patches that do not tile the image.

        Raises:
          ValueError: names the settings.
        """
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}; choose a divisor"
            )


def clip_pixels(images: Float[jax.Array, "b h w 3"], size: int) -> Float[jax.Array, "b size size 3"]:
    """Resize and normalize square images in [-1, 1] as CLIP's own preprocessing does (arXiv 2103.00020).

    It resizes images of 8 bits per channel, first their rows, then their columns, and rounds after each pass.
    """
    if images.shape[1] != size:
        batch, height, width, channels = images.shape
        for shape in ((batch, height, width, channels), (batch, height, size, channels), (batch, size, size, channels)):
            images = jax.image.resize(images, shape, "cubic")
            images = jnp.round(255 * jnp.clip(images / 2 + 0.5, 0, 1)) / 127.5 - 1
    return _normalized(images)


def antialiased_clip_pixels(images: Float[jax.Array, "b h w 3"], size: int) -> Float[jax.Array, "b size size 3"]:
    """Resize square images in [-1, 1] as Stable Video Diffusion does (arXiv 2311.15127), and normalize them.

    A Gaussian of deviation (h / size - 1) / 2 against aliasing, then bicubic interpolation with aligned corners.
    """
    if images.shape[1] != size:
        matrix = jnp.asarray(_antialiased_resize(images.shape[1], size), images.dtype)
        images = jnp.einsum("oh,bhwc,pw->bopc", matrix, images, matrix, precision="highest")
    return _normalized(images)


def _normalized(images):
    return (images / 2 + 0.5 - CLIP_MEAN) / CLIP_STD


def _antialiased_resize(source: int, size: int) -> np.ndarray:
    """Return the matrix [size, source] that blurs and resizes one axis."""
    deviation = max((source / size - 1) / 2, 1e-3)
    reach = max(int(max(4 * deviation, 3)) // 2, 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    padded = np.pad(np.eye(source), ((reach, reach), (0, 0)), mode="reflect")
    blur = sum(tap * padded[i : i + source] for i, tap in enumerate(taps / taps.sum()))
    position = np.linspace(0, source - 1, size)
    below = np.floor(position).astype(int)
    resize = np.zeros((size, source))
    for offset in range(-1, 3):
        x = np.abs(position - below - offset)
        # Keys' cubic kernel with a = -3/4.
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        column = np.clip(below + offset, 0, source - 1)
        np.add.at(resize, (np.arange(size), column), np.where(x <= 1, near, far))
    return resize @ blur


class MLP(nnx.Module):
    """Two layers with an activation between them."""

    def __init__(self, width: int, hidden: int, types: layers.Types, *, activation: str):
        self.activation = activation
        self.fc1 = layers.linear(width, hidden, types)
        self.fc2 = layers.linear(hidden, width, types)

    def __call__(self, x: Float[jax.Array, "*lead c"]) -> Float[jax.Array, "*lead c"]:
        """Transform each token on its own."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class EncoderLayer(nnx.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, spec: ImageEncoderSpec, types: layers.Types):
        self.layer_norm1 = layers.layer_norm(spec.hidden_size, types)
        self.self_attn = attention.Attention(spec.hidden_size, spec.heads, types, use_bias=True)
        self.layer_norm2 = layers.layer_norm(spec.hidden_size, types)
        self.mlp = MLP(spec.hidden_size, spec.intermediate_size, types, activation=spec.activation)

    def __call__(self, x: Float[jax.Array, "b n c"]) -> Float[jax.Array, "b n c"]:
        """Transform."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ImageEncoder(nnx.Module):
    """Vision transformer with a projection, as in CLIP."""

    def __init__(self, spec: ImageEncoderSpec, types: layers.Types):
        types = types.of_network()
        self.image_size, self.dtype = spec.image_size, types.dtype
        tokens, width = (spec.image_size // spec.patch_size) ** 2 + 1, spec.hidden_size
        self.class_embedding = nnx.Param(layers.embedding_init(types.rngs.params(), (width,), types.param_dtype))
        self.position_embedding = nnx.Embed(tokens, width, embedding_init=layers.embedding_init, **types.arguments())
        self.patch_embedding = layers.conv(
            spec.in_channels, width, spec.patch_size, types, strides=spec.patch_size, padding=0, use_bias=False
        )
        # Spelled as in the released weights.
        self.pre_layrnorm = layers.layer_norm(width, types)
        self.layers = nnx.List([EncoderLayer(spec, types) for _ in range(spec.num_layers)])
        self.post_layernorm = layers.layer_norm(width, types)
        self.visual_projection = layers.linear(width, spec.projection_dim, types, use_bias=False)

    def __call__(self, pixels: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b e"]:
        """Return the embeddings of images that :func:`clip_pixels` or :func:`antialiased_clip_pixels` prepared.

        Raises:
          ValueError: images of another size.
        """
        if pixels.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {pixels.shape[1]} x {pixels.shape[2]} pixels; resize them to "
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
