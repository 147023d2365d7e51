"""What a system's config must say: the plain mapping of a file in ``configs``, or of the JSON beside weights."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from e3d_jax.diffusion import samplers, schedules
from e3d_jax.models import blocks, build
from e3d_jax.reconstruction import fit, pipeline
from e3d_jax.sampling import anchors


def check(config: Mapping[str, Any]) -> None:
    """Refuses settings that would fail only after minutes of work, or silently make rubbish.

    Raises:
      ValueError: names the first such setting and what is expected.
    """
    parts = ("size", *build.COMPONENTS, "reconstruction")
    missing = [part for part in parts if part not in config]
    _expect(not missing, "parts", sorted(config), f"{', '.join(missing)} too")
    for stage in ("anchor", "interpolation"):
        for name, value in config[stage]["sampling"].items():
            if name == "sampler":
                valid, expected = value in samplers.ORDERS, f"one of {', '.join(samplers.ORDERS)}"
            elif name == "num_steps":
                valid, expected = 1 <= value < schedules.NUM_TRAIN_STEPS, f"1 to {schedules.NUM_TRAIN_STEPS - 1} steps"
            elif name == "noise_max":
                valid, expected = 0.01 <= value < math.inf, "a finite noise level of at least 0.01"
            else:
                known = name in ("anchor_noise", "told_noise")
                valid, expected = known and 0 <= value < math.inf, "no such setting, or 0 and more"
            _expect(valid, f"{stage}.sampling.{name}", value, expected)
    loss = config["anchor"]["loss"]
    _expect(
        not (loss["zero_terminal_snr"] and loss["prediction"] == "epsilon"),
        "anchor.loss.prediction",
        "epsilon",
        "v with zero_terminal_snr: at pure noise, epsilon says nothing of the views",
    )
    share = loss["last_level_share"]
    _expect(0 <= share < 1, "anchor.loss.last_level_share", share, "0 or more, below 1")
    for stage in ("anchor", "interpolation"):
        unet, tokens = (config[stage]["model"][part] for part in ("unet", "image_encoder"))
        channels = config[build.provider(config, stage, "autoencoder")]["model"]["latent_channels"]
        # Latents come in with those of the condition.
        for name, value in {"in_channels": 2 * channels, "out_channels": channels}.items():
            expected = f"{value}, as the autoencoder has {channels} latent_channels"
            _expect(unet[name] == value, f"{stage}.model.unet.{name}", unet[name], expected)
        width, expected = unet["cross_attention_dim"], f"{tokens['projection_dim']}, the image_encoder's projection_dim"
        _expect(width == tokens["projection_dim"], f"{stage}.model.unet.cross_attention_dim", width, expected)
    levels = [len(config["autoencoder"]["model"]["block_out_channels"])]
    levels += [len(config[stage]["model"]["unet"]["block_out_channels"]) for stage in ("anchor", "interpolation")]
    multiple = 2 ** (levels[0] - 1 + max(levels[1:]) - 1)
    size = config["size"]
    _expect(32 <= size <= 2048 and size % multiple == 0, "size", size, f"a multiple of {multiple} from 32 to 2048 px")
    fit_config(config)
    surface_config(config)


def check_training(stage: str, training: Mapping[str, Any]) -> None:
    """Refuses settings of a stage's training that nothing can be trained with.

    Raises:
      ValueError: names the first such setting and what is expected.
    """
    counts = ("batch_size", "accumulate", "steps", "log_every", "checkpoint_every", "evaluate_every")
    least = dict.fromkeys((*counts, "keep_last", "max_skipped"), 1)
    least |= dict.fromkeys(("learning_rate", "clip", "warmup", "workers", "keep_every"), 0)
    for name, bound in least.items():
        _expect(training[name] >= bound, f"{stage}.train.{name}", training[name], f"{bound} or more")
    for name in ("ema", "beta2"):
        _expect(0 <= training[name] < 1, f"{stage}.train.{name}", training[name], "0 or more, below 1")
    choices = {
        "optimizer": ("adamw", "muon"),
        "decay": ("cosine", "constant"),
        "remat": ("none", *blocks.REMAT_POLICIES),
    }
    for name, known in choices.items():
        _expect(training[name] in known, f"{stage}.train.{name}", training[name], f"one of {', '.join(known)}")


def _expect(valid: bool, name: str, value: Any, expected: str) -> None:
    if not valid:
        raise ValueError(f"the config's {name} is {value!r}; expected {expected}")


def fit_config(config: Mapping[str, Any]) -> fit.FitConfig:
    """How the mesh is fitted.

    Raises:
      ValueError: a setting is unknown or out of range.
    """
    given = config["reconstruction"]["fit"]
    unknown = sorted(given.keys() - {field.name for field in dataclasses.fields(fit.FitConfig)})
    if unknown:
        raise ValueError(f"the config's reconstruction.fit has unknown settings: {', '.join(unknown)}")
    # JSON has no tuples, and settings of a jitted function must be hashable.
    hashable: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    try:
        return fit.FitConfig(**hashable)
    except ValueError as error:
        raise ValueError(f"the config's reconstruction.fit: {error}") from error


def surface_config(config: Mapping[str, Any]) -> pipeline.SurfaceConfig:
    """How the mesh is cut out of the field and painted.

    Raises:
      ValueError: a setting is out of range.
    """
    names = [field.name for field in dataclasses.fields(pipeline.SurfaceConfig)]
    given = {name: config["reconstruction"][name] for name in names if name in config["reconstruction"]}
    try:
        return pipeline.SurfaceConfig(**given)
    except ValueError as error:
        raise ValueError(f"the config's reconstruction: {error}") from error


def differences(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """How a config differs from that of trained weights where both must agree; one clause each."""
    return unlike(_identity(trained), _identity(given))


def unlike(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """How what was kept of a config differs from what is given now; one clause each."""
    there, here = _named(there), _named(here)
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    return [f"{name} is {there.get(name)} there and {here.get(name)} in the given config" for name in names]


def _named(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings by dotted name, the same for tuples and for JSON's lists."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in leaves}


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What weights and config must agree in, by dotted name: the models, and what they were trained for."""
    models = {component: {"model": config.get(component, {}).get("model")} for component in build.components_of(config)}
    loss = config.get("anchor", {}).get("loss", {})
    models["anchor"]["loss"] = {name: loss.get(name) for name in anchors.TRAINED}
    named = _named({**models, "size": config.get("size")})
    named.setdefault("anchor.model.injection", True)  # As modules have it by default.
    # Recomputing layers in training changes no result.
    return {name: value for name, value in named.items() if not name.endswith(".remat")}
