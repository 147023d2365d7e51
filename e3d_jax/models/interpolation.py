"""The interpolation network: views between anchors as frames of a video (arXiv 2403.08902, section 3.3)."""

import dataclasses
import functools

import jax
from flax import nnx
from jaxtyping import Float, Num

from e3d_jax import settings
from e3d_jax.models import blocks, layers, unet


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterpolationUNetSpec(unet.DenoiserSpec):
    """Size of an interpolation network; the defaults are the released size."""

    heads: int | tuple[int, ...] = unet.inherited(unet.DenoiserSpec, "heads", (5, 10, 20, 20))
    cross_attention_dim: int = unet.inherited(unet.DenoiserSpec, "cross_attention_dim", 1024)
    class_embed_dim: int = unet.inherited(unet.DenoiserSpec, "class_embed_dim", 6)
    added_time_dim: int = settings.setting(
        "Width of the sinusoids of each of the three numbers of micro-conditioning.", 256, at_least=2
    )


class InterpolationUNet(unet.UNet):
    """The spatio-temporal U-Net of Stable Video Diffusion (arXiv 2311.15127) with an embedding of frame cameras."""

    def __init__(self, spec: InterpolationUNetSpec, types: layers.Types):
        types = types.of_network()
        width = spec.block_out_channels[0]
        embed_dim = 4 * width
        super().__init__(
            spec,
            types,
            resnet=functools.partial(
                blocks.SpatioTemporalResBlock, types=types, embed_dim=embed_dim, norm_groups=spec.norm_groups
            ),
            transformer=functools.partial(
                unet.SpatioTemporalTransformer,
                types=types,
                context_dim=spec.cross_attention_dim,
                norm_groups=spec.norm_groups,
            ),
            down_epsilon=1e-6,
            up_epsilon=1e-6,
        )
        self.width, self.added_time_dim = width, spec.added_time_dim
        self.time_embedding = blocks.EmbeddingMLP(width, embed_dim, embed_dim, types)
        self.add_embedding = blocks.EmbeddingMLP(3 * spec.added_time_dim, embed_dim, embed_dim, types)
        self.class_embedding = blocks.EmbeddingMLP(spec.class_embed_dim, embed_dim, embed_dim, types)
        self.conv_out = unet.conv_out(width, spec.out_channels, types)

    def order_contexts(self, order: unet.ContextOrder | None) -> None:
        """Choose which context each image position gets in the blocks along frames.

        Args:
          order: from the contexts of windows ``[b 1 m e]`` and the number of positions to the contexts of positions
            ``[b n m e]``; None gives every position the context of its window.
        """
        for _, part in nnx.iter_modules(self):
            if isinstance(part, unet.SpatioTemporalTransformer):
                part.context_order = order

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
          added_time_ids: frames per second, motion bucket and noise augmentation level.
          labels: sines and cosines of each frame's camera relative to the first.
        """
        time = self.time_embedding(blocks.sinusoids(timesteps, self.width))
        added = blocks.sinusoids(added_time_ids, self.added_time_dim)
        added = self.add_embedding(added.reshape(added.shape[0], -1))
        embedding = (time.reshape(-1, time.shape[-1]) + added)[:, None] + self.class_embedding(labels)
        # One context for all frames of a window.
        x = self.trunk(self.conv_in(sample), embedding, context[:, None])
        return self.conv_out(x)
