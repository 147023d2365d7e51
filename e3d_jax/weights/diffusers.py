"""Components in diffusers' folder format (``config.json`` and ``*.safetensors``) as our modules, without PyTorch.

Our attributes keep the released names, so a tensor's name follows from the path of a parameter by a few renamings,
and its values by a change of layout (channels first to channels last).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from e3d_jax.models import anchor, autoencoder, image_encoder, interpolation

Tensors = dict[str, np.ndarray]
ParameterPath = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Component:
    """How one kind of component is built and how its tensors are named.

    Attributes:
      module: its class.
      arguments: the arguments of the class from the contents of ``config.json``.
      renames: (ours, theirs) substrings of dotted names, applied in order.
      pointwise: our linear layers that are stored as 1x1 convolutions.
      ignored: tensors that may be in the files and carry no weights.
    """

    module: type[Any]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    renames: tuple[tuple[str, str], ...] = ((".to_out.", ".to_out.0."),)
    pointwise: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def _unet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    same = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
    levels = tuple(kind.startswith("CrossAttn") for kind in config["down_block_types"])
    return {name: config[name] for name in same} | {"attention_levels": levels}


def _anchor_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return _unet_arguments(config) | {
        # Despite its name the entry is the number of heads, as in Stable Diffusion 1.x.
        "heads": config["attention_head_dim"],
        "class_embed_dim": config["projection_class_embeddings_input_dim"],
        "norm_groups": config["norm_num_groups"],
    }


def _interpolation_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return _unet_arguments(config) | {
        "heads": config["num_attention_heads"],
        "added_time_dim": config["addition_time_embed_dim"],
        "class_embed_dim": config["projection_class_embeddings_input_dim_"],
    }


def _autoencoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    same = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block")
    return {name: config[name] for name in same} | {
        "scaling_factor": config["scaling_factor"],
        "norm_groups": config.get("norm_num_groups", 32),
    }


def _image_encoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "in_channels": config["num_channels"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "projection_dim": config["projection_dim"],
        "activation": config["hidden_act"],
    }


_TRANSFORMER = ((".to_out.", ".to_out.0."), *((f".{ff}.proj.", f".{ff}.net.0.proj.") for ff in ("ff", "ff_in")))
_TRANSFORMER += ((".ff_normal.proj.", ".ff_normal.net.0.proj."),)
_TRANSFORMER += tuple((f".{ff}.out.", f".{ff}.net.2.") for ff in ("ff", "ff_in", "ff_normal"))

COMPONENTS = {
    "UNetMV2DConditionModel": Component(
        anchor.AnchorUNet, _anchor_arguments, renames=_TRANSFORMER, pointwise=("proj_in", "proj_out")
    ),
    "UNetSpatioTemporalConditionModel": Component(
        interpolation.InterpolationUNet, _interpolation_arguments, renames=_TRANSFORMER
    ),
    "AutoencoderKL": Component(autoencoder.Autoencoder, _autoencoder_arguments),
    "AutoencoderKLTemporalDecoder": Component(
        autoencoder.Autoencoder, lambda config: _autoencoder_arguments(config) | {"temporal_decoder": True}
    ),
    "CLIPVisionModelWithProjection": Component(
        image_encoder.ImageEncoder,
        _image_encoder_arguments,
        renames=(
            *((f".to_{x}.", f".{x}_proj.") for x in "qkv"),
            (".to_out.", ".out_proj."),
            ("layers.", "vision_model.encoder.layers."),
            *((f"{x}_embedding", f"vision_model.embeddings.{x}_embedding") for x in ("class", "patch", "position")),
            *((f"{x}norm.", f"vision_model.{x}norm.") for x in ("pre_layr", "post_layer")),
        ),
        ignored=("vision_model.embeddings.position_ids",),
    ),
}


def component_of(config: Mapping[str, Any]) -> Component:
    """The kind of component that a ``config.json`` describes.

    Raises:
      ValueError: it is none that we know.
    """
    name = config.get("_class_name", "CLIPVisionModelWithProjection" if "hidden_act" in config else None)
    if name not in COMPONENTS:
        raise ValueError(f"the configuration describes a {name!r}; expected one of {', '.join(COMPONENTS)}")
    return COMPONENTS[name]


def tensor_name(path: ParameterPath, component: Component) -> str:
    """The released name of the parameter at ``path`` in our module."""
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(str(path[-1]), str(path[-1]))
    name = ".".join([*map(str, path[:-1]), leaf])
    for ours, theirs in component.renames:
        name = name.replace(ours, theirs)
    return name


def _to_ours(tensor: np.ndarray, path: ParameterPath, component: Component) -> np.ndarray:
    if path[-1] != "kernel":
        return tensor
    if len(path) > 1 and path[-2] in component.pointwise and tensor.shape[2:] == (1, 1):
        tensor = tensor[:, :, 0, 0]
    # [out, in, *window] to [*window, in, out].
    return tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim > 1 else tensor


def parameters(module: nnx.Module) -> dict[ParameterPath, Any]:
    """Every parameter of a module by its path."""
    return {path: variable for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))}


def assign(module: nnx.Module, tensors: Mapping[str, np.ndarray], component: Component) -> None:
    """Put tensors in the released layout into a module; each is cast to the type of its parameter.

    Raises:
      ValueError: tensors are missing, unknown or of another shape; all of them are named.
    """
    ours = {tensor_name(path, component): (path, variable) for path, variable in parameters(module).items()}
    theirs = {name: tensor for name, tensor in tensors.items() if name not in component.ignored}
    problems = [f"missing {name}" for name in sorted(ours.keys() - theirs.keys())]
    problems += [f"unknown {name}" for name in sorted(theirs.keys() - ours.keys())]
    values = {}
    for name in sorted(ours.keys() & theirs.keys()):
        path, variable = ours[name]
        value = _to_ours(theirs[name], path, component)
        if value.shape != variable.shape:
            problems.append(f"{name} has shape {theirs[name].shape}, in our layout {value.shape} not {variable.shape}")
        values[path] = (variable, value)
    if problems:
        raise ValueError(
            f"the weights do not fit {component.module.__name__} of this configuration; give the files that belong "
            f"to it: {'; '.join(problems)}"
        )
    state: dict[Any, Any] = {
        path: variable.replace(jnp.asarray(value, variable.dtype)) for path, (variable, value) in values.items()
    }
    nnx.update(module, nnx.from_flat_state(state))


def read_config(folder: Path | str) -> dict[str, Any]:
    """The contents of a component folder's ``config.json``.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not JSON.
    """
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy the component folder again") from error


def read_tensors(folder: Path | str) -> Tensors:
    """Every tensor of a component folder's safetensors files, one file or the shards that an index names.

    Raises:
      OSError: there is no such file, or a shard is missing.
      ValueError: a file is damaged.
    """
    folder = Path(folder)
    index = sorted(folder.glob("*.safetensors.index.json"))
    names = sorted(set(json.loads(index[0].read_text())["weight_map"].values())) if index else []
    files = [folder / name for name in names] or sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {folder}; give a component folder in diffusers' format")
    tensors: Tensors = {}
    for file in files:
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file} is not a whole safetensors file ({error}); copy it again") from error
    return tensors


def build(
    config: Mapping[str, Any], *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
) -> Any:
    """An untrained module of the size that a ``config.json`` describes.

    Raises:
      ValueError: it describes a component that we do not know, or lacks an entry.
    """
    component = component_of(config)
    try:
        arguments = component.arguments(config)
    except KeyError as error:
        raise ValueError(f"the configuration of {component.module.__name__} lacks {error}") from error
    return component.module(**arguments, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def load(folder: Path | str, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32) -> Any:
    """The module of a component folder with its weights: one of the five kinds in ``COMPONENTS``.

    Args:
      folder: holds ``config.json`` and safetensors files.
      dtype: of the computation.
      param_dtype: of the weights in memory.

    Raises:
      OSError: a file cannot be read.
      ValueError: configuration and weights do not fit together.
    """
    config = read_config(folder)
    module = nnx.eval_shape(lambda: build(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
    assign(module, read_tensors(folder), component_of(config))
    return module
