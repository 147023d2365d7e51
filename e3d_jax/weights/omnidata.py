"""Omnidata's estimator of normals (arXiv 2110.04994) from its released checkpoint, ``omnidata_dpt_normal_v2.ckpt``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from e3d_jax.models import build, dpt
from e3d_jax.weights import checkpoints, diffusers, tensors

PREFIX = "model."  # of Lightning, which held the network as an attribute
COMPONENT = diffusers.Component(
    dpt.DPTNormalEstimator,
    arguments=dict,
    config=dict,
    renames=(
        ("vit.", "pretrained.model."),
        (".layers.", ".blocks."),
        ("reassemble.0.", "pretrained.act_postprocess3."),
        ("reassemble.1.", "pretrained.act_postprocess4."),
        (".project.", ".0.project.0."),
        (".embed.", ".3."),
        (".down.", ".4."),
        *((f"layer_rn.{i}.", f"scratch.layer{i + 1}_rn.") for i in range(4)),
        *((f"refinenet.{i}.", f"scratch.refinenet{i + 1}.") for i in range(4)),
        *((f".unit{i}.", f".resConfUnit{i}.") for i in (1, 2)),
        *((f"head_{place}.", f"scratch.output_conv.{i}.") for place, i in (("in", 0), ("mid", 2), ("out", 4))),
    ),
    # The classifier that the transformer was pretrained with, and a branch that the coarsest fusion does not use.
    ignored=("pretrained.model.norm.", "pretrained.model.head.", "scratch.refinenet4.resConfUnit1."),
)


def read(path: str | os.PathLike, arguments: Mapping[str, Any]) -> dict[str, tensors.Tensor]:
    """The checkpoint's tensors by dotted path of our parameter, not read yet.

    Args:
      path: the file.
      arguments: the model of the config's normals section.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged or holds more than tensors, the config's estimator is another network, or tensors are
        missing, unknown or of another shape (all are named).
    """
    module = nnx.eval_shape(lambda: build.build("normals", arguments, rngs=nnx.Rngs(0)))
    if not isinstance(module, dpt.DPTNormalEstimator):
        raise ValueError(
            f"{path} is a checkpoint of Omnidata's DPT-hybrid, and the config's normals are estimated by another "
            "network; give a config with architecture='dpt_hybrid'"
        )
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoints.read(Path(path)).items()}
    used = {name: tensor for name, tensor in stored.items() if not name.startswith(COMPONENT.ignored)}
    try:
        matched = diffusers.match(module, used, COMPONENT)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {".".join(map(str, name)): tensor for name, tensor in matched.items()}
