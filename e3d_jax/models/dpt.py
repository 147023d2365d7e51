"""Normals of an image by DPT-hybrid (arXiv 2103.13413), as Omnidata trained it (arXiv 2110.04994).

A ResNet-50 without its last stage makes patches of 16 pixels and a vision transformer relates them. Four feature maps,
two of the ResNet and two of the transformer, are fused from coarse to fine.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from e3d_jax import settings
from e3d_jax.models import attention, dpt_backbone, image_encoder, layers

PATCH = 16  # pixels: the stem divides by 4, the second and third stages by 2 each
VIT_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPTSpec(settings.Settings):
    """Size of a DPT-hybrid; the defaults are Omnidata's."""

    image_size: int = settings.setting("The image is resized to a square with sides of this many pixels.", 384)
    stem_width: int = settings.setting("Channels of the ResNet's stem.", 64, at_least=1)
    stage_widths: tuple[int, int, int] = settings.setting(
        "Channels of the ResNet's three stages.", (256, 512, 1024), at_least=1
    )
    stage_depths: tuple[int, int, int] = settings.setting("Blocks of the ResNet's stages.", (3, 4, 9), at_least=1)
    hidden_size: int = settings.setting("Width of the transformer's tokens.", 768, at_least=1)
    heads: int = settings.setting("Heads of the transformer's attentions.", 12, at_least=1)
    output_layers: tuple[int, int] = settings.setting(
        "The transformer's two blocks, counted from 0 and increasing, whose tokens are used.", (8, 11), at_least=0
    )
    neck_widths: tuple[int, int] = settings.setting(
        "Channels of the two maps made of these tokens.", (768, 768), at_least=1
    )
    features: int = settings.setting("Channels of the fused maps.", 256, at_least=2)
    norm_groups: int = settings.setting("Groups of the ResNet's norms.", 32, at_least=1)

    def check(self) -> None:
        """Refuse an image size that the network cannot halve, and blocks out of order.

        Raises:
          ValueError: names the setting.
        """
        if self.image_size % (2 * PATCH) or self.image_size < 4 * PATCH:
            raise ValueError(
                f"image_size is {self.image_size} pixels; expected a multiple of {2 * PATCH}, at least {4 * PATCH}"
            )
        if self.output_layers[0] >= self.output_layers[1]:
            raise ValueError(f"output_layers is {self.output_layers}; expected two increasing numbers of blocks")


class PatchEmbed(nnx.Module):
    """Patches as tokens: the last features of a ResNet, projected."""

    def __init__(self, backbone: dpt_backbone.ResNet, inputs: int, width: int, types: layers.Types):
        self.backbone = backbone
        self.proj = layers.conv1x1(inputs, width, types)

    def __call__(self, x: Float[jax.Array, "b h w 3"]) -> tuple[list[jax.Array], Float[jax.Array, "b n c"]]:
        """Return feature maps ``[b h w c]`` of the ResNet, and the tokens."""
        maps = self.backbone(x)
        patches = self.proj(maps[-1])
        return maps, patches.reshape(len(patches), -1, patches.shape[-1])


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int, types: layers.Types):
        self.heads = heads
        self.qkv = layers.linear(width, 3 * width, types)
        self.proj = layers.linear(width, width, types)

    def __call__(self, x: Float[jax.Array, "b n c"]) -> Float[jax.Array, "b n c"]:
        """Attend."""
        query, key, value = jnp.moveaxis(self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        return self.proj(attention.attend(query, key, value).reshape(x.shape))


class Block(nnx.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, types: layers.Types):
        self.norm1 = layers.layer_norm(width, types, epsilon=VIT_EPSILON)
        self.norm2 = layers.layer_norm(width, types, epsilon=VIT_EPSILON)
        self.attn = SelfAttention(width, heads, types)
        self.mlp = image_encoder.MLP(width, 4 * width, types, activation="gelu")

    def __call__(self, x: Float[jax.Array, "b n c"]) -> Float[jax.Array, "b n c"]:
        """Transform."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class HybridViT(nnx.Module):
    """Vision transformer over the patches of a ResNet, up to the last block that is used."""

    def __init__(self, patch_embed: PatchEmbed, spec: DPTSpec, types: layers.Types):
        self.outputs, self.dtype = spec.output_layers, types.dtype
        width, tokens = spec.hidden_size, (spec.image_size // PATCH) ** 2
        draw = functools.partial(layers.embedding_init, dtype=types.param_dtype)
        self.patch_embed = patch_embed
        self.cls_token = nnx.Param(draw(types.rngs.params(), (1, 1, width)))
        self.pos_embed = nnx.Param(draw(types.rngs.params(), (1, tokens + 1, width)))
        self.blocks = nnx.List([Block(width, spec.heads, types) for _ in range(spec.output_layers[-1] + 1)])

    def __call__(self, x: Float[jax.Array, "b h w 3"]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return the ResNet's maps ``[b h w c]`` and the chosen blocks' tokens ``[b n c]``, class token first."""
        maps, patches = self.patch_embed(x)
        cls = jnp.broadcast_to(self.cls_token[...].astype(self.dtype), (len(patches), 1, patches.shape[-1]))
        tokens = jnp.concatenate([cls, patches], 1) + self.pos_embed[...].astype(self.dtype)
        outputs = []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i in self.outputs:
                outputs.append(tokens)
        return maps, outputs


class Reassemble(nnx.Module):
    """Tokens back to a feature map, the class token joined to each of them (DPT's "project" readout).

    Args:
      width: of the tokens.
      outputs: width of the map.
      types: of the layers.
      halve: whether the map has half the resolution of the patches.
    """

    def __init__(self, width: int, outputs: int, types: layers.Types, *, halve: bool):
        self.halve = halve
        self.project = layers.linear(2 * width, width, types)
        self.embed = layers.conv1x1(width, outputs, types)
        if halve:
            self.down = layers.conv3x3(outputs, outputs, types, strides=2)

    def __call__(self, tokens: Float[jax.Array, "b n c"]) -> Float[jax.Array, "b h w o"]:
        """Transform; the map is square."""
        cls, patches = tokens[:, :1], tokens[:, 1:]
        joined = jnp.concatenate([patches, jnp.broadcast_to(cls, patches.shape)], -1)
        side = round(patches.shape[1] ** 0.5)
        y = layers.gelu(self.project(joined)).reshape(len(tokens), side, side, -1)
        y = self.embed(y)
        return self.down(y) if self.halve else y


class ResidualUnit(nnx.Module):
    """Twice ReLU and convolution, added to the input."""

    def __init__(self, width: int, types: layers.Types):
        self.conv1, self.conv2 = layers.conv3x3(width, width, types), layers.conv3x3(width, width, types)

    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b h w c"]:
        """Transform."""
        return x + self.conv2(nnx.relu(self.conv1(nnx.relu(x))))


class FusionBlock(nnx.Module):
    """Sum of the coarser result so far and, with ``skip``, a finer map, at twice the resolution."""

    def __init__(self, width: int, types: layers.Types, *, skip: bool):
        if skip:
            self.unit1 = ResidualUnit(width, types)
        self.unit2 = ResidualUnit(width, types)
        self.out_conv = layers.conv1x1(width, width, types)

    def __call__(
        self, x: Float[jax.Array, "b h w c"], finer: Float[jax.Array, "b h w c"] | None = None
    ) -> Float[jax.Array, "b h2 w2 c"]:
        """Fuse."""
        if finer is not None:
            x = x + self.unit1(finer)
        return self.out_conv(double(self.unit2(x)))


def double(x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b h2 w2 c"]:
    """Double the resolution linearly; the centers of corner pixels stay in the corners."""
    source = np.array(x.shape[1:3])
    scale = (2 * source - 1) / (source - 1)
    shape = (x.shape[0], *(2 * source).tolist(), x.shape[3])
    # Pixel centers are at half pixels; the translation compensates the scale, so that those of corners stay.
    return jax.image.scale_and_translate(
        x,
        shape,
        (1, 2),
        jnp.asarray(scale, jnp.float32),
        jnp.asarray((1 - scale) / 2, jnp.float32),
        method="linear",
        antialias=False,
    )


class DPTNormalEstimator(nnx.Module):
    """Network from the RGBA image of an object to a map of its surface normals at the same resolution, float32."""

    def __init__(self, spec: DPTSpec, types: layers.Types):
        types = types.of_network()
        self.image_size, features = spec.image_size, spec.features
        backbone = dpt_backbone.ResNet(
            spec.stage_widths, spec.stage_depths, types, stem_width=spec.stem_width, norm_groups=spec.norm_groups
        )
        embed = PatchEmbed(backbone, spec.stage_widths[-1], spec.hidden_size, types)
        self.vit = HybridViT(embed, spec, types)
        self.reassemble = nnx.List(
            [Reassemble(spec.hidden_size, width, types, halve=i == 1) for i, width in enumerate(spec.neck_widths)]
        )
        widths = (*spec.stage_widths[:2], *spec.neck_widths)
        self.layer_rn = nnx.List([layers.conv3x3(width, features, types, use_bias=False) for width in widths])
        self.refinenet = nnx.List([FusionBlock(features, types, skip=i < 3) for i in range(4)])
        self.head_in = layers.conv3x3(features, features // 2, types)
        self.head_mid = layers.conv3x3(features // 2, 32, types)

        def toward_camera(*_):
            """Start with normals that face the camera, little of which is clipped."""
            return jnp.array([0.5, 0.5, 0.25], types.param_dtype)

        self.head_out = layers.conv1x1(32, 3, types, bias_init=toward_camera, kernel_init=layers.embedding_init)

    def encoded(self, rgb: Float[jax.Array, "b s s 3"]) -> Float[jax.Array, "b s s 3"]:
        """Estimate what the network was trained for: (n + 1) / 2, clipped, of normals n in the camera's OpenCV axes.

        Args:
          rgb: square images in [0, 1] with sides of ``image_size`` pixels.

        Returns:
          Encoded normals in [0, 1], float32 whatever the type of the computation.
        """
        maps, tokens = self.vit(rgb)
        pyramid = [*maps[:2], *(layer(each) for layer, each in zip(self.reassemble, tokens, strict=True))]
        pyramid = [layer(each) for layer, each in zip(self.layer_rn, pyramid, strict=True)]
        x = self.refinenet[3](pyramid[3])
        for i in (2, 1, 0):
            x = self.refinenet[i](x, pyramid[i])
        x = self.head_out(nnx.relu(self.head_mid(double(self.head_in(x)))))
        return jnp.clip(x.astype(jnp.float32), 0, 1)

    def __call__(self, rgba: Float[jax.Array, "b h w 4"]) -> Float[jax.Array, "b h w 3"]:
        """Estimate unit normals of images in [-1, 1].

        Normals are in the world frame, which the input view defines (its camera is at +x). Values outside the object
        have no meaning. Downscaling is antialiased, unlike in the release.
        """
        batch, height, width, _ = rgba.shape
        square = (batch, self.image_size, self.image_size, 3)
        encoded = self.encoded(jax.image.resize(rgba[..., :3] / 2 + 0.5, square, "linear"))
        x, y, z = jnp.moveaxis(2 * jax.image.resize(encoded, (batch, height, width, 3), "cubic") - 1, -1, 0)
        # The input view's camera looks along -x of the world, with +y to its right and -z down.
        raw = jnp.stack([-z, x, -y], -1)
        return raw * jax.lax.rsqrt((raw * raw).sum(-1, keepdims=True) + 1e-12)
