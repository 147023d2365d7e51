"""Initialize training of the full-size stages from the pretrained image and video models that Envision3D extends."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax.models import layers
from e3d_jax.weights import convert, diffusers, tensors

# By model: the stage that starts from it, the class of its U-Net, and the entries that the config.json of the stage's
# U-Net has in addition or instead.
SOURCES: dict[str, tuple[convert.Stage, str, dict[str, Any]]] = {
    "sd-image-variations": (
        "anchor",
        "UNet2DConditionModel",
        {"_class_name": "UNetMV2DConditionModel", "in_channels": 8, "projection_class_embeddings_input_dim": 12},
    ),
    "svd": ("interpolation", "UNetSpatioTemporalConditionModel", {"projection_class_embeddings_input_dim_": 6}),
}
# Layers for normals start as copies of those for colors.
COPIES = (("ff_normal.", "ff."), ("conv_in_normal.", "conv_in."), ("conv_out_normal.", "conv_out."))
NEW = ("class_embedding.", "attn_joint_mid.", "norm_joint_mid.")


def init_stage(
    source: str,
    pipeline: str | os.PathLike,
    out: str | os.PathLike,
    config: config_lib.SystemConfig,
    seed: int,
    normals: str | os.PathLike | None = None,
) -> None:
    """Make a weights folder with a stage and its autoencoder, to start training from.

    Args:
      source: a key of ``SOURCES``.
      pipeline: its folder or Hugging Face id.
      out: the folder to make.
      config: of a system; sizes come from the pipeline, everything else from here.
      seed: of the new layers.
      normals: normal estimator to add, which training of the anchor stage needs (:func:`convert.add_normals`).

    Raises:
      OSError: a file cannot be read, or the folder cannot be written.
      ValueError: the pipeline is not that model's, or its configurations and tensors do not fit together.
    """
    stage, expected, changes = SOURCES[source]
    path = convert.locate(pipeline)
    values = config.to_dict()
    contents: convert.Contents = {}
    for part in convert.PARTS[stage]:
        if part.folder == "unet":
            theirs = diffusers.read_config(path / part.folder)
            if (kind := theirs.get("_class_name")) != expected:
                raise ValueError(f"{path / part.folder} is a {kind}, but {source} has a {expected}; give that pipeline")
            theirs |= changes
            # The config's resolution is that of the training to come, not that of the pretrained model.
            theirs.pop("sample_size", None)
            grown = grow(path / part.folder, theirs, seed)
            found = {f"{part.attribute}.{'.'.join(map(str, name))}": tensor for name, tensor in grown.items()}
        else:
            theirs, found = convert.read_part(path, part)
        convert.set_model(values, part, theirs)
        contents.setdefault(part.component, {}).update(found)
    if normals is not None:
        convert.add_normals(contents, values, normals)
    convert.write_folder(out, contents, values)


def grow(folder: Path, config: Mapping[str, Any], seed: int) -> dict[diffusers.ParameterPath, tensors.Tensor]:
    """Return a U-Net's tensors in our layout, from a model that lacks some of its layers and input channels.

    Raises:
      ValueError: other tensors are missing, or some are unknown or of another shape; the first are named.
    """
    component = diffusers.component_of(config)
    shapes = nnx.eval_shape(lambda: diffusers.build(config, layers.Types(rngs=nnx.Rngs(0))))
    found = diffusers.read_tensors(folder, shapes, component)
    dtype = next(iter(found.values())).dtype
    fresh = diffusers.build(config, layers.Types(param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(seed)))
    for path, variable in diffusers.parameters(fresh).items():
        name, shape = diffusers.tensor_name(path, component), variable.shape
        expected = diffusers.released_shape(shape, path, component)
        for copy, original in COPIES:
            if name not in found and copy in name and name.replace(copy, original) in found:
                found[name] = found[name.replace(copy, original)]
        if name not in found and any(part in name for part in NEW):
            values = np.asarray(variable[...])
            found[name] = tensors.Tensor(
                expected, dtype, functools.partial(diffusers.to_released, values, path, component)
            )
        if name.startswith("conv_in") and name in found and len(expected) == 4:
            found[name] = _widen(found[name], expected)
    return diffusers.match(fresh, found, component)


def _widen(kernel: tensors.Tensor, shape: tuple[int, ...]) -> tensors.Tensor:
    """Return a convolution [out, in, h, w] with more input channels, which it ignores."""
    missing = shape[1] - kernel.shape[1]
    if missing <= 0 or (shape[0], *shape[2:]) != (kernel.shape[0], *kernel.shape[2:]):
        return kernel
    return kernel.map(shape, lambda array: np.pad(array, ((0, 0), (0, missing), (0, 0), (0, 0))))
