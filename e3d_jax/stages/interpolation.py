"""Stage 2: from the anchors to the views between them, as windows of video (arXiv 2403.08902, 2311.15127)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from e3d_jax import cameras, images, settings
from e3d_jax.data import latents as latent_records
from e3d_jax.data import records
from e3d_jax.diffusion import denoiser, samplers, schedules
from e3d_jax.models import denoisers, interpolation, latents, layers
from e3d_jax.models import image_encoder as encoders
from e3d_jax.stages import base, caching, common, conditions

NETWORKS = {"unet": interpolation.InterpolationUNet}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(base.ModelSettings):
    """The networks of the stage."""

    architecture: str = settings.setting("Which denoising network.", "unet", choices=tuple(NETWORKS))
    unet: interpolation.InterpolationUNetSpec = settings.setting(
        "Spatio-temporal U-Net.", interpolation.InterpolationUNetSpec()
    )
    image_encoder: encoders.ImageEncoderSpec = settings.setting("Makes the image token.", encoders.ImageEncoderSpec())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(settings.Settings):
    """The loss of the stage."""

    log_noise_mean: float = settings.setting("Mean of the log-normal noise level.", 0.7)
    log_noise_std: float = settings.setting("Standard deviation of its logarithm.", 1.6, above=0)
    log_augmentation_mean: float = settings.setting(
        "Mean of the logarithm of the standard deviation of the noise in the anchors.", -3.0
    )
    cond_dropout: float = settings.setting("Fraction of windows whose anchors are hidden.", 0.0, at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(settings.Settings):
    """How views are sampled."""

    sampler: str = settings.setting("Sampler; euler as released.", "euler", choices=tuple(samplers.ORDERS))
    num_steps: int = settings.setting("Calls of the network.", 50, at_least=1, at_most=schedules.NUM_TRAIN_STEPS - 1)
    noise_max: float = settings.setting("Where the Karras noise levels start.", 700.0, at_least=0.01)
    anchor_noise: float = settings.setting(
        "Standard deviation of the noise added to the anchors, more where they are less reliable.", 0.0, at_least=0
    )
    noise_aug_level: float | None = settings.setting(
        "The level that the network is given; anchor_noise if None. The release gives 0.02 and adds no noise.",
        None,
        at_least=0,
    )

    guidance: float = common.guidance_setting()

    @property
    def given_noise(self) -> float:
        """The noise level that the network is given."""
        return self.anchor_noise if self.noise_aug_level is None else self.noise_aug_level


# ------------------------------------------------------------------------------------------------------------ batches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Images of windows, one of each of several objects, and ``world_from_cam`` of their cameras."""

    frames: UInt8[Any, "*b t h w 4"]
    poses: Float[Any, "*b t 4 4"]

    def prepare(
        self, model: Any, frozen: base.Modules, key: jax.Array, log_noise: Any, layout: cameras.ViewLayout
    ) -> tuple[Float[Array, "b t hl wl c"], denoisers.WindowCondition]:
        """Return the scaled latents of windows, and the condition from their own anchors with noise.

        Args:
          model: the stage's module.
          frozen: ``autoencoder``.
          key: of the noise.
          log_noise: mean logarithm of its standard deviation.
          layout: which frames are anchors.
        """
        autoencoder = frozen["autoencoder"]
        key_strength, key_augment = jax.random.split(key)
        frames = latents.network_image(common.unit(self.frames), autoencoder.in_channels)
        strength = jnp.exp(log_noise + 0.5 * jax.random.normal(key_strength, (len(frames),)))
        anchors = frames[:, layout.window_anchors]
        noisy = anchors + denoiser.expand(strength, anchors) * jax.random.normal(key_augment, anchors.shape)
        clean = latents.encode(autoencoder, frames) * autoencoder.scaling_factor
        encoded = latents.encode(autoencoder, noisy)
        labels = conditions.frame_labels(self.poses)
        return clean, conditions.window_condition(model, anchors[:, 0, ..., :3], encoded, strength, labels, layout)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentBatch:
    """Cached latents of windows, float16, and their cameras; see :class:`Latents`."""

    frames: Float[Any, "*b t h w c"]
    anchors: Float[Any, "*b 3 h w c"]
    token: Float[Any, "*b e"]
    strength: Float[Any, "*b"]
    poses: Float[Any, "*b t 4 4"]

    def prepare(
        self, model: Any, frozen: base.Modules, key: jax.Array, log_noise: Any, layout: cameras.ViewLayout
    ) -> tuple[Float[Array, "b t hl wl c"], denoisers.WindowCondition]:
        """Do what :meth:`Batch.prepare` does; the noise was drawn when the latents were cached."""
        del model, frozen, key, log_noise
        frames, anchors, token = (x.astype(jnp.float32) for x in (self.frames, self.anchors, self.token))
        condition = denoisers.WindowCondition(
            anchors[:, layout.frame_anchor], token[:, None], self.strength, conditions.frame_labels(self.poses)
        )
        return frames, condition


class Images(base.ImageSource):
    """Windows that start at a random anchor."""

    def check(self, record: records.Record, config: Any) -> None:
        """Refuse records of another size, or without the views between the anchors."""
        common.check_size(record, config)
        if len(record.ring) != config.layout.num_views:
            raise ValueError(
                f"holds {len(record.ring) or len(record.anchors)} views per object, but the interpolation learns from "
                f"{config.layout.num_views}; draw them with --views={config.layout.num_views}"
            )

    def example(self, record: records.Record, rng: np.random.Generator, config: Any) -> Batch:
        """Choose a window."""
        frames = np.asarray(record.ring)[config.layout.window(int(rng.integers(config.layout.num_anchors)))]
        poses = np.asarray(record.cameras.world_from_cam)[frames]
        return Batch(np.stack([record.image(view) for view in frames]), poses)

    def spec(self, config: Any) -> Batch:
        """Return the shapes of a window."""
        frames = config.layout.window_frames
        pixels = jax.ShapeDtypeStruct((frames, config.size, config.size, 4), jnp.uint8)
        return Batch(pixels, jax.ShapeDtypeStruct((frames, 4, 4), jnp.float32))


class Latents(caching.CachedSource):
    """Cached latents of an object, whose windows start at each of its a anchors.

    Arrays: ``views`` [v, h, w, c], scaled latents of the ring; ``poses`` [v, 4, 4], ``world_from_cam`` of the ring;
    ``anchors`` [a, 3, h, w, c], latents of each window's anchors with noise, not scaled; ``tokens`` [a, e], image token
    of the first of them without that noise; ``strength`` [a], standard deviation of that noise.
    """

    stage = "interpolation"

    def check(self, record: latent_records.Latents, config: Any) -> None:
        """Refuse latents of another size or layout."""
        common.check_latents(record.arrays["views"], config, "interpolation")
        common.check_anchors(len(record.arrays["anchors"]), config)

    def example(self, record: latent_records.Latents, rng: np.random.Generator, config: Any) -> LatentBatch:
        """Choose a window."""
        first = int(rng.integers(config.layout.num_anchors))
        frames, arrays = config.layout.window(first), record.arrays
        anchors, token, strength = (arrays[name][first] for name in ("anchors", "tokens", "strength"))
        return LatentBatch(arrays["views"][frames], anchors, token, strength, arrays["poses"][frames])

    def spec(self, config: Any) -> LatentBatch:
        """Return the shapes of a window."""
        side, channels = config.latent_size("interpolation"), config.autoencoder("interpolation").latent_channels
        frames, latent = config.layout.window_frames, (side, side, channels)
        token = (config["interpolation"].model.image_encoder.projection_dim,)
        return LatentBatch(
            frames=jax.ShapeDtypeStruct((frames, *latent), jnp.float16),
            anchors=jax.ShapeDtypeStruct((3, *latent), jnp.float16),
            token=jax.ShapeDtypeStruct(token, jnp.float16),
            strength=jax.ShapeDtypeStruct((), jnp.float32),
            poses=jax.ShapeDtypeStruct((frames, 4, 4), jnp.float32),
        )

    def read(self, record: records.Record, config: Any) -> dict[str, np.ndarray]:
        """Decode the ring of an object; the work of the host."""
        del config
        poses = np.asarray(record.cameras.world_from_cam)[np.asarray(record.ring)]
        return {"views": np.stack([record.image(view) for view in record.ring]), "poses": poses}

    def compute(self, model: Any, frozen: base.Modules, arrays: Any, key: jax.Array, config: Any) -> dict[str, Array]:
        """Compute what is cached of an object from :meth:`read`."""
        layout, log_noise = config.layout, config["interpolation"].loss.log_augmentation_mean

        def from_anchor(inputs):
            frames, key = inputs
            batch = Batch(arrays["views"][frames][None], arrays["poses"][frames][None])
            _, known = batch.prepare(model, frozen, key, log_noise, layout)
            return known.latents[0, layout.window_anchors], known.token[0, 0], known.noise[0]

        frames = np.stack([layout.window(anchor) for anchor in range(layout.num_anchors)])
        anchors, tokens, strength = jax.lax.map(from_anchor, (frames, jax.random.split(key, len(frames))))
        encode = caching.in_turns(functools.partial(common.encode_scaled, frozen["autoencoder"]))
        views = encode(common.unit(arrays["views"]))
        return {"views": views, "poses": arrays["poses"], "anchors": anchors, "tokens": tokens, "strength": strength}


# --------------------------------------------------------------------------------------------------------------- loss


class Interpolation(base.Stage):
    """A video diffusion model of the views from one anchor to the next but one."""

    name = "interpolation"
    needs = ("autoencoder",)
    sources: ClassVar = {"images": Images(), "latents": Latents()}
    model = Model
    loss_settings = Loss
    sampling = Sampling

    def build(self, model: Model, types: layers.Types) -> nnx.Module:
        """Make the denoiser with its image encoder."""
        encoder = encoders.ImageEncoder(model.image_encoder, types)
        network = NETWORKS[model.architecture](model.network, types)
        return denoisers.InterpolationDenoiser(model.architecture, network, encoder)

    def check(self, config: Any, component: str) -> None:
        """Refuse networks that do not fit others, guidance that was not trained, and layouts without windows."""
        common.check_denoiser(config, component)
        common.check_guidance(config, component)
        config.layout.windows  # noqa: B018 - raises for an odd number of anchors.

    def check_source(self, kind: str, settings: Any) -> None:
        """Refuse settings that cached latents cannot serve."""
        if kind == "latents":
            caching.check_frozen_encoder("interpolation", settings.train)

    def loss(
        self, model: Any, frozen: base.Modules, batch: Any, key: jax.Array, settings: Any, layout: Any
    ) -> tuple[Float[Array, ""], base.Metrics]:
        """Return Stable Video Diffusion's loss (arXiv 2311.15127, App. D): EDM noise, v prediction, noisy anchors.

        The latents of the anchors that condition a window are of images with Gaussian noise of a log-normal standard
        deviation, which the network is given: generated anchors are not clean either. The image token is of the clean
        first anchor, as there.
        """
        chosen: Loss = settings.loss
        key_noise, key_level, key_anchors = jax.random.split(key, 3)
        if chosen.cond_dropout:
            key_anchors, key_drop = jax.random.split(key_anchors)
        clean, condition = batch.prepare(model, frozen, key_anchors, chosen.log_augmentation_mean, layout)
        size = len(clean)
        if chosen.cond_dropout:
            dropped = jax.random.bernoulli(key_drop, chosen.cond_dropout, (size,))
            condition = conditions.without_anchors(condition, dropped)
        quantile = jax.scipy.special.ndtri(jnp.clip(common.stratified(key_level, size), 1e-6, 1 - 1e-6))
        level = schedules.edm_levels(jnp.exp(chosen.log_noise_mean + chosen.log_noise_std * quantile))
        noise = jax.random.normal(key_noise, clean.shape)
        output = model(denoiser.add_noise(clean, noise, level), level.time, condition)
        error = (output - denoiser.target("v", clean, noise, level)) ** 2
        return error.mean(), {"loss_new_views": error[:, layout.window_new].mean()}

    def examples_per_object(self, config: Any) -> int:
        """Return the number of windows."""
        return len(config.layout.windows)

    def show(
        self, model: Any, frozen: base.Modules, batch: Batch, key: jax.Array, settings: Any, layout: Any
    ) -> tuple[Float[Array, "b v h w 3"], Float[Array, "b v h w 3"]]:
        """Return the frames of a window, true and sampled from its true anchors."""
        sampling: Sampling = settings.sampling
        autoencoder = frozen["autoencoder"]
        log_noise = jnp.log(jnp.maximum(sampling.given_noise, 1e-6))
        clean, condition = batch.prepare(model, frozen, key, log_noise, layout)
        plan = _plan(sampling)
        start = samplers.begin(jax.random.normal(key, clean.shape))
        state = take_steps(model, condition, start, plan, _guidance(condition, sampling))
        decoded = latents.decode(autoencoder, state.sample)
        return images.over_white(common.unit(batch.frames)), images.over_white(decoded)


# ----------------------------------------------------------------------------------------------------------- sampling


def sample(
    model: denoisers.InterpolationDenoiser,
    autoencoder: Any,
    anchors: Float[Array, "b a h w 4"],
    key: jax.Array,
    *,
    layout: cameras.ViewLayout,
    sampling: Sampling,
    progress: Callable[[int], object] = lambda steps: None,
) -> Float[Array, "b v h w c"]:
    """Sample the views between anchors, all windows in one batch (v prediction and Karras levels).

    Args:
      model: the stage's module.
      autoencoder: of the views.
      anchors: color views, straight alpha.
      key: of the noise.
      layout: of the views.
      sampling: sampler, steps and noise.
      progress: called with the number of steps after each group of steps.

    Returns:
      The views of the layout that are not anchors, in its order; RGBA, or RGB over white from a three-channel
      autoencoder.
    """
    key_anchor, key_noise = jax.random.split(key)
    given = (sampling.anchor_noise, sampling.given_noise)
    condition = start(model, autoencoder, anchors, key_anchor, *given, layout=layout)
    windows, frames, *latent = condition.latents.shape
    state = samplers.begin(jax.random.normal(key_noise, (windows, frames, *latent)))
    guidance = _guidance(condition, sampling)
    take = functools.partial(take_steps, model, condition, guidance=guidance)
    state = samplers.advance_in_parts(take, state, _plan(sampling), progress)
    if autoencoder.temporal_decoder:
        views = _decode(autoencoder, state.sample)[:, layout.window_new]
    else:
        views = _decode(autoencoder, state.sample[:, layout.window_new])
    views = views.reshape(len(anchors), -1, *views.shape[2:])
    return views[:, np.argsort(layout.windows[:, layout.window_new].ravel())]


def _guidance(condition: Any, sampling: Sampling) -> tuple[denoisers.WindowCondition, Float[Array, ""]] | None:
    """Return what :func:`denoiser.guided` takes."""
    if sampling.guidance == 1:
        return None
    hidden = jnp.ones(len(condition.noise), bool)
    return conditions.without_anchors(condition, hidden), jnp.float32(sampling.guidance)


def _plan(sampling: Sampling) -> samplers.Plan:
    """Return the steps of sampling."""
    grid = schedules.karras_grid(sampling.num_steps, noise_max=sampling.noise_max)
    return samplers.plan(grid, samplers.ORDERS[sampling.sampler])


@functools.partial(jax.jit, static_argnames="layout")
def start(
    model: denoisers.InterpolationDenoiser,
    autoencoder: Any,
    anchors: Float[Array, "b a h w 4"],
    key: jax.Array,
    strength: float | Float[Array, ""],
    given: float | Float[Array, ""],
    *,
    layout: cameras.ViewLayout,
) -> denoisers.WindowCondition:
    """Make the condition of sampling all windows; noise of standard deviation ``strength`` is added to the anchors.

    Args:
      model: the stage's module.
      autoencoder: of the views.
      anchors: color views, straight alpha.
      key: of the noise.
      strength: of the noise.
      given: the strength that the network is given.
      layout: of the views.
    """
    # Which anchors the windows have: the layout's windows by view, the anchors by number.
    chosen = layout.windows[:, layout.window_anchors] // layout.step
    image = latents.network_image(anchors, autoencoder.in_channels)
    first = image[:, chosen[:, 0], ..., :3]  # Without the noise, as in training.
    noisy = image + strength * jax.random.normal(key, image.shape)
    encoded = latents.encode_in_turns(autoencoder, noisy)[:, chosen]

    def flat(x):
        return x.reshape(-1, *x.shape[2:])

    count = encoded.shape[0] * len(chosen)
    poses = np.asarray(layout.cameras(1).world_from_cam)[layout.windows]
    labels = jnp.tile(jnp.asarray(conditions.frame_labels(poses)), (encoded.shape[0], 1, 1))
    return conditions.window_condition(model, flat(first), flat(encoded), jnp.full(count, given), labels, layout)


@jax.jit
def take_steps(
    model: denoisers.InterpolationDenoiser,
    condition: denoisers.WindowCondition,
    state: samplers.Progress,
    plan: samplers.Plan,
    guidance: tuple[denoisers.WindowCondition, Float[Array, ""]] | None = None,
) -> samplers.Progress:
    """Denoise the frames of windows, ``[b t h w c]``, along a plan or a part of it; :func:`denoiser.guided`."""

    def predict(sample, level):
        output = denoiser.guided(model, sample, level, condition, guidance)
        return denoiser.clean("v", output.astype(jnp.float32), sample, level)

    return samplers.advance(predict, state, plan)


_decode = jax.jit(latents.decode)
