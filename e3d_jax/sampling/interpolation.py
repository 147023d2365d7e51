"""Stage 2: from the eight anchors to the 24 views between them, all four windows in one batch."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from e3d_jax import cameras
from e3d_jax.diffusion import denoiser, samplers, schedules
from e3d_jax.models import autoencoder, latents, stages

WINDOWS = np.array(cameras.WINDOWS)
VIEWS = np.stack([cameras.window_views(window[0]) for window in cameras.WINDOWS])
NEW_FRAMES = np.array([j for j in range(cameras.WINDOW_FRAMES) if j % cameras.ANCHOR_STEP])


def sample(
    stage: stages.InterpolationStage,
    module: autoencoder.Autoencoder,
    anchors: Float[Array, "b 8 h w 4"],
    key: jax.Array,
    *,
    sampler: str,
    num_steps: int,
    noise_max: float,
    anchor_noise: float,
    told_noise: float | None = None,
    progress: Callable[[int], object] = lambda steps: None,
) -> Float[Array, "b 24 h w c"]:
    """Samples the views between anchors (guidance 1, v prediction, Karras levels, as released).

    Args:
      stage: the interpolation stage.
      module: the autoencoder.
      anchors: colour views 0, 4, ..., 28, straight alpha.
      key: of the noise.
      sampler: "euler" (as released) or "dpm_solver".
      num_steps: number of U-Net calls.
      noise_max: where the Karras levels start; 700 as released.
      anchor_noise: standard deviation of the noise added to the anchors, more where they are less reliable.
      told_noise: what the network is told of it, the same if not given; as released 0.02, while none is added.
      progress: called with the number of steps after each group of steps.

    Returns:
      The views that are no anchors in the ring's order: 1, 2, 3, 5, ...; RGBA, or RGB over white from a three-channel
      autoencoder.
    """
    plan = samplers.plan(schedules.karras_grid(num_steps, noise_max=noise_max), samplers.ORDERS[sampler])
    key_anchor, key_noise = jax.random.split(key)
    told_noise = anchor_noise if told_noise is None else told_noise
    condition = make_condition(stage, module, anchors, key_anchor, anchor_noise, told_noise)
    windows, _, *latent = condition.latents.shape
    state = samplers.begin(jax.random.normal(key_noise, (windows, cameras.WINDOW_FRAMES, *latent)))
    state = samplers.advance_in_parts(functools.partial(take_steps, stage, condition), state, plan, progress)
    if module.temporal_decoder:
        views = _decode(module, state.sample)[:, NEW_FRAMES]
    else:
        views = _decode(module, state.sample[:, NEW_FRAMES])
    views = views.reshape(len(anchors), -1, *views.shape[2:])
    return views[:, np.argsort(VIEWS[:, NEW_FRAMES].ravel())]


@jax.jit
def make_condition(
    stage: stages.InterpolationStage,
    module: autoencoder.Autoencoder,
    anchors: Float[Array, "b 8 h w 4"],
    key: jax.Array,
    strength: float | Float[Array, ""],
    told: float | Float[Array, ""],
) -> stages.WindowCondition:
    """What the stage knows of the four windows between anchors; noise of deviation ``strength`` is added to them."""
    image = latents.network_image(anchors, module.in_channels)
    first = image[:, WINDOWS[:, 0], ..., :3]  # Without the noise, as in training.
    noisy = image + strength * jax.random.normal(key, image.shape)
    encoded = latents.encode_in_turns(module, noisy)[:, WINDOWS]
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    return stage.condition(flat(first), flat(encoded), jnp.full(encoded.shape[0] * len(WINDOWS), told))


@jax.jit
def take_steps(
    stage: stages.InterpolationStage, condition: stages.WindowCondition, state: samplers.Progress, plan: samplers.Plan
) -> samplers.Progress:
    """Denoise the frames of windows, [b t h w c], along a plan or a part of it."""

    def predict(sample, level):
        output = stage(sample, jnp.full(len(sample), level.time), condition)
        return denoiser.clean("v", output.astype(jnp.float32), sample, level)

    return samplers.advance(predict, state, plan)


_decode = jax.jit(latents.decode)
