"""The components of a system, from the plain arguments that a config holds."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import jax.numpy as jnp
from flax import nnx

from e3d_jax import settings
from e3d_jax.models import anchor, autoencoder, dpt, image_encoder, interpolation, layers, normals, stages

Component = Literal["autoencoder", "normals", "anchor", "interpolation", "interpolation_autoencoder"]
COMPONENTS: tuple[Component, ...] = ("autoencoder", "normals", "anchor", "interpolation")
# What the ``architecture`` of the normals' model may be; the first is the default.
ESTIMATORS: dict[str, tuple[type[Any], type[settings.Settings]]] = {
    "unet": (normals.NormalEstimator, normals.NormalUNetSpec),
    "dpt_hybrid": (dpt.DPTNormalEstimator, dpt.DPTSpec),
}


def components_of(config: Mapping[str, Any]) -> tuple[Component, ...]:
    """The components of a system's config: the four, and the interpolation stage's own autoencoder if it has one."""
    own: tuple[Component, ...] = ("interpolation_autoencoder",) if "interpolation_autoencoder" in config else ()
    return COMPONENTS + own


def provider(config: Mapping[str, Any], stage: str, role: Component) -> Component:
    """The component that plays a role for a stage: the stage's own where the config has one, else the shared one."""
    own = f"{stage}_{role}"
    return cast(Component, own) if own in config else role


def latent_size(config: Mapping[str, Any], stage: str) -> int:
    """Width and height of a stage's latents."""
    autoencoder = config[provider(config, stage, "autoencoder")]["model"]
    return config["size"] // 2 ** (len(autoencoder["block_out_channels"]) - 1)


def build(
    component: Component, arguments: Mapping[str, Any], *, dtype=jnp.float32, param_dtype=jnp.float32, rngs: nnx.Rngs
) -> nnx.Module:
    """A component with fresh parameters.

    Args:
      component: which one.
      arguments: of its constructor; the diffusion stages have one set for ``unet`` and one for ``image_encoder``,
        the anchors may leave out the ``injection``, the normals may name their ``architecture``.
      dtype: of the computation.
      param_dtype: of the parameters.
      rngs: for the initial values.

    Raises:
      ValueError: an unknown architecture, or arguments that the component refuses.
    """
    types, path = layers.Types(dtype=dtype, param_dtype=param_dtype, rngs=rngs), f"{component}.model"
    if component in ("autoencoder", "interpolation_autoencoder"):
        return autoencoder.Autoencoder(settings.parse(autoencoder.AutoencoderSpec, arguments, path), types)
    if component == "normals":
        architecture = arguments.get("architecture", "unet")
        if architecture not in ESTIMATORS:
            raise ValueError(f"normals are estimated by {architecture!r}; choose one of {', '.join(ESTIMATORS)}")
        network, spec = ESTIMATORS[architecture]
        others = {name: value for name, value in arguments.items() if name != "architecture"}
        return network(settings.parse(spec, others, path), types)
    parts = (arguments["image_encoder"], f"{path}.image_encoder"), (arguments["unet"], f"{path}.unet")
    encoder = image_encoder.ImageEncoder(settings.parse(image_encoder.ImageEncoderSpec, *parts[0]), types)
    if component == "anchor":
        unet = anchor.AnchorUNet(settings.parse(anchor.AnchorUNetSpec, *parts[1]), types)
        return stages.AnchorStage(unet, encoder, arguments.get("injection", True))
    frames = interpolation.InterpolationUNet(settings.parse(interpolation.InterpolationUNetSpec, *parts[1]), types)
    return stages.InterpolationStage(frames, encoder)
