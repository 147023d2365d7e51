"""The anchor network: colours and normals of all anchor views at once (Envision3D, arXiv 2403.08902, section 3.2)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Num

from e3d_jax.models import attention, blocks, layers, unet


class AnchorUNet(unet.UNet):
    """Stable Diffusion 1.x topology with multi-view and cross-domain attention, and separate ends for normals.

    Args:
      in_channels: channels of the noisy latent and of the condition latent stacked on it.
      out_channels: channels of the prediction.
      block_out_channels: width of each level; each further level halves the resolution.
      attention_levels: whether each level has attention; the middle always has.
      layers_per_block: residual blocks of a descending stage.
      heads: number of attention heads, one for all levels or one per level.
      cross_attention_dim: width of the context tokens.
      class_embed_dim: width of the camera and domain labels.
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
        heads: int | Sequence[int] = 8,
        cross_attention_dim: int = 768,
        class_embed_dim: int = 12,
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
            resnet=functools.partial(blocks.ResBlock, embed_dim=embed_dim, norm_groups=norm_groups, **types),
            transformer=functools.partial(
                unet.SpatialTransformer,
                context_dim=cross_attention_dim,
                self_axes=attention.MULTI_VIEW,
                domains=True,
                norm_groups=norm_groups,
                **types,
            ),
            norm_groups=norm_groups,
            remat=remat,
            **types,
        )
        self.width = width
        self.conv_in_normal = layers.conv3x3(in_channels, width, **types)
        self.time_embedding = blocks.EmbeddingMLP(width, embed_dim, embed_dim, **types)
        self.class_embedding = blocks.EmbeddingMLP(class_embed_dim, embed_dim, embed_dim, **types)
        self.conv_out = unet.conv_out(width, out_channels, **types)
        self.conv_out_normal = unet.conv_out(width, out_channels, **types)

    def __call__(
        self,
        sample: Float[jax.Array, "d b v h w c"],
        timesteps: Num[jax.Array, "*b"],
        context: Float[jax.Array, "d b v n e"],
        labels: Float[jax.Array, "d b v l"],
    ) -> Float[jax.Array, "d b v h w o"]:
        """Predict the noise of every view of both domains.

        Args:
          sample: noisy latents with their condition latents stacked on the channels; domains are (colour, normal)
            and the last view is the clean reference view.
          timesteps: diffusion times in [0, 1000), one per object or one for all.
          context: image tokens of each view's domain.
          labels: sines and cosines of each view's camera and domain.

        Raises:
          ValueError: the leading axis does not hold the two domains.
        """
        if sample.shape[0] != 2:
            raise ValueError(f"the leading axis of the sample is {sample.shape[0]}; give the domains colour and normal")
        time = self.time_embedding(blocks.sinusoids(timesteps, self.width))
        sample, context, labels = (jnp.moveaxis(x, 0, 1) for x in (sample, context, labels))
        embedding = time[..., None, None, :] + self.class_embedding(labels)
        x = attention.per_domain(self.conv_in, self.conv_in_normal, sample)
        x = attention.per_domain(self.conv_out, self.conv_out_normal, self.trunk(x, embedding, context))
        return jnp.moveaxis(x, 1, 0)
