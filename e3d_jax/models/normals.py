"""Normals of an image: a small U-Net trained by regression, with the blocks of the denoisers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from e3d_jax.models import blocks, layers, unet


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalUNetSpec(unet.UNetSpec):
    """Size of a normal estimator; its input is RGBA."""

    in_channels: int = unet.inherited(unet.UNetSpec, "in_channels", 4)
    block_out_channels: tuple[int, ...] = unet.inherited(unet.UNetSpec, "block_out_channels", (32, 64, 96, 128))
    attention_levels: tuple[bool, ...] = unet.inherited(unet.UNetSpec, "attention_levels", (False, False, False, True))
    layers_per_block: int = unet.inherited(unet.UNetSpec, "layers_per_block", 1)
    heads: int | tuple[int, ...] = unet.inherited(unet.UNetSpec, "heads", 4)


class NormalEstimator(unet.UNet):
    """Network from the RGBA image of an object to a map of its surface normals at the same resolution.

    The result is float32 whatever the type of the computation.
    """

    def __init__(self, spec: NormalUNetSpec, types: layers.Types):
        types = types.of_network()
        super().__init__(
            spec,
            types,
            resnet=functools.partial(blocks.ResBlock, types=types, norm_groups=spec.norm_groups),
            transformer=functools.partial(unet.SpatialTransformer, types=types, norm_groups=spec.norm_groups),
        )

        def toward_camera(*_):
            """Start with +x everywhere, straight at the camera of the input view."""
            return jnp.array([1.0, 0.0, 0.0], types.param_dtype)

        self.conv_out = unet.conv_out(spec.block_out_channels[0], 3, types, bias_init=toward_camera)

    def __call__(self, rgba: Float[jax.Array, "b h w 4"]) -> Float[jax.Array, "b h w 3"]:
        """Estimate unit normals of images in [-1, 1].

        Normals are in the world frame, which the input view defines (its camera is at +x). Values outside the object
        have no meaning.
        """
        raw = self.conv_out(self.trunk(self.conv_in(rgba))).astype(jnp.float32)
        # The small constant inside the root keeps the gradient finite at zero.
        return raw * jax.lax.rsqrt((raw * raw).sum(-1, keepdims=True) + 1e-12)
