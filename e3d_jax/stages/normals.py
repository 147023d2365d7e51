"""The normal estimator: an image of an object to the map of its surface normals."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from e3d_jax import cameras, images, settings, structs
from e3d_jax.data import records
from e3d_jax.models import dpt, latents, layers, normals
from e3d_jax.stages import base, common

NETWORKS = {"unet": normals.NormalEstimator, "dpt_hybrid": dpt.DPTNormalEstimator}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(base.ModelSettings):
    """The network of the estimator."""

    architecture: str = settings.setting("Which network.", "unet", choices=tuple(NETWORKS))
    unet: normals.NormalUNetSpec = settings.setting("A small U-Net.", normals.NormalUNetSpec())
    dpt_hybrid: dpt.DPTSpec = settings.setting("Omnidata's DPT-hybrid (arXiv 2110.04994).", dpt.DPTSpec())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(settings.Settings):
    """The loss of the estimator."""

    color_jitter: float = settings.setting(
        "Standard deviation of the logarithms of random gain and gamma; half of it for each channel's balance.",
        0.15,
        at_least=0,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Input images, their normal maps in the frame of the record, and their cameras, which define the inputs' frame."""

    image: UInt8[Any, "*b h w 4"]
    normal: UInt8[Any, "*b h w 4"]
    cameras: structs.Cameras


def input_pair(record: records.Record, view: int) -> tuple[np.ndarray, np.ndarray, structs.Cameras]:
    """Return a view and its normal map, uint8 ``[h, w, 4]``, framed as a user's image, and the crop's camera ``[1]``.

    The normals stay in the world frame of the record.
    """
    image, normal = record.image(view), record.image(view, "normal")
    if record.is_framed(view):
        return image, normal, record.cameras[[int(view)]]
    box = images.object_box(image[..., 3] / np.float32(255))
    crop = lambda map: images.to_uint8(images.crop(map / np.float32(255), box, record.size))  # noqa: E731
    left, top, side = box
    corner = np.array([[left, top]], np.float32)
    camera = cameras.cropped(record.cameras[[int(view)]], corner, np.array([side], np.float32), record.size)
    return crop(image), crop(normal), camera


class Images(base.ImageSource):
    """Input images, each with its normal map; any input of the record may be chosen."""

    def check(self, record: records.Record, config: Any) -> None:
        """Refuse records of another size or without normal maps."""
        common.check_images(record, config, "normals")

    def example(self, record: records.Record, rng: np.random.Generator, config: Any) -> Batch:
        """Choose an input image."""
        del config
        return Batch(*input_pair(record, record.inputs[int(rng.integers(len(record.inputs)))]))

    def spec(self, config: Any) -> Batch:
        """Return the shapes of one image with its normal map."""
        image = jax.ShapeDtypeStruct((config.size, config.size, 4), jnp.uint8)
        return Batch(image, image, common.camera_spec(1, config.size))


class Normals(base.Stage):
    """Estimates the normals of the input image, in the world frame that the image defines (its camera at azimuth 0)."""

    name = "normals"
    sources: ClassVar = {"images": Images()}
    model = Model
    loss_settings = Loss

    def build(self, model: Model, types: layers.Types) -> nnx.Module:
        """Make the estimator."""
        return NETWORKS[model.architecture](model.network, types)

    def check(self, config: Any, component: str) -> None:
        """Refuse an estimator that knows level cameras only, where the input's camera is not level."""
        for name, value in (
            ("layout.elevation", config.layout.elevation),
            ("inputs.count", config.system.inputs.count),
        ):
            if config[component].model.architecture == "dpt_hybrid" and value:
                raise ValueError(
                    f"{component}.model.architecture is 'dpt_hybrid', which takes the input's camera to be level, but "
                    f"{name} is {value}; expected 0, or another architecture"
                )

    def loss(
        self, model: Any, frozen: base.Modules, batch: Batch, key: jax.Array, settings: Any, layout: Any
    ) -> tuple[Float[Array, ""], base.Metrics]:
        """Return one minus the cosine inside the silhouette, on images with jittered colors."""
        del frozen, layout
        rgba = jitter_colors(common.unit(batch.image), key, settings.loss.color_jitter)
        azimuth = cameras.azimuth_of(batch.cameras.world_from_cam)[:, 0]
        normal = latents.turn_normals(common.unit(batch.normal), azimuth)
        target, inside = 2 * normal[..., :3] - 1, normal[..., 3] > 0.5
        target = target / jnp.maximum(jnp.linalg.norm(target, axis=-1, keepdims=True), 1e-6)
        cosine = (model(latents.network_image(rgba, 4)) * target).sum(-1)

        def mean(x):
            return (x * inside).sum() / jnp.maximum(inside.sum(), 1)

        angle = jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))
        return mean(1 - cosine), {"angle_deg": jax.lax.stop_gradient(mean(angle))}


def estimate(
    estimator: Any, image: Float[Array, "*b h w 4"], alpha: Float[Array, "*b h w 1"]
) -> Float[Array, "*b h w 4"]:
    """Estimate the encoded normal map of images, each in the frame of its own input, with the silhouette ``alpha``."""
    found = estimator(latents.network_image(image.reshape(-1, *image.shape[-3:]), 4))
    rgb = found.reshape(*image.shape[:-1], 3) / 2 + 0.5
    return jnp.concatenate([jnp.where(alpha > 0, rgb, 1.0), alpha], -1)


def jitter_colors(rgba: Float[Array, "b h w 4"], key: jax.Array, strength: float) -> Float[Array, "b h w 4"]:
    """Apply random gain, gamma and channel balance, so that shape is not read off one renderer's lights."""
    gain, gamma, balance = jax.random.split(key, 3)
    size = len(rgba)
    exponent = jnp.exp(strength * jax.random.normal(gamma, (size, 1, 1, 1)))
    scale = jnp.exp(strength * jax.random.normal(gain, (size, 1, 1, 1)))
    scale = scale * jnp.exp(strength / 2 * jax.random.normal(balance, (size, 1, 1, 3)))
    rgb = jnp.clip(jnp.maximum(rgba[..., :3], 1e-4) ** exponent * scale, 0, 1)
    return jnp.concatenate([rgb, rgba[..., 3:]], -1)
