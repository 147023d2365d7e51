"""The interpolation network: views between anchors as frames of a video (arXiv 2403.08902, section 3.3)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Num

from e3d_jax.models import blocks, layers, unet


class InterpolationUNet(unet.UNet):
    """The spatio-temporal U-Net of Stable Video Diffusion (arXiv 2311.15127) with an embedding of frame cameras.

    Args:
      in_channels: channels of the noisy latent and of the condition latent stacked on it.
      out_channels: channels of the prediction.
      block_out_channels: width of each level; each further level halves the resolution.
      attention_levels: whether each level has attention; the middle always has.
      layers_per_block: residual blocks of a descending stage.
      heads: number of attention heads, one for all levels or one per level.
      cross_attention_dim: width of the context tokens.
      added_time_dim: width of the sinusoids of each of the three numbers of micro-conditioning.
      class_embed_dim: width of the camera labels.
      norm_groups: groups of the norms; divides every width.
      dtype: of the computation.
      param_dtype: of the weights.
      remat: what the backward pass recomputes instead of keeping, see :func:`e3d_jax.models.blocks.apply`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 8,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        attention_levels: Sequence[bool] = (True, True, True, False),
        layers_per_block: int = 2,
        heads: int | Sequence[int] = (5, 10, 20, 20),
        cross_attention_dim: int = 1024,
        added_time_dim: int = 256,
        class_embed_dim: int = 6,
        norm_groups: int = 32,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": layers.ParamKeys(rngs)}
        width = block_out_channels[0]
        embed_dim = 4 * width
        super().__init__(
            in_channels=in_channels,
            block_out_channels=block_out_channels,
            attention=attention_levels,
            heads=heads,
            layers_per_block=layers_per_block,
            resnet=functools.partial(
                blocks.SpatioTemporalResBlock, embed_dim=embed_dim, norm_groups=norm_groups, **types
            ),
            transformer=functools.partial(
                unet.SpatioTemporalTransformer, context_dim=cross_attention_dim, norm_groups=norm_groups, **types
            ),
            norm_groups=norm_groups,
            down_epsilon=1e-6,
            up_epsilon=1e-6,
            remat=remat,
            **types,
        )
        self.width, self.added_time_dim = width, added_time_dim
        self.time_embedding = blocks.EmbeddingMLP(width, embed_dim, embed_dim, **types)
        self.add_embedding = blocks.EmbeddingMLP(3 * added_time_dim, embed_dim, embed_dim, **types)
        self.class_embedding = blocks.EmbeddingMLP(class_embed_dim, embed_dim, embed_dim, **types)
        self.conv_out = unet.conv_out(width, out_channels, **types)

    def __call__(
        self,
        sample: Float[jax.Array, "b t h w c"],
        timesteps: Num[jax.Array, "*b"],
        context: Float[jax.Array, "b n e"],
        added_time_ids: Num[jax.Array, "b 3"],
        labels: Float[jax.Array, "b t l"],
    ) -> Float[jax.Array, "b t h w o"]:
        """Predict the velocity of every frame of each window.

        Args:
          sample: scaled noisy latents with their condition latents stacked on the channels.
          timesteps: noise levels, ln(sigma) / 4, one per window or one for all.
          context: image tokens of each window's first anchor.
          added_time_ids: frames per second, motion bucket and noise augmentation.
          labels: sines and cosines of each frame's camera relative to the first.
        """
        time = self.time_embedding(blocks.sinusoids(timesteps, self.width))
        added = blocks.sinusoids(added_time_ids, self.added_time_dim)
        added = self.add_embedding(added.reshape(added.shape[0], -1))
        embedding = (time.reshape(-1, time.shape[-1]) + added)[:, None] + self.class_embedding(labels)
        # One context for all frames of a window.
        x = self.trunk(self.conv_in(sample), embedding, context[:, None])
        return self.conv_out(x)
