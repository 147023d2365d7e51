"""Stage 1: from an image-normal pair to the anchor views and their normal maps (Envision3D, arXiv 2403.08902)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from e3d_jax import images, settings, structs
from e3d_jax.diffusion import denoiser, samplers, schedules
from e3d_jax.models import anchor, denoisers, latents, layers
from e3d_jax.models import image_encoder as encoders
from e3d_jax.stages import anchor_data, base, caching, common, conditions, image_loss

NETWORKS = {"unet": anchor.AnchorUNet}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(base.ModelSettings):
    """The networks of the stage."""

    architecture: str = settings.setting("Which denoising network.", "unet", choices=tuple(NETWORKS))
    unet: anchor.AnchorUNetSpec = settings.setting("Multi-view U-Net.", anchor.AnchorUNetSpec())
    image_encoder: encoders.ImageEncoderSpec = settings.setting("Makes the image tokens.", encoders.ImageEncoderSpec())
    injection: bool = settings.setting(
        "Inject the image-normal pair as in the paper; False is what the paper compares it with.", True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(settings.Settings):
    """What training and sampling must agree on."""

    prediction: str = settings.setting("What the network returns.", "epsilon", choices=("epsilon", "v"))
    zero_terminal_snr: bool = settings.setting(
        "Train down to pure noise (arXiv 2305.08891); takes prediction v.", False
    )
    shift: float = settings.setting(
        "Factor of the ratio of noise to signal at every level; 1 suits one 64 x 64 latent. The more pixels and views "
        "show the same thing, the more noise it takes to hide it (arXiv 2301.11093, 2405.10314).",
        1.0,
        above=0,
    )

    max_inputs: int = settings.setting(
        "Input images at most. Training draws their number; the first is the front.", 1, at_least=1, at_most=4
    )
    input_cameras: bool = settings.setting(
        "State elevation and field of view of the inputs, or that they are unknown. As released, the input is taken to "
        "be a view of the layout.",
        False,
    )

    def check(self) -> None:
        """Refuse a prediction that is undefined at pure noise."""
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "prediction is 'epsilon'; expected 'v' with zero_terminal_snr: at pure noise, epsilon says nothing of "
                "the views"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(settings.Settings):
    """The loss of the stage."""

    min_snr_gamma: float = settings.setting("Gamma of min-SNR weighting (arXiv 2303.09556); 0 is off.", 0.0, at_least=0)
    terminal_step_fraction: float = settings.setting(
        "Fraction of examples at the noisiest level, on which sampling in one or two steps depends; the others spread "
        "evenly over all levels.",
        0.0,
        at_least=0,
        below=1,
    )
    estimated_normals_fraction: float = settings.setting(
        "Fraction of examples whose input normal map is estimated, as in inference, rather than rendered.",
        0.7,
        at_least=0,
        at_most=1,
    )
    cond_dropout: float = settings.setting("Fraction of examples whose condition is blank.", 0.0, at_least=0, at_most=1)
    known_cameras_fraction: float = settings.setting(
        "With diffusion.input_cameras, fraction of inputs whose elevation is known, and whose field of view is.",
        0.5,
        at_least=0,
        at_most=1,
    )
    image_weight: float = settings.setting(
        "Weight of the loss between one decoded view of each object and its ground truth. The squared error alone asks "
        "for the mean of all possible latents, which does not decode to the mean of the possible images.",
        0.0,
        at_least=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(settings.Settings):
    """How views are sampled."""

    sampler: str = settings.setting("Sampler; ddim as released.", "ddim", choices=tuple(samplers.ORDERS))
    num_steps: int = settings.setting("Calls of the network.", 50, at_least=1, at_most=schedules.NUM_TRAIN_STEPS - 1)
    guidance: float = common.guidance_setting()


# --------------------------------------------------------------------------------------------------------------- loss


class Anchor(base.Stage):
    """A multi-view diffusion model of color and normals together."""

    name = "anchor"
    needs = ("autoencoder", "normals")
    sources: ClassVar = {"images": anchor_data.Images(), "latents": anchor_data.Latents()}
    model = Model
    diffusion = Diffusion
    loss_settings = Loss
    sampling = Sampling

    def build(self, model: Model, types: layers.Types) -> nnx.Module:
        """Make the denoiser with its image encoder."""
        encoder = encoders.ImageEncoder(model.image_encoder, types)
        network = NETWORKS[model.architecture](model.network, types)
        return denoisers.AnchorDenoiser(model.architecture, network, encoder, model.injection)

    def check(self, config: Any, component: str) -> None:
        """Refuse networks that do not fit the autoencoder or the image encoder, and guidance that is not trained."""
        common.check_denoiser(config, component)
        common.check_guidance(config, component)
        if config[component].diffusion.max_inputs > 1 and not config[component].model.injection:
            raise ValueError(
                f"{component}.diffusion.max_inputs is {config[component].diffusion.max_inputs}; expected 1 without "
                f"{component}.model.injection, which alone shows the network more than the first input"
            )

    def check_source(self, kind: str, settings: Any) -> None:
        """Refuse settings that cached latents cannot serve."""
        if kind == "latents":
            caching.check_frozen_encoder("anchor", settings.train)
            if settings.loss.image_weight:
                raise ValueError(
                    f"anchor.loss.image_weight is {settings.loss.image_weight}, but cached latents hold no images; set "
                    "it to 0, or train from images"
                )

    def loss(
        self, model: Any, frozen: base.Modules, batch: Any, key: jax.Array, settings: Any, layout: Any
    ) -> tuple[Float[Array, ""], base.Metrics]:
        """Return the squared error of the network's output on the noisy views, see :func:`denoiser.loss_weight`.

        All views of an object have one noise level.
        """
        del layout
        chosen: Loss = settings.loss
        prediction = settings.diffusion.prediction
        key_noise, key_time, key_estimate, key_drop, key_view = jax.random.split(key, 5)
        if settings.diffusion.input_cameras:
            key_drop, key_known = jax.random.split(key_drop)
        size = len(jax.tree.leaves(batch)[0])
        estimated = jax.random.bernoulli(key_estimate, chosen.estimated_normals_fraction, (size,))
        dropped = jax.random.bernoulli(key_drop, chosen.cond_dropout, (size,))
        known = None
        if settings.diffusion.input_cameras:
            shape = (size, settings.diffusion.max_inputs, 2)
            known = jax.random.bernoulli(key_known, chosen.known_cameras_fraction, shape)
        clean, condition = batch.prepare(model, frozen, estimated, dropped, known)
        time = common.training_steps(key_time, size, chosen.terminal_step_fraction)
        level = schedules.discrete_levels(time, settings.diffusion.zero_terminal_snr, settings.diffusion.shift)
        noise = jax.random.normal(key_noise, clean.shape)
        noisy = denoiser.add_noise(clean, noise, level)
        output = model(noisy, level.time, condition)
        error = (output - denoiser.target(prediction, clean, noise, level)) ** 2
        weight = denoiser.loss_weight(prediction, level, chosen.min_snr_gamma)
        per_object = error.mean((1, 2, 3, 4, 5))
        metrics = {f"loss_{domain}": error[:, d].mean() for d, domain in enumerate(conditions.DOMAINS)}
        for third, name in enumerate(("low_noise", "middle_noise", "high_noise")):
            within = time * 3 // schedules.NUM_TRAIN_STEPS == third
            metrics[f"loss_{name}"] = (per_object * within).sum() / jnp.maximum(within.sum(), 1)
        loss = (weight * per_object).mean()
        if chosen.image_weight:
            found = denoiser.clean(prediction, output.astype(jnp.float32), noisy, level)
            index = jax.random.randint(key_view, (size,), 0, found.shape[2])
            metrics["loss_image"] = image_loss.image_loss(frozen["autoencoder"], found, batch.true_views(), index)
            loss = loss + chosen.image_weight * metrics["loss_image"]
        return loss, metrics

    def show(
        self, model: Any, frozen: base.Modules, batch: anchor_data.Batch, key: jax.Array, settings: Any, layout: Any
    ) -> tuple[Float[Array, "b v h w 3"], Float[Array, "b v h w 3"]]:
        """Return the anchors in both domains, true and sampled from the true condition."""
        del layout
        inputs = batch.true_inputs()
        known = jnp.ones((len(inputs), inputs.shape[2], 2), bool) if settings.diffusion.input_cameras else None
        sampled = sample(
            model,
            frozen["autoencoder"],
            inputs,
            batch.labels(known),
            key,
            count=batch.existing(),
            diffusion=settings.diffusion,
            sampling=settings.sampling,
        )

        def row(views):
            views = images.over_white(views)
            return views.reshape(views.shape[0], -1, *views.shape[3:])

        return row(batch.true_views()), row(sampled)


# ----------------------------------------------------------------------------------------------------------- sampling


def sample(
    model: denoisers.AnchorDenoiser,
    autoencoder: Any,
    inputs: Float[Array, "b d n h w 4"],
    labels: Float[structs.ArrayLike, "b d views 12"],
    key: jax.Array,
    *,
    count: Int[Array, " b"] | None = None,
    diffusion: Diffusion,
    sampling: Sampling,
    progress: Callable[[int], object] = lambda steps: None,
) -> Float[Array, "b d v h w c"]:
    """Sample the anchors of objects, both domains together.

    Args:
      model: the stage's module.
      autoencoder: of both domains.
      inputs: input images and their normal maps in the frame of the first, framed
        (:func:`e3d_jax.images.object_box`); straight alpha.
      labels: of :func:`conditions.view_labels`.
      key: of the initial noise.
      count: how many inputs exist; all if None.
      diffusion: what the network was trained for.
      sampling: sampler and number of steps.
      progress: called with the number of steps after each group of steps.

    Returns:
      Color views and encoded normal maps: RGBA, or RGB over white from a three-channel autoencoder.
    """
    grid = schedules.ddim_grid(sampling.num_steps, diffusion.zero_terminal_snr, diffusion.shift)
    plan = samplers.plan(grid, samplers.ORDERS[sampling.sampler])
    condition = start(model, autoencoder, inputs, jnp.asarray(labels), count)
    guidance = None
    if sampling.guidance != 1:
        blank = jnp.broadcast_to(anchor_data.BLANK, inputs.shape)
        guidance = start(model, autoencoder, blank, jnp.asarray(labels), count), jnp.float32(sampling.guidance)
    batch, domains, number, *latent = condition.latents.shape
    noise = jax.random.normal(key, (batch, domains, labels.shape[2] - number, *latent))
    take = functools.partial(take_steps, model, condition, prediction=diffusion.prediction, guidance=guidance)
    state = samplers.advance_in_parts(take, samplers.begin(noise), plan, progress)
    return _decode(autoencoder, state.sample)


@jax.jit
def start(
    model: denoisers.AnchorDenoiser,
    autoencoder: Any,
    inputs: Float[Array, "b d n h w 4"],
    labels: Float[Array, "b d views 12"],
    count: Int[Array, " b"] | None = None,
) -> denoisers.AnchorCondition:
    """Make the condition of sampling; arguments as for :func:`sample`."""
    image = latents.network_image(inputs, autoencoder.in_channels)
    encoded = latents.encode_in_turns(autoencoder, image) * autoencoder.scaling_factor
    return conditions.anchor_condition(model, inputs, encoded, labels, count)


@functools.partial(jax.jit, static_argnames="prediction")
def take_steps(
    model: denoisers.AnchorDenoiser,
    condition: denoisers.AnchorCondition,
    state: samplers.Progress,
    plan: samplers.Plan,
    *,
    prediction: denoiser.Prediction,
    guidance: tuple[denoisers.AnchorCondition, Float[Array, ""]] | None = None,
) -> samplers.Progress:
    """Denoise the views of both domains, ``[b d v h w c]``, along a plan or a part of it; :func:`denoiser.guided`."""

    def predict(sample, level):
        output = denoiser.guided(model, sample, level, condition, guidance)
        return denoiser.clean(prediction, output.astype(jnp.float32), sample, level)

    return samplers.advance(predict, state, plan)


_decode = jax.jit(latents.decode)
