"""Compare pipelines with recorded outputs of their PyTorch originals: every check whose arrays are in a file."""

import dataclasses
import functools
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3d_jax import cameras
from e3d_jax.diffusion import samplers, schedules
from e3d_jax.models import denoisers, latents
from e3d_jax.stages import anchor, conditions, interpolation
from e3d_jax.weights import convert, diffusers

# Tolerances of single calls and of sampling, relative to the largest magnitude.
CALL, SAMPLER = 1e-4, 1e-3
LAYOUT = cameras.RELEASED


@dataclasses.dataclass(frozen=True)
class Row:
    """Row of the table: the largest errors of an array, absolute and relative to its largest magnitude."""

    name: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the relative error is within the tolerance."""
        return self.relative <= self.tolerance


class Recorded:
    """Recorded arrays, channels last, and our modules with the same weights."""

    def __init__(self, arrays: Mapping[str, np.ndarray], pipelines: Mapping[convert.Stage, Path]):
        self.arrays, self.pipelines = arrays, pipelines

    @functools.cache  # noqa: B019 - kept for one verification only
    def module(self, stage: convert.Stage, part: str) -> Any:
        """Return a part of a pipeline."""
        return diffusers.load(self.pipelines[stage] / part)

    def __getitem__(self, name: str) -> jax.Array:
        array = self.arrays[name]
        return jnp.asarray(np.moveaxis(array, -3, -1) if array.ndim >= 4 else array)


def released_context_order(context: jax.Array, positions: int) -> jax.Array:
    """Order the contexts of the temporal layers as the released code does when a call has several windows.

    It passes them as (position, window), whereas the tokens are (window, position). With one window per call, as when
    it samples, there is no difference.
    """
    windows = len(context)
    order = jnp.arange(windows * positions).reshape(windows, positions) % windows
    return context[:, 0][order]


def _anchor_call(recorded: Recorded) -> dict[str, Any]:
    views = [
        recorded[f"anchor_unet_{name}"].reshape(1, 2, 9, *recorded[f"anchor_unet_{name}"].shape[1:])
        for name in ("sample", "image_embeds", "camera")
    ]
    out = _call(recorded.module("anchor", "unet"), views[0], recorded["anchor_unet_timestep"], *views[1:])
    return {"anchor_unet_out": out.reshape(-1, *out.shape[3:])}


def _image_encoder(recorded: Recorded) -> dict[str, Any]:
    return {"clip1_out": _call(recorded.module("anchor", "image_encoder"), recorded["clip1_pixels"])}


def _autoencoder(recorded: Recorded) -> dict[str, Any]:
    module = recorded.module("anchor", "vae")
    mode, _ = _call(module, 2 * recorded["image"] - 1, method="encode")
    return {"vae_mode": mode, "vae_decoded": _call(module, recorded["vae_mode"], method="decode")}


def _anchor_sampler(recorded: Recorded) -> dict[str, Any]:
    networks = (recorded.module("anchor", part) for part in ("unet", "image_encoder"))
    model, autoencoder = denoisers.AnchorDenoiser("unet", *networks), recorded.module("anchor", "vae")
    pair = jnp.concatenate([recorded["image"], recorded["normal"]])
    poses = np.asarray(LAYOUT.cameras(1).world_from_cam)[None, LAYOUT.anchors]
    labels = jnp.asarray(conditions.view_labels(poses, poses[:, :1]))
    condition = anchor.start(model, autoencoder, _opaque(pair)[None, :, None], labels)
    noise = recorded["anchor_init_latents"]
    start = samplers.begin(noise.reshape(1, 2, LAYOUT.num_anchors, *noise.shape[1:]))
    plan = samplers.plan(schedules.ddim_grid(4), samplers.ORDERS["ddim"])
    sample = anchor.take_steps(model, condition, start, plan, prediction="epsilon").sample
    images = jax.jit(latents.decode)(autoencoder, sample)
    return {
        "anchor_latents_4steps": sample.reshape(noise.shape),
        "anchor_images_4steps": images.reshape(-1, *images.shape[3:]),
        "anchor_timesteps_4": np.asarray(plan.level.time),
    }


def _interpolation_call(recorded: Recorded) -> dict[str, Any]:
    sample = recorded["interp_unet_sample"]
    names = ("timestep", "image_embeds", "added_time_ids")
    labels = recorded["interp_unet_camera"].reshape(*sample.shape[:2], -1)
    inputs = [recorded[f"interp_unet_{name}"] for name in names]
    module = recorded.module("interpolation", "unet")
    module.order_contexts(released_context_order)
    out = _call(module, sample, *inputs, labels)
    module.order_contexts(None)
    return {"interp_unet_out": out}


def _temporal_autoencoder(recorded: Recorded) -> dict[str, Any]:
    module = recorded.module("interpolation", "vae")
    mode, _ = _call(module, 2 * recorded["image"] - 1, method="encode")
    given = recorded["vae2_latents"]
    return {"vae2_mode": mode, "vae2_decoded": _call(module, given, method="decode", num_frames=len(given))}


def _interpolation_sampler(recorded: Recorded) -> dict[str, Any]:
    networks = (recorded.module("interpolation", part) for part in ("unet", "image_encoder"))
    model = denoisers.InterpolationDenoiser("unet", *networks)
    given = _opaque(recorded["anchor_images_4steps"][:3])
    # The ring's first window runs from the last anchor over the first to the second.
    ring = jnp.zeros((1, LAYOUT.num_anchors, *given.shape[1:])).at[0, jnp.array([-1, 0, 1])].set(given)
    module = recorded.module("interpolation", "vae")
    condition = interpolation.start(model, module, ring, jax.random.key(0), 0.0, 0.02, layout=LAYOUT)
    condition = jax.tree.map(lambda x: x[:1], condition)
    grid = schedules.karras_grid(4)
    plan = samplers.plan(grid, samplers.ORDERS["euler"])
    sample = interpolation.take_steps(model, condition, samplers.begin(recorded["interp_init_latents"]), plan).sample
    noise = np.asarray(grid.sigma / grid.alpha)
    return {
        "interp_clip_embed": condition.token,
        "interp_latents_4steps": sample,
        "interp_sigmas_4": noise,
        "interp_timesteps_4": np.asarray(plan.level.time),
        "interp_init_noise_sigma": np.sqrt(noise[0] ** 2 + 1),
    }


@dataclasses.dataclass(frozen=True)
class Check:
    """Function that computes arrays, and the recorded inputs that it needs."""

    compute: Callable[[Recorded], dict[str, Any]]
    needs: tuple[str, ...]


_ANCHOR, _INTERPOLATION = "anchor_unet_", "interp_unet_"
CHECKS = (
    Check(_anchor_call, tuple(_ANCHOR + name for name in ("sample", "timestep", "image_embeds", "camera"))),
    Check(_image_encoder, ("clip1_pixels",)),
    Check(_autoencoder, ("image", "vae_mode")),
    Check(_anchor_sampler, ("image", "normal", "anchor_init_latents")),
    Check(
        _interpolation_call,
        tuple(_INTERPOLATION + name for name in ("sample", "timestep", "image_embeds", "added_time_ids", "camera")),
    ),
    Check(_temporal_autoencoder, ("image", "vae2_latents")),
    Check(_interpolation_sampler, ("anchor_images_4steps", "interp_init_latents")),
)


def verify(pipelines: Mapping[convert.Stage, str | os.PathLike], recorded: str | os.PathLike) -> Iterator[Row]:
    """Compute the rows of the table one by one, in float32.

    Args:
      pipelines: folders or Hugging Face ids, by stage.
      recorded: ``.npz`` of inputs and outputs of the original, channels first.

    Raises:
      OSError: a file cannot be read.
      ValueError: the file is not an ``.npz``, holds no arrays to check, or was recorded from other pipelines.
    """
    try:
        arrays = dict(np.load(recorded, allow_pickle=False).items())
    except OSError as error:
        raise OSError(f"{recorded} cannot be read ({error.strerror}); give the .npz of recorded outputs") from error
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{recorded} is not an .npz of arrays ({error}); record the outputs again") from error
    source = Recorded(arrays, {stage: convert.locate(pipeline) for stage, pipeline in pipelines.items()})
    possible = [check for check in CHECKS if arrays.keys() >= set(check.needs)]
    if not possible:
        raise ValueError(f"{recorded} has none of the arrays to check; see e3d_jax/weights/verify.py for their names")
    for check in possible:
        try:
            computed = check.compute(source)
        except (LookupError, TypeError) as error:
            names, reason = ", ".join(check.needs), str(error).split("\n")[0]
            raise ValueError(f"the networks cannot take the recorded {names} ({reason}); record them again") from error
        for name, got in computed.items():
            if name in arrays:
                tolerance = SAMPLER if name.endswith("_4steps") else CALL
                yield _compare(name, np.asarray(got), np.asarray(source[name]), tolerance)


def _compare(name: str, got: np.ndarray, expected: np.ndarray, tolerance: float) -> Row:
    if got.shape != expected.shape:
        raise ValueError(
            f"the recorded {name} has shape {expected.shape}, but ours {got.shape}; record it with these weights"
        )
    absolute = float(np.abs(got - expected).max())
    return Row(name, absolute, absolute / max(float(np.abs(expected).max()), 1e-30), tolerance)


def table(rows: list[Row]) -> str:
    """Format rows as text."""
    lines = [f"{'array':26s} {'absolute':>10s} {'relative':>10s} {'allowed':>8s}"]
    for row in rows:
        verdict = "pass" if row.passed else "FAIL"
        lines.append(f"{row.name:26s} {row.absolute:10.2e} {row.relative:10.2e} {row.tolerance:8.0e}  {verdict}")
    return "\n".join(lines)


def _opaque(rgb: jax.Array) -> jax.Array:
    return jnp.concatenate([rgb, jnp.ones_like(rgb[..., :1])], -1)


def _call(module: Any, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
    return jax.jit(lambda module, *args: getattr(module, method)(*args, **kwargs))(module, *args)
