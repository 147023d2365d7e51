"""Normals of a picture by DPT-hybrid (arXiv 2103.13413), as Omnidata trained it (arXiv 2110.04994).

A ResNet-50 without its last stage makes patches of 16 pixels, a vision transformer relates them, and four maps, two of
either, are fused from coarse to fine.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from e3d_jax.models import attention, dpt_backbone, image_encoder, layers

PATCH = 16  # pixels: the stem divides by 4, the second and third stage by 2 each
vit_norm = functools.partial(layers.layer_norm, epsilon=1e-6)


class PatchEmbed(nnx.Module):
    """Patches as tokens: the last features of a ResNet, projected."""

    def __init__(self, backbone: dpt_backbone.ResNet, inputs: int, width: int, **types: Any):
        self.backbone = backbone
        self.proj = layers.conv1x1(inputs, width, **types)

    def __call__(self, x: Float[jax.Array, "b h w 3"]) -> tuple[list[jax.Array], Float[jax.Array, "b n c"]]:
        """Feature maps ``[b h w c]`` of the ResNet, and the tokens."""
        maps = self.backbone(x)
        patches = self.proj(maps[-1])
        return maps, patches.reshape(len(patches), -1, patches.shape[-1])


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int, **types: Any):
        self.heads = heads
        self.qkv = layers.linear(width, 3 * width, **types)
        self.proj = layers.linear(width, width, **types)

    def __call__(self, x: Float[jax.Array, "b n c"]) -> Float[jax.Array, "b n c"]:
        """Attend."""
        query, key, value = jnp.moveaxis(self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        return self.proj(attention.attend(query, key, value).reshape(x.shape))


class Block(nnx.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, **types: Any):
        self.norm1, self.norm2 = vit_norm(width, **types), vit_norm(width, **types)
        self.attn = SelfAttention(width, heads, **types)
        self.mlp = image_encoder.MLP(width, 4 * width, activation="gelu", **types)

    def __call__(self, x: Float[jax.Array, "b n c"]) -> Float[jax.Array, "b n c"]:
        """Transform."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class HybridViT(nnx.Module):
    """A vision transformer over the patches of a ResNet, up to the last block that is used.

    Args:
      patch_embed: what makes the patches.
      tokens: number of patches.
      width: of the tokens.
      heads: of the attentions.
      outputs: blocks, counted from 0 and increasing, whose tokens are returned.
    """

    def __init__(
        self, patch_embed: PatchEmbed, tokens: int, width: int, heads: int, outputs: Sequence[int], **types: Any
    ):
        self.outputs, self.dtype = tuple(outputs), types["dtype"]
        draw = functools.partial(layers.embedding_init, dtype=types["param_dtype"])
        self.patch_embed = patch_embed
        self.cls_token = nnx.Param(draw(types["rngs"].params(), (1, 1, width)))
        self.pos_embed = nnx.Param(draw(types["rngs"].params(), (1, tokens + 1, width)))
        self.blocks = nnx.List([Block(width, heads, **types) for _ in range(outputs[-1] + 1)])

    def __call__(self, x: Float[jax.Array, "b h w 3"]) -> tuple[list[jax.Array], list[jax.Array]]:
        """Feature maps ``[b h w c]`` of the ResNet; tokens ``[b n c]`` of the chosen blocks, the class token first."""
        maps, patches = self.patch_embed(x)
        cls = jnp.broadcast_to(self.cls_token[...].astype(self.dtype), (len(patches), 1, patches.shape[-1]))
        tokens = jnp.concatenate([cls, patches], 1) + self.pos_embed[...].astype(self.dtype)
        found = []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i in self.outputs:
                found.append(tokens)
        return maps, found


class Reassemble(nnx.Module):
    """Tokens back to a feature map, the class token joined to each of them (DPT's "project" readout).

    Args:
      width: of the tokens.
      outputs: width of the map.
      halve: whether the map has half the resolution of the patches.
    """

    def __init__(self, width: int, outputs: int, *, halve: bool, **types: Any):
        self.halve = halve
        self.project = layers.linear(2 * width, width, **types)
        self.embed = layers.conv1x1(width, outputs, **types)
        if halve:
            self.down = layers.conv3x3(outputs, outputs, strides=2, **types)

    def __call__(self, tokens: Float[jax.Array, "b n c"]) -> Float[jax.Array, "b h w o"]:
        """Transform; the map is square."""
        cls, patches = tokens[:, :1], tokens[:, 1:]
        joined = jnp.concatenate([patches, jnp.broadcast_to(cls, patches.shape)], -1)
        side = round(patches.shape[1] ** 0.5)
        y = layers.gelu(self.project(joined)).reshape(len(tokens), side, side, -1)
        y = self.embed(y)
        return self.down(y) if self.halve else y


class ResidualUnit(nnx.Module):
    """Twice ReLU and convolution, beside the identity."""

    def __init__(self, width: int, **types: Any):
        self.conv1, self.conv2 = layers.conv3x3(width, width, **types), layers.conv3x3(width, width, **types)

    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b h w c"]:
        """Transform."""
        return x + self.conv2(nnx.relu(self.conv1(nnx.relu(x))))


class FusionBlock(nnx.Module):
    """Adds a finer map to the coarser result so far and doubles the resolution; ``skip``: there is a finer map."""

    def __init__(self, width: int, *, skip: bool, **types: Any):
        if skip:
            self.unit1 = ResidualUnit(width, **types)
        self.unit2 = ResidualUnit(width, **types)
        self.out_conv = layers.conv1x1(width, width, **types)

    def __call__(
        self, x: Float[jax.Array, "b h w c"], finer: Float[jax.Array, "b h w c"] | None = None
    ) -> Float[jax.Array, "b h2 w2 c"]:
        """Fuse."""
        if finer is not None:
            x = x + self.unit1(finer)
        return self.out_conv(double(self.unit2(x)))


def double(x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b h2 w2 c"]:
    """Twice the resolution, linear, the centres of corner pixels staying in the corners."""
    source = np.array(x.shape[1:3])
    scale = (2 * source - 1) / (source - 1)
    shape = (x.shape[0], *(2 * source).tolist(), x.shape[3])
    # Positions are pixel centres, at half pixels; corner centres stay where translation makes up for the scale.
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
    """RGBA picture of an object to a map of its surface normals at the same resolution; the defaults are Omnidata's.

    Args:
      image_size: the picture is resized to this many pixels a side.
      stem_width: channels of the ResNet's stem.
      stage_widths: channels of the ResNet's three stages.
      stage_depths: their blocks.
      hidden_size: width of the transformer's tokens.
      heads: of its attentions.
      output_layers: its two blocks, counted from 0, whose tokens are used.
      neck_widths: channels of the two maps made of these.
      features: channels of the fused maps.
      norm_groups: of the ResNet's norms.
      dtype: of the computation; the result is float32.
      param_dtype: of the weights.

    Raises:
      ValueError: ``image_size`` is no multiple of 32, or below 64.
    """

    def __init__(
        self,
        *,
        image_size: int = 384,
        stem_width: int = 64,
        stage_widths: Sequence[int] = (256, 512, 1024),
        stage_depths: Sequence[int] = (3, 4, 9),
        hidden_size: int = 768,
        heads: int = 12,
        output_layers: Sequence[int] = (8, 11),
        neck_widths: Sequence[int] = (768, 768),
        features: int = 256,
        norm_groups: int = 32,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if image_size % (2 * PATCH) or image_size < 4 * PATCH:
            raise ValueError(f"image_size is {image_size} pixels; choose a multiple of {2 * PATCH} from {4 * PATCH} on")
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": layers.ParamKeys(rngs)}
        self.image_size = image_size
        backbone = dpt_backbone.ResNet(
            stage_widths, stage_depths, stem_width=stem_width, norm_groups=norm_groups, **types
        )
        embed = PatchEmbed(backbone, stage_widths[-1], hidden_size, **types)
        self.vit = HybridViT(embed, (image_size // PATCH) ** 2, hidden_size, heads, output_layers, **types)
        self.reassemble = nnx.List(
            [Reassemble(hidden_size, width, halve=i == 1, **types) for i, width in enumerate(neck_widths)]
        )
        widths = (*stage_widths[:2], *neck_widths)
        self.layer_rn = nnx.List([layers.conv3x3(width, features, use_bias=False, **types) for width in widths])
        self.refinenet = nnx.List([FusionBlock(features, skip=i < 3, **types) for i in range(4)])
        self.head_in = layers.conv3x3(features, features // 2, **types)
        self.head_mid = layers.conv3x3(features // 2, 32, **types)
        # The untrained answer is towards the camera, and little of it is cut off.
        self.head_out = layers.conv1x1(
            32,
            3,
            bias_init=lambda *_: jnp.array([0.5, 0.5, 0.25], param_dtype),
            kernel_init=layers.embedding_init,
            **types,
        )

    def encoded(self, rgb: Float[jax.Array, "b s s 3"]) -> Float[jax.Array, "b s s 3"]:
        """What the network was trained for: (n + 1) / 2 of normals in the camera's OpenCV axes, cut to [0, 1], float32.

        Args:
          rgb: pictures of ``image_size`` pixels a side in [0, 1].
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
        """Unit normals of pictures in [-1, 1], in the world frame, which the input view defines (its camera at +x).

        Values outside the object have no meaning. Shrinking is antialiased, unlike in the release.
        """
        batch, height, width, _ = rgba.shape
        square = (batch, self.image_size, self.image_size, 3)
        encoded = self.encoded(jax.image.resize(rgba[..., :3] / 2 + 0.5, square, "linear"))
        x, y, z = jnp.moveaxis(2 * jax.image.resize(encoded, (batch, height, width, 3), "cubic") - 1, -1, 0)
        # The input view's camera looks along -x of the world, with +y to its right and -z downwards.
        raw = jnp.stack([-z, x, -y], -1)
        return raw * jax.lax.rsqrt((raw * raw).sum(-1, keepdims=True) + 1e-12)
