"""The full-size system: 256 px views, the sizes of the released weights (Envision3D, arXiv 2403.08902).

    python -m e3d_jax.weights import --anchor=S1 --interpolation=S2 --normals=OMNIDATA.ckpt --out=runs/envision3d
    python infer.py picture.png --out=out --config=configs/envision3d.py:released --weights=runs/envision3d

3.5 billion parameters: made for an accelerator. The views are over white, as the released autoencoders know no alpha.
``configs/envision3d.py:released`` is for the views of released weights: they are reconstructed with cameras at 1.3 from
the origin, not at 1.5 as in our records. ``configs/envision3d.py:smoke`` is the same topology at toy width, for a CPU.
"""

import ml_collections


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in ("", "released", "smoke"):
        raise ValueError(f"configs/envision3d.py has no variant {variant!r}; there are 'released' and 'smoke'")
    config = ml_collections.ConfigDict()
    config.size = 256
    config.seed = 0
    # See e3d_jax/training/sharding.py. Every width divides by 64; of more devices let ``data`` take the rest.
    config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
    config.sharding = (
        ("heads", "tensor"),
        ("mlp", "tensor"),
        ("embed", "fsdp"),
        ("out", "fsdp"),
        ("in", "fsdp"),
    )
    config.autoencoder = {"model": _autoencoder()}
    config.interpolation_autoencoder = {"model": _autoencoder() | {"temporal_decoder": True}}
    config.normals = {"model": _normals()}
    config.anchor = _anchor()
    config.interpolation = _interpolation()
    # As true views are fitted. Views of the mini system, enlarged to 256 px and cut out of white, gained nothing from
    # its own settings, nor from the release's kept shares and trust in the front; full-size weights were not at hand.
    config.reconstruction = {"resolution": 192, "fit": {}}
    if variant == "released":
        config.reconstruction.radius = 1.3
    if variant == "smoke":
        _shrink(config)
    return config.lock()


def _autoencoder() -> dict:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
        "norm_groups": 32,
    }


def _normals() -> dict:
    # Omnidata's DPT-hybrid, a release of its own.
    return {
        "architecture": "dpt_hybrid",
        "image_size": 384,
        "stem_width": 64,
        "stage_widths": (256, 512, 1024),
        "stage_depths": (3, 4, 9),
        "hidden_size": 768,
        "heads": 12,
        "output_layers": (8, 11),
        "neck_widths": (768, 768),
        "features": 256,
        "norm_groups": 32,
    }


def _unet() -> dict:
    return {
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_levels": (True, True, True, False),
    }


def _anchor() -> dict:
    unet = {"cross_attention_dim": 768, "heads": 8, "class_embed_dim": 12, "norm_groups": 32}
    image_encoder = {  # CLIP ViT-L/14
        "image_size": 224,
        "patch_size": 14,
        "in_channels": 3,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_layers": 24,
        "heads": 16,
        "projection_dim": 768,
        "activation": "quick_gelu",
    }
    return {
        "model": {"unet": _unet() | unet, "image_encoder": image_encoder, "injection": True},
        "sampling": {"sampler": "ddim", "num_steps": 50},
        "loss": {
            "prediction": "epsilon",
            "zero_terminal_snr": False,
            "min_snr_gamma": 5.0,
            "last_level_share": 0.0,
            "estimated_normals": 0.7,
            "drop_condition": 0.05,
            "picture_weight": 0.0,
        },
        # As Wonder3D (arXiv 2310.15008), whose training configurations are public, trains the same kind of network, but
        # in one phase: cross-domain attention starts at zero, which makes a phase without it needless.
        "train": _train() | {"batch_size": 512, "steps": 30_000, "faster": {"class_embedding": 10.0}},
    }


def _interpolation() -> dict:
    unet = {"cross_attention_dim": 1024, "heads": (5, 10, 20, 20), "added_time_dim": 256, "class_embed_dim": 6}
    image_encoder = {  # CLIP ViT-H/14
        "image_size": 224,
        "patch_size": 14,
        "in_channels": 3,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_layers": 32,
        "heads": 16,
        "projection_dim": 1024,
        "activation": "gelu",
    }
    # The network is told of noise in the anchors, as in Stable Video Diffusion, but none is added.
    noise = {"noise_max": 700.0, "anchor_noise": 0.0, "told_noise": 0.02}
    return {
        "model": {"unet": _unet() | unet, "image_encoder": image_encoder},
        "sampling": {"sampler": "euler", "num_steps": 50} | noise,
        # Levels as Stable Video Diffusion (arXiv 2311.15127) trains.
        "loss": {"log_noise_mean": 0.7, "log_noise_std": 1.6, "log_augmentation_mean": -3.0},
        "train": _train() | {"batch_size": 256, "steps": 30_000, "learning_rate": 3e-5},
    }


def _train() -> dict:
    """Settings of the loop, explained in configs/mini.py; both image encoders stay as released."""
    return {
        "accumulate": 1,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "warmup": 100,
        "decay": "constant",
        "faster": {},
        "freeze": ("image_encoder",),
        "beta2": 0.999,
        "weight_decay": 0.01,
        "clip": 1.0,
        "ema": 0.9999,
        "remat": "full",
        "max_skipped": 20,
        "workers": 16,
        "log_every": 50,
        "checkpoint_every": 1000,
        "keep_last": 2,
        "keep_every": 10_000,
        "evaluate_every": 1000,
    }


def _shrink(config: ml_collections.ConfigDict) -> None:
    """Toy width, few steps; every module and every layer of a U-Net or autoencoder stays."""
    config.size = 64
    for component in (config.autoencoder, config.interpolation_autoencoder):
        component.model.block_out_channels = (32, 32, 32, 32)
    sizes = {"image_size": 64, "stem_width": 32, "stage_widths": (128, 128, 128), "stage_depths": (1, 1, 1)}
    sizes |= {"hidden_size": 32, "heads": 2, "output_layers": (0, 1), "neck_widths": (32, 32), "features": 32}
    config.normals.model.update(sizes)
    for stage in (config.anchor, config.interpolation):
        stage.model.unet.block_out_channels = (32, 32, 64, 64)
        stage.model.image_encoder.update(hidden_size=32, intermediate_size=64, num_layers=2, heads=2)
        stage.sampling.num_steps = 2
        stage.train.update(batch_size=4, steps=4, warmup=1, workers=0, log_every=2, checkpoint_every=2)
    config.interpolation.model.unet.heads = (1, 2, 4, 4)
    fit = {"steps": 20, "steps_per_chunk": 10, "rays": 128}
    config.reconstruction.update(resolution=32, max_faces=1000, texture_size=64, fit=fit)
