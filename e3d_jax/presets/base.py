"""The base system: 256 px views, sharp, trained on synthetic objects and on everyday assets.

    e3d data synthetic --config=base --out=runs/base/synthetic --objects=40960
    e3d data assets --config=base --meshes=ASSETS --out=runs/base/assets --poses=3
    e3d train --config=base --stage=autoencoder --workdir=runs/base --data=runs/base/synthetic --data=runs/base/assets

In the making: docs/base_training.md is the log of its training. ``e3d_jax/weights/base`` holds what there is so far;
``--init=base`` goes on from it. ``base:smoke`` is the same system at toy width and a few steps. Only what differs from
the defaults is given here; ``e3d_jax/config.py`` and ``e3d_jax/stages`` explain every setting.
"""

from typing import Any

import ml_collections

from e3d_jax import presets

LATENT_CHANNELS = 8
MAX_INPUTS = 4


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the base system, or its ``smoke`` variant."""
    presets.check_variant("base", variant, ("smoke",))
    values = {
        "size": 256,
        # A level ring never looks into a bowl.
        "layout": {"elevation": 10.0, "elevation_swing": 25.0, "elevation_waves": 2},
        "inputs": {"count": MAX_INPUTS},
        "autoencoder": _autoencoder(),
        "normals": _normals(),
        "anchor": _anchor(),
        "interpolation": _interpolation(),
        # As for the views of the mini system.
        "reconstruction": {
            "resolution": 128,
            "max_faces": 10_000,
            "texture_size": 512,
            "smoothing": 1.0,
            "fit": {"steps": 1000, "steps_per_chunk": 50, "mask_contrast": 8.0, "smoothness_weight": 0.3},
        },
    }
    if variant == "smoke":
        _shrink(values)
    return presets.config_of(values)


def _train(**changes: Any) -> dict[str, Any]:
    # Muon reaches in 450 steps of the autoencoder what takes AdamW more than 1,850 (docs/base_training.md).
    shared = {"optimizer": "muon", "learning_rate": 1e-3, "warmup_steps": 200, "beta2": 0.99}
    return shared | {"checkpoint_every": 2000, "evaluate_every": 2000} | changes


def _denoiser_train(steps: int) -> dict[str, Any]:
    # Many sittings, each of which goes on where the last one ended, on cached latents.
    return _train(steps=steps, batch_size=32, lr_schedule="constant", freeze=("image_encoder",))


def _autoencoder() -> dict[str, Any]:
    # Factor 8: 32 x 32 latents. RGBA, so that every view comes with its silhouette.
    network = {
        "in_channels": 4,
        "out_channels": 4,
        "latent_channels": LATENT_CHANNELS,
        "block_out_channels": (48, 96, 160, 256),
        "layers_per_block": 1,
        "norm_groups": 8,
        "mid_attention": False,
        "scaling_factor": 1.0,
    }
    train = _train(batch_size=4, steps=12_000)
    loss = {"kl_weight": 2e-4, "scale_weight": 0.25, "contrast_weight": 1.0}
    return {"model": {"kl": network}, "loss": loss, "train": train}


def _normals() -> dict[str, Any]:
    network = {
        "block_out_channels": (32, 64, 96, 128, 128),
        "attention_levels": (False, False, False, False, True),
        "heads": 2,
        "layers_per_block": 1,
        "norm_groups": 8,
    }
    return {
        "model": {"unet": network},
        "train": _train(batch_size=32, steps=3000),
    }


def _image_encoder() -> dict[str, Any]:
    # As in the mini system, whose trained encoder fits: frozen, it lets latents be cached.
    sizes = {"image_size": 128, "patch_size": 16, "hidden_size": 96, "intermediate_size": 384}
    return sizes | {"num_layers": 4, "heads": 4, "projection_dim": 128}


def _unet(widths: tuple[int, ...], heads: tuple[int, ...], layers: int) -> dict[str, Any]:
    return {
        "in_channels": 2 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": widths,
        "attention_levels": (False, *(True,) * (len(widths) - 1)),
        "layers_per_block": layers,
        "heads": heads,
        "cross_attention_dim": 128,
    }


def _anchor() -> dict[str, Any]:
    return {
        "model": {"unet": _unet((128, 192, 256), (2, 3, 4), 2), "image_encoder": _image_encoder()},
        # Latents of half the width halve the noise that hides them; sixteen maps of one object need four times as much.
        "diffusion": {
            "prediction": "v",
            "zero_terminal_snr": True,
            "shift": 2.0,
            "max_inputs": MAX_INPUTS,
            "input_cameras": True,
        },
        # With guidance, outlines are closed and colors hold together; it doubles the time of a step.
        "sampling": {"sampler": "dpm_solver", "num_steps": 12, "guidance": 2.0},
        "loss": {"cond_dropout": 0.1},
        "train": _denoiser_train(steps=60_000),
    }


def _interpolation() -> dict[str, Any]:
    unet = _unet((96, 128, 192), (1, 2, 3), 1) | {"added_time_dim": 64}
    return {
        "model": {"unet": unet, "image_encoder": _image_encoder()},
        "loss": {"cond_dropout": 0.1},
        "sampling": {"num_steps": 1, "noise_max": 100.0, "anchor_noise": 0.05},
        "train": _denoiser_train(steps=20_000),
    }


def _shrink(values: dict[str, Any]) -> None:
    """Toy width, a few steps."""
    values["autoencoder"]["model"]["kl"]["block_out_channels"] = (8, 16, 16, 16)
    values["normals"]["model"]["unet"] |= {"block_out_channels": (8, 16, 16, 16, 16), "heads": 1}
    for stage in (values["anchor"], values["interpolation"]):
        unet = {"block_out_channels": (32, 32, 32), "attention_levels": (False, False, True), "heads": (1, 1, 1)}
        stage["model"]["unet"] |= unet
        stage["model"]["image_encoder"]["num_layers"] = 1
        stage["sampling"]["num_steps"] = 2
    for stage in ("autoencoder", "normals", "anchor", "interpolation"):
        loop = {"batch_size": 4, "steps": 4, "warmup_steps": 1, "loader_workers": 0}
        values[stage]["train"] |= loop | {"log_every": 2, "checkpoint_every": 2}
    fit = {"steps": 20, "steps_per_chunk": 10, "rays": 128}
    values["reconstruction"] = {"resolution": 32, "max_faces": 1000, "texture_size": 64, "fit": fit}
