"""The released system's topology at toy width with random float16 weights, from ``fixtures/released_topology``."""

import json
import lzma
from pathlib import Path

import jax.numpy as jnp

from e3d_jax.weights import diffusers

FIXTURE = Path(__file__).parent / "fixtures" / "released_topology"
# Folders of the two pipelines, as the fixture names them.
PIPELINES = {
    "anchor": {"unet": "anchor_unet", "vae": "autoencoder", "image_encoder": "image_encoder"},
    "interpolation": {
        "unet": "interpolation_unet",
        "vae": "temporal_autoencoder",
        "image_encoder": "interpolation_image_encoder",
    },
}


def write(name, folder):
    """Write a component's folder in diffusers' format."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((FIXTURE / "configs.json").read_text())[name]
    (folder / "config.json").write_text(json.dumps(config))
    weights = lzma.decompress((FIXTURE / f"{name}.safetensors.xz").read_bytes())
    (folder / "model.safetensors").write_bytes(weights)


def load(name, folder, dtype=jnp.float32):
    """Load a component through the folder format."""
    write(name, folder)
    return diffusers.load(folder, dtype=dtype, param_dtype=dtype)


def write_pipelines(folder):
    """Write both pipelines; returns their folders by stage."""
    for stage, components in PIPELINES.items():
        for name, source in components.items():
            write(source, folder / stage / name)
        (folder / stage / "model_index.json").write_text("{}")
    return {stage: folder / stage for stage in PIPELINES}
