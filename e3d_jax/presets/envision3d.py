"""The full-size system: 256 px views, the sizes of the released weights (Envision3D, arXiv 2403.08902).

    e3d weights import --anchor=S1 --interpolation=S2 --normals=OMNIDATA.ckpt --out=runs/envision3d
    e3d infer photo.png --out=out --config=envision3d:released --weights=runs/envision3d

3.5 billion parameters: made for an accelerator. The views are over white, as the released autoencoders know no alpha.
``envision3d:released`` is for the views of released weights: they are reconstructed with cameras at distance 1.3 from
the origin, not 1.5 as in our records. ``envision3d:smoke`` is the same topology at toy width, for a CPU. docs/plans.md
has the memory and time of training. Only what differs from the defaults is given here; ``e3d_jax/config.py`` and
``e3d_jax/stages`` explain every setting.
"""

from typing import Any

import ml_collections

from e3d_jax import presets


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Return the full-size system, or one of its variants ``released`` and ``smoke``."""
    presets.check_variant("envision3d", variant, ("released", "smoke"))
    values = {
        "size": 256,
        # Every width divides by 64; with more devices let ``data`` take the rest.
        "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
        "autoencoder": {"model": {"kl": {}}},
        "interpolation_autoencoder": {"model": {"kl": {"temporal_decoder": True}}},
        # Omnidata's DPT-hybrid, a release of its own.
        "normals": {"model": {"architecture": "dpt_hybrid"}},
        "anchor": _anchor(),
        "interpolation": _interpolation(),
        # As true views are fitted. Views of the mini system, enlarged to 256 px and cut out of white, gained nothing
        # from its own settings, nor from the release's trimmed losses and trust in the front; full-size weights were
        # not at hand.
        "reconstruction": {"resolution": 192},
    }
    if variant == "released":
        values["layout"] = {"radius": 1.3}
    if variant == "smoke":
        _shrink(values)
    return presets.config_of(values)


def _anchor() -> dict[str, Any]:
    image_encoder = {  # CLIP ViT-L/14
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_layers": 24,
        "heads": 16,
        "projection_dim": 768,
        "activation": "quick_gelu",
    }
    return {
        "model": {"unet": {}, "image_encoder": image_encoder},
        "loss": {"min_snr_gamma": 5.0, "cond_dropout": 0.05},
        # As Wonder3D (arXiv 2310.15008), whose training configurations are public, trains the same kind of network, but
        # in one phase: cross-domain attention starts at zero, which makes a phase without it needless.
        "train": _train(batch_size=512, lr_multipliers={"class_embedding": 10.0}),
    }


def _interpolation() -> dict[str, Any]:
    image_encoder = {  # CLIP ViT-H/14
        "image_size": 224,
        "patch_size": 14,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_layers": 32,
        "heads": 16,
        "projection_dim": 1024,
        "activation": "gelu",
    }
    return {
        "model": {"unet": {}, "image_encoder": image_encoder},
        # The network is given a noise level, as in Stable Video Diffusion, but no noise is added.
        "sampling": {"noise_aug_level": 0.02},
        "train": _train(batch_size=256, learning_rate=3e-5),
    }


def _train(**changes: Any) -> dict[str, Any]:
    """Return settings of training; both image encoders stay as released."""
    shared = {"steps": 30_000, "lr_schedule": "constant", "freeze": ("image_encoder",), "ema_decay": 0.9999}
    return shared | {"remat": "full", "loader_workers": 16, "keep_every": 10_000} | changes


def _shrink(values: dict[str, Any]) -> None:
    """Set toy width and few steps; every module and every layer of a U-Net or autoencoder stays."""
    values["size"] = 64
    for component in (values["autoencoder"], values["interpolation_autoencoder"]):
        component["model"]["kl"]["block_out_channels"] = (32, 32, 32, 32)
    sizes = {"image_size": 64, "stem_width": 32, "stage_widths": (128, 128, 128), "stage_depths": (1, 1, 1)}
    sizes |= {"hidden_size": 32, "heads": 2, "output_layers": (0, 1), "neck_widths": (32, 32), "features": 32}
    values["normals"]["model"]["dpt_hybrid"] = sizes
    for stage in (values["anchor"], values["interpolation"]):
        stage["model"]["unet"]["block_out_channels"] = (32, 32, 64, 64)
        stage["model"]["image_encoder"] |= {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "heads": 2}
        stage.setdefault("sampling", {})["num_steps"] = 2
        loop = {"batch_size": 4, "steps": 4, "warmup_steps": 1, "loader_workers": 0}
        stage["train"] |= loop | {"log_every": 2, "checkpoint_every": 2}
    values["interpolation"]["model"]["unet"]["heads"] = (1, 2, 4, 4)
    fit = {"steps": 20, "steps_per_chunk": 10, "rays": 128}
    values["reconstruction"] = {"resolution": 32, "max_faces": 1000, "texture_size": 64, "fit": fit}
