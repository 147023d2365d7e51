"""Stage 1: from an image-normal pair to eight anchor views and their normal maps."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3d_jax import cameras
from e3d_jax.diffusion import denoiser, samplers, schedules
from e3d_jax.models import autoencoder, latents, stages

# What :func:`sample` must be told as it was trained: names in the ``loss`` section of the stage's config.
TRAINED = ("prediction", "zero_terminal_snr")


def sample(
    stage: stages.AnchorStage,
    module: autoencoder.Autoencoder,
    pair: Float[Array, "b 2 h w 4"],
    key: jax.Array,
    *,
    prediction: denoiser.Prediction,
    zero_terminal_snr: bool,
    sampler: str,
    num_steps: int,
    progress: Callable[[int], object] = lambda steps: None,
) -> Float[Array, "b 2 8 h w c"]:
    """Samples the anchors of objects, both domains together (guidance 1, as released).

    Args:
      stage: the anchor stage.
      module: the autoencoder of both domains.
      pair: input picture and its normal map, cropped (:func:`e3d_jax.images.object_box`); straight alpha.
      key: of the initial noise.
      prediction: what the U-Net was trained to return.
      zero_terminal_snr: whether it was trained down to pure noise (:func:`schedules.zero_terminal_snr_alphas`).
      sampler: "ddim" (as released) or "dpm_solver".
      num_steps: number of U-Net calls.
      progress: called with the number of steps after each group of steps.

    Returns:
      Colour views and encoded normal maps: RGBA, or RGB over white from a three-channel autoencoder.
    """
    plan = samplers.plan(schedules.ddim_grid(num_steps, zero_terminal_snr), samplers.ORDERS[sampler])
    condition = make_condition(stage, module, pair)
    domains, batch, *latent = condition.latents.shape
    noise = jax.random.normal(key, (domains, batch, cameras.NUM_ANCHORS, *latent))
    state = samplers.begin(noise)
    take = functools.partial(take_steps, stage, condition, prediction=prediction)
    state = samplers.advance_in_parts(take, state, plan, progress)
    return _decode(module, jnp.moveaxis(state.sample, 1, 0))


@jax.jit
def make_condition(
    stage: stages.AnchorStage, module: autoencoder.Autoencoder, pair: Float[Array, "b 2 h w 4"]
) -> stages.AnchorCondition:
    """What the stage knows of input pictures and their normal maps; arguments as for :func:`sample`."""
    encoded = latents.encode_in_turns(module, latents.network_image(pair, module.in_channels)) * module.scaling_factor
    return stage.condition(latents.network_image(pair), encoded)


@functools.partial(jax.jit, static_argnames="prediction")
def take_steps(
    stage: stages.AnchorStage,
    condition: stages.AnchorCondition,
    state: samplers.Progress,
    plan: samplers.Plan,
    *,
    prediction: denoiser.Prediction,
) -> samplers.Progress:
    """Denoise the eight views of both domains, [d b v h w c], along a plan or a part of it."""

    def predict(sample, level):
        output = stage(sample, jnp.full(sample.shape[1], level.time), condition)
        return denoiser.clean(prediction, output.astype(jnp.float32), sample, level)

    return samplers.advance(predict, state, plan)


_decode = jax.jit(latents.decode)
