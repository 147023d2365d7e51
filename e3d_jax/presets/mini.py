"""The mini system: 128 px views, small enough for a laptop's CPU, trained on synthetic objects.

    e3d data synthetic --out=runs/mini/records --objects=40960
    e3d train --config=mini --stage=autoencoder --workdir=runs/mini    # and the other stages
    e3d infer photo.png --out=out --weights=runs/mini/weights

MODEL_CARD.md has the runs behind the bundled weights, their time and their scores. ``mini:smoke`` is the same system at
toy width and a few steps: every stage trains within a minute on a CPU. Only what differs from the defaults is given
here; ``e3d_jax/config.py`` and ``e3d_jax/stages`` explain every setting.
"""

from typing import Any

import ml_collections

from e3d_jax import presets

LATENT_CHANNELS = 8


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the mini system, or its ``smoke`` variant."""
    presets.check_variant("mini", variant, ("smoke",))
    values = {
        "size": 128,
        "autoencoder": _autoencoder(),
        "normals": _normals(),
        "anchor": _anchor(),
        "interpolation": _interpolation(),
        # For generated views: soft silhouettes, and no two views that agree in every pixel.
        "reconstruction": {
            "resolution": 128,
            "max_faces": 10_000,
            "texture_size": 512,
            "smoothing": 1.0,
            "fit": {"steps": 500, "steps_per_chunk": 50, "mask_contrast": 8.0, "smoothness_weight": 0.3},
        },
    }
    if variant == "smoke":
        _shrink(values)
    return presets.config_of(values)


def _train(**changes: Any) -> dict[str, Any]:
    shared = {"batch_size": 64, "learning_rate": 5e-4, "warmup_steps": 200, "beta2": 0.99}
    return shared | {"checkpoint_every": 2000, "evaluate_every": 2000} | changes


def _autoencoder() -> dict[str, Any]:
    # Factor 8: 16 x 16 latents. RGBA, so that every view comes with its silhouette.
    network = {
        "in_channels": 4,
        "out_channels": 4,
        "latent_channels": LATENT_CHANNELS,
        "block_out_channels": (32, 64, 96, 128),
        "layers_per_block": 1,
        # The released 32 groups would leave the narrow layers one channel per group, which invites droplet artifacts.
        "norm_groups": 8,
        "scaling_factor": 1.0,
    }
    return {"model": {"kl": network}, "train": _train(batch_size=16, steps=6250, learning_rate=1e-3)}


def _normals() -> dict[str, Any]:
    network = {"block_out_channels": (32, 64, 96, 96), "layers_per_block": 1, "norm_groups": 8}
    return {"model": {"unet": network}, "train": _train(batch_size=128, steps=1500, learning_rate=1e-3)}


def _image_encoder() -> dict[str, Any]:
    sizes = {"image_size": 128, "patch_size": 16, "hidden_size": 96, "intermediate_size": 384}
    return sizes | {"num_layers": 4, "heads": 4, "projection_dim": 128}


def _unet(*widths: int) -> dict[str, Any]:
    return {
        "in_channels": 2 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": widths,
        "attention_levels": (True,) * len(widths),
        "layers_per_block": 1,
        "heads": 4,
        "cross_attention_dim": 128,
    }


def _anchor() -> dict[str, Any]:
    return {
        "model": {"unet": _unet(128, 160), "image_encoder": _image_encoder()},
        "diffusion": {"prediction": "v", "zero_terminal_snr": True},
        # One step gives the mean of what may be there, which is smooth; four are sharp, and more change little.
        "sampling": {"num_steps": 4},
        # The first of few steps starts from pure noise.
        "loss": {"terminal_step_fraction": 0.5},
        # At toy size Muon reached a lower loss on held-out objects than AdamW in as many steps.
        "train": _train(steps=7650, optimizer="muon", learning_rate=2e-3),
    }


def _interpolation() -> dict[str, Any]:
    return {
        "model": {"unet": _unet(96, 128) | {"added_time_dim": 64}, "image_encoder": _image_encoder()},
        "sampling": {"num_steps": 1, "noise_max": 100.0, "anchor_noise": 0.05},
        "train": _train(steps=2350),
    }


def _shrink(values: dict[str, Any]) -> None:
    """Set toy width and a few steps."""
    values["autoencoder"]["model"]["kl"]["block_out_channels"] = (8, 16, 16, 16)
    values["normals"]["model"]["unet"]["block_out_channels"] = (8, 16, 16, 16)
    for stage in (values["anchor"], values["interpolation"]):
        stage["model"]["unet"] |= {"block_out_channels": (32, 32), "attention_levels": (False, True)}
        stage["model"]["image_encoder"]["num_layers"] = 1
        stage["sampling"]["num_steps"] = 2
    for stage in ("autoencoder", "normals", "anchor", "interpolation"):
        loop = {"batch_size": 4, "steps": 4, "warmup_steps": 1, "loader_workers": 0}
        values[stage]["train"] |= loop | {"log_every": 2, "checkpoint_every": 2}
    fit = {"steps": 20, "steps_per_chunk": 10, "rays": 128}
    values["reconstruction"] = {"resolution": 32, "max_faces": 1000, "texture_size": 64, "fit": fit}
