"""The full-size system: 256 px views, the sizes of the released weights (Envision3D, arXiv 2403.08902).

    python -m e3d_jax.weights import --anchor=S1_PIPE --interpolation=S2_PIPE --out=runs/envision3d
    python infer.py picture.png --out=out --config=configs/envision3d.py --weights=runs/envision3d

3.5 billion parameters: made for an accelerator. The views are over white, as the released autoencoders know no alpha.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.size = 256
    config.seed = 0
    config.autoencoder = {"model": _autoencoder()}
    config.interpolation_autoencoder = {"model": _autoencoder() | {"temporal_decoder": True}}
    # Not part of the release: the estimator that comes with the mini system.
    config.normals = {"model": {"block_out_channels": (32, 64, 96, 96), "layers_per_block": 1}}
    config.anchor = _anchor()
    config.interpolation = _interpolation()
    # The release reconstructs with cameras nearer than those that it renders with.
    config.reconstruction = {"resolution": 192, "radius": 1.3, "fit": {}}
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
        "model": {"unet": _unet() | unet, "image_encoder": image_encoder},
        "sampling": {"sampler": "ddim", "num_steps": 50},
        "loss": {"prediction": "epsilon"},
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
    }
