"""The mini system: 128 px views, small enough for a laptop's CPU, trained on synthetic objects.

    python -m e3d_jax.data.synthetic --out=runs/mini/records --objects=40960
    python train.py --config=configs/mini.py --stage=autoencoder --workdir=runs/mini    # and the other stages
    python infer.py picture.png --out=out --weights=runs/mini/weights

``configs/mini.py:smoke`` is the same system at toy width and a few steps: every stage trains within a minute on a CPU.
See MODEL_CARD.md for the run behind the bundled weights and its scores.
"""

import ml_collections

LATENT_CHANNELS = 8


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/mini.py has no variant {variant!r}; there is only 'smoke'")
    config = ml_collections.ConfigDict()
    config.size = 128
    config.seed = 0
    # How many devices along each axis of the mesh, -1 for the rest; and what of a parameter may be split over which,
    # see e3d_jax/training/sharding.py. The mini system is small enough to be copied.
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.sharding = (
        ("heads", "tensor"),
        ("mlp", "tensor"),
        ("embed", "fsdp"),
        ("out", "fsdp"),
        ("in", "fsdp"),
    )
    config.autoencoder = _autoencoder()
    config.normals = _normals()
    config.anchor = _anchor()
    config.interpolation = _interpolation()
    # Generated views: soft silhouettes, and no two agree in every pixel.
    fit = {"steps": 1000, "steps_per_chunk": 50, "mask_contrast": 8.0, "smoothness_weight": 0.3}
    surface = {"resolution": 128, "max_faces": 10_000, "texture_size": 512, "smoothing": 1.0}
    config.reconstruction = ml_collections.ConfigDict({**surface, "fit": fit})
    if variant == "smoke":
        _shrink(config)
    return config.lock()


def _train(**changes) -> ml_collections.ConfigDict:
    """Settings of the loop (e3d_jax/training/loop.py)."""
    settings = ml_collections.ConfigDict(
        {
            # Examples of an update, over all devices; in so many parts, one after another.
            "batch_size": 64,
            "accumulate": 1,
            "steps": 7650,
            # adamw, or muon (e3d_jax/training/muon.py).
            "optimizer": "adamw",
            # It rises for ``warmup`` steps, and then falls to zero (cosine) or stays (constant).
            "learning_rate": 5e-4,
            "warmup": 200,
            "decay": "cosine",
            # Parts of parameters' names and by what their learning rate is multiplied.
            "faster": {},
            # Attributes of the stage that are not trained.
            "freeze": (),
            "beta2": 0.99,
            "weight_decay": 0.01,
            # Largest norm of a gradient.
            "clip": 1.0,
            # The average of the parameters, which is what becomes of the run, keeps this share of itself each step.
            "ema": 0.999,
            # What the backward pass recomputes: none, full or dots (e3d_jax/models/blocks.py).
            "remat": "none",
            # So many updates in a row that are not finite end the run.
            "max_skipped": 20,
            # Processes of the loader; 0 for none.
            "workers": 12,
            # In steps. Of checkpoints the last few stay, and those of every so many steps; 0 for no others.
            "log_every": 50,
            "checkpoint_every": 2000,
            "keep_last": 2,
            "keep_every": 0,
            # Where there are --unseen records.
            "evaluate_every": 2000,
        }
    )
    settings.update(changes)
    return settings


def _autoencoder() -> ml_collections.ConfigDict:
    # Factor 8: 16 x 16 latents. RGBA, so that every view comes with its silhouette.
    model = {
        "in_channels": 4,
        "out_channels": 4,
        "latent_channels": LATENT_CHANNELS,
        "block_out_channels": (32, 64, 96, 128),
        "layers_per_block": 1,
        # The released 32 groups would leave the narrow layers one channel a group, which invites droplet artefacts.
        "norm_groups": 8,
        "scaling_factor": 1.0,
    }
    loss = {"kl_weight": 3e-4}
    return ml_collections.ConfigDict(
        {"model": model, "loss": loss, "train": _train(batch_size=16, steps=6250, learning_rate=1e-3)}
    )


def _normals() -> ml_collections.ConfigDict:
    model = {"block_out_channels": (32, 64, 96, 96), "layers_per_block": 1, "norm_groups": 8}
    loss = {"colour_jitter": 0.15}
    return ml_collections.ConfigDict(
        {"model": model, "loss": loss, "train": _train(batch_size=128, steps=1500, learning_rate=1e-3)}
    )


def _image_encoder(projection: int) -> dict:
    return {
        "image_size": 128,
        "patch_size": 16,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_layers": 4,
        "heads": 4,
        "projection_dim": projection,
    }


def _anchor() -> ml_collections.ConfigDict:
    unet = {
        "in_channels": 2 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": (128, 160),
        "attention_levels": (True, True),
        "layers_per_block": 1,
        "heads": 4,
        "cross_attention_dim": 128,
    }
    return ml_collections.ConfigDict(
        {
            # injection=False is what the paper compares the injection of the image-normal pair with.
            "model": {"unet": unet, "image_encoder": _image_encoder(128), "injection": True},
            # One step gives the mean of what may be there: closest to the truth, and smooth. More make it sharper.
            "sampling": {"sampler": "ddim", "num_steps": 1},
            "loss": {
                "prediction": "v",
                "zero_terminal_snr": True,
                "min_snr_gamma": 0.0,
                # Half of the examples are at pure noise, from where one step must find the views.
                "last_level_share": 0.5,
                "estimated_normals": 0.7,
                "drop_condition": 0.0,
                # Of how decoded views look, which takes records of pictures.
                "picture_weight": 0.0,
            },
            # At toy size Muon reached a lower loss on unseen objects than AdamW in as many steps.
            "train": _train(optimizer="muon", learning_rate=2e-3),
        }
    )


def _interpolation() -> ml_collections.ConfigDict:
    unet = {
        "in_channels": 2 * LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": (96, 128),
        "attention_levels": (True, True),
        "layers_per_block": 1,
        "heads": 4,
        "cross_attention_dim": 128,
        "added_time_dim": 64,
    }
    return ml_collections.ConfigDict(
        {
            "model": {"unet": unet, "image_encoder": _image_encoder(128)},
            "sampling": {"sampler": "euler", "num_steps": 1, "noise_max": 100.0, "anchor_noise": 0.05},
            "loss": {"log_noise_mean": 0.7, "log_noise_std": 1.6, "log_augmentation_mean": -3.0},
            "train": _train(steps=2350),
        }
    )


def _shrink(config: ml_collections.ConfigDict) -> None:
    """Toy width, a few steps."""
    config.autoencoder.model.block_out_channels = (32, 32, 32, 32)
    config.normals.model.block_out_channels = (32, 32, 32, 32)
    for stage in (config.anchor, config.interpolation):
        stage.model.unet.block_out_channels = (32, 32)
        stage.model.unet.attention_levels = (False, True)
        stage.model.image_encoder.num_layers = 1
        stage.sampling.num_steps = 2
    for stage in (config.autoencoder, config.normals, config.anchor, config.interpolation):
        stage.train.update(batch_size=4, steps=4, warmup=1, workers=0, log_every=2, checkpoint_every=2)
    fit = {"steps": 20, "steps_per_chunk": 10, "rays": 128}
    config.reconstruction = {"resolution": 32, "max_faces": 1000, "texture_size": 64, "fit": fit}
