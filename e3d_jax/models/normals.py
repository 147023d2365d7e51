"""Normals of a picture: a small U-Net trained by regression, with the blocks of the denoisers."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from e3d_jax.models import blocks, layers, unet


class NormalEstimator(unet.UNet):
    """RGBA picture of an object to a map of its surface normals at the same resolution.

    Args:
      in_channels: channels of the picture, 4 for RGBA.
      block_out_channels: width of each level, from full resolution down; each further level halves the resolution.
      attention_levels: whether each level has spatial attention; the middle always has.
      layers_per_block: residual blocks of a descending stage.
      heads: number of attention heads, one for all levels or one per level.
      norm_groups: groups of the norms; divides every width.
      dtype: of the computation; the result is float32.
      param_dtype: of the weights.
      remat: what the backward pass recomputes instead of keeping, see :func:`e3d_jax.models.blocks.apply`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 4,
        block_out_channels: Sequence[int] = (32, 64, 96, 128),
        attention_levels: Sequence[bool] = (False, False, False, True),
        layers_per_block: int = 1,
        heads: int | Sequence[int] = 4,
        norm_groups: int = 32,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": layers.ParamKeys(rngs)}
        super().__init__(
            in_channels=in_channels,
            block_out_channels=block_out_channels,
            attention=attention_levels,
            heads=heads,
            layers_per_block=layers_per_block,
            resnet=functools.partial(blocks.ResBlock, norm_groups=norm_groups, **types),
            transformer=functools.partial(unet.SpatialTransformer, norm_groups=norm_groups, **types),
            norm_groups=norm_groups,
            remat=remat,
            **types,
        )
        # The untrained answer is +x, straight at the camera of the input view.
        self.conv_out = unet.conv_out(
            block_out_channels[0], 3, bias_init=lambda *_: jnp.array([1.0, 0.0, 0.0], param_dtype), **types
        )

    def __call__(self, rgba: Float[jax.Array, "b h w 4"]) -> Float[jax.Array, "b h w 3"]:
        """Unit normals of pictures in [-1, 1], in the world frame, which the input view defines (its camera at +x).

        Values outside the object have no meaning.
        """
        raw = self.conv_out(self.trunk(self.conv_in(rgba))).astype(jnp.float32)
        # The small constant inside the root keeps the gradient finite at zero.
        return raw * jax.lax.rsqrt((raw * raw).sum(-1, keepdims=True) + 1e-12)
