"""The anchor network: colors and normals of all anchor views at once (Envision3D, arXiv 2403.08902, section 3.2)."""

import dataclasses
import functools

import jax
from jaxtyping import Float, Int, Num

from e3d_jax.models import attention, blocks, layers, unet


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorUNetSpec(unet.DenoiserSpec):
    """Size of an anchor network; the defaults are the released size."""


class AnchorUNet(unet.UNet):
    """Stable Diffusion 1.x topology with multi-view and cross-domain attention, and separate ends for normals."""

    def __init__(self, spec: AnchorUNetSpec, types: layers.Types):
        types = types.of_network()
        width = spec.block_out_channels[0]
        embed_dim = 4 * width
        super().__init__(
            spec,
            types,
            resnet=functools.partial(blocks.ResBlock, types=types, embed_dim=embed_dim, norm_groups=spec.norm_groups),
            transformer=functools.partial(
                unet.SpatialTransformer,
                types=types,
                context_dim=spec.cross_attention_dim,
                self_axes=attention.MULTI_VIEW,
                domains=True,
                norm_groups=spec.norm_groups,
            ),
        )
        self.width = width
        self.conv_in_normal = layers.conv3x3(spec.in_channels, width, types)
        self.time_embedding = blocks.EmbeddingMLP(width, embed_dim, embed_dim, types)
        self.class_embedding = blocks.EmbeddingMLP(spec.class_embed_dim, embed_dim, embed_dim, types)
        self.conv_out = unet.conv_out(width, spec.out_channels, types)
        self.conv_out_normal = unet.conv_out(width, spec.out_channels, types)

    def __call__(
        self,
        sample: Float[jax.Array, "b d v h w c"],
        timesteps: Num[jax.Array, "*b"],
        context: Float[jax.Array, "b d v n e"],
        labels: Float[jax.Array, "b d v l"],
        num_views: Int[jax.Array, " b"] | None = None,
    ) -> Float[jax.Array, "b d v h w o"]:
        """Predict the noise of every view of both domains.

        Args:
          sample: noisy latents with their condition latents stacked on the channels; domains are (color, normal)
            and the last views are the clean reference views.
          timesteps: diffusion times in [0, 1000), one per object or one for all.
          context: image tokens of each view's domain.
          labels: sines and cosines of each view's camera and domain.
          num_views: how many views of each object exist; the others come last and change nothing. All when not given.

        Raises:
          ValueError: the sample does not have two domains.
        """
        if sample.shape[1] != 2:
            raise ValueError(f"the sample has {sample.shape[1]} domains; expected 2 on its second axis: color, normal")
        time = self.time_embedding(blocks.sinusoids(timesteps, self.width))
        embedding = time[..., None, None, :] + self.class_embedding(labels)
        x = attention.per_domain(self.conv_in, self.conv_in_normal, sample)
        return attention.per_domain(self.conv_out, self.conv_out_normal, self.trunk(x, embedding, context, num_views))
