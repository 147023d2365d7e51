"""Omnidata's normal estimator (arXiv 2110.04994) from its released checkpoint, ``omnidata_dpt_normal_v2.ckpt``."""

import os
from pathlib import Path

from flax import nnx

from e3d_jax import settings
from e3d_jax.models import dpt, layers
from e3d_jax.stages import normals
from e3d_jax.weights import diffusers, tensors, torch_pickle

ARCHITECTURE = "dpt_hybrid"
PREFIX = "model."  # Lightning held the network under this attribute.
COMPONENT = diffusers.Component(
    dpt.DPTNormalEstimator,
    dpt.DPTSpec,
    arguments=dict,
    config=settings.to_dict,
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
    # The classifier of the transformer's pretraining, and a branch that the coarsest fusion does not use.
    ignored=("pretrained.model.norm.", "pretrained.model.head.", "scratch.refinenet4.resConfUnit1."),
)


def read(path: str | os.PathLike, model: normals.Model) -> dict[str, tensors.Tensor]:
    """Return the checkpoint's tensors by dotted path of our parameter; their numbers are not read yet.

    Args:
      path: the file.
      model: settings of the normal estimator in the system's config.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is damaged or holds more than tensors; the config's estimator is another network; tensors are
        missing, unknown or of another shape (all are named).
    """
    if model.architecture != ARCHITECTURE:
        raise ValueError(
            f"{path} is a checkpoint of Omnidata's DPT-hybrid, but the config estimates normals with another network; "
            f"give a config with normals.model.architecture={ARCHITECTURE!r}"
        )
    module = nnx.eval_shape(lambda: dpt.DPTNormalEstimator(model.network, layers.Types(rngs=nnx.Rngs(0))))
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in torch_pickle.read(Path(path)).items()}
    used = {name: tensor for name, tensor in stored.items() if not name.startswith(COMPONENT.ignored)}
    try:
        matched = diffusers.match(module, used, COMPONENT)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {".".join(map(str, name)): tensor for name, tensor in matched.items()}
