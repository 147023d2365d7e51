"""Networks in diffusers' folder format (``config.json`` and ``*.safetensors``) as our modules, without PyTorch.

Our attributes keep the released names, so that a tensor's name follows from the path of a parameter by a few renamings
and its values by a change of layout (channels first to channels last).
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from e3d_jax import settings
from e3d_jax.models import anchor, autoencoder, image_encoder, interpolation, layers, unet
from e3d_jax.weights import diffusers_defaults, prefixes, variants
from e3d_jax.weights import tensors as tensor_files

ParameterPath = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Component:
    """How one kind of network is built and how its tensors are named.

    Attributes:
      module: its class.
      spec: the class of its settings.
      arguments: from the contents of ``config.json`` to the settings as a mapping.
      config: from the settings to the entries of ``config.json`` that depend on them.
      renames: (ours, theirs) substrings of dotted names, applied in order.
      pointwise: our linear layers that the files store as 1x1 convolutions.
      ignored: patterns of tensors in the files that are not weights of the network.
      outdated: (old, new) substrings of released names, for files with old ones.
    """

    module: type[Any]
    spec: type[settings.Settings]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    config: Callable[[Any], dict[str, Any]]
    renames: tuple[tuple[str, str], ...] = ((".to_out.", ".to_out.0."),)
    pointwise: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    outdated: tuple[tuple[str, str], ...] = ()


UNET = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
AUTOENCODER = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block")
# (ours, theirs)
ANCHOR = {
    # Despite its name, this entry is the number of heads, as in Stable Diffusion 1.x.
    "heads": "attention_head_dim",
    "class_embed_dim": "projection_class_embeddings_input_dim",
    "norm_groups": "norm_num_groups",
}
INTERPOLATION = {
    "heads": "num_attention_heads",
    "added_time_dim": "addition_time_embed_dim",
    "class_embed_dim": "projection_class_embeddings_input_dim_",
}
IMAGE_ENCODER = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "in_channels": "num_channels",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "projection_dim": "projection_dim",
    "activation": "hidden_act",
}

# What classes of EMA store beside weights.
COUNTERS = ("*n_averaged", "*num_updates", "*optimization_step", "*ema.decay", "*ema.initted")


def _unet_arguments(config: Mapping[str, Any], more: Mapping[str, str]) -> dict[str, Any]:
    levels = [kind.startswith("CrossAttn") for kind in config["down_block_types"]]
    ours = {name: config[name] for name in UNET} | {name: config[theirs] for name, theirs in more.items()}
    return ours | {"attention_levels": levels}


def _unet_config(spec: unet.DenoiserSpec, more: Mapping[str, str], kind: str, plain: str) -> dict[str, Any]:
    def blocks(direction: str) -> list[str]:
        with_attention, without = f"CrossAttn{direction}Block{kind}", f"{direction}Block{plain}"
        return [with_attention if attention else without for attention in spec.attention_levels]

    theirs = {name: getattr(spec, name) for name in UNET} | {name: getattr(spec, ours) for ours, name in more.items()}
    return theirs | {"down_block_types": blocks("Down"), "up_block_types": blocks("Up")[::-1]}


def _anchor_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return _unet_arguments(config, ANCHOR)


def _anchor_config(spec: anchor.AnchorUNetSpec) -> dict[str, Any]:
    return _unet_config(spec, ANCHOR, "MV2D", "2D")


def _interpolation_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return _unet_arguments(config, INTERPOLATION)


def _interpolation_config(spec: interpolation.InterpolationUNetSpec) -> dict[str, Any]:
    theirs = _unet_config(spec, INTERPOLATION, "SpatioTemporal", "SpatioTemporal")
    return theirs | {"projection_class_embeddings_input_dim": 3 * spec.added_time_dim}


def _autoencoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in AUTOENCODER} | {
        "scaling_factor": float(config["scaling_factor"]),
        "norm_groups": config.get("norm_num_groups", 32),
    }


def _temporal_autoencoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return _autoencoder_arguments(config) | {"temporal_decoder": True}


def _temporal_autoencoder_config(spec: autoencoder.AutoencoderSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in (*AUTOENCODER, "scaling_factor")} | {
        "down_block_types": ["DownEncoderBlock2D"] * len(spec.block_out_channels),
    }


def _autoencoder_config(spec: autoencoder.AutoencoderSpec) -> dict[str, Any]:
    return _temporal_autoencoder_config(spec) | {
        "norm_num_groups": spec.norm_groups,
        "up_block_types": ["UpDecoderBlock2D"] * len(spec.block_out_channels),
    }


def _image_encoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: config[theirs] for ours, theirs in IMAGE_ENCODER.items()}


def _image_encoder_config(spec: image_encoder.ImageEncoderSpec) -> dict[str, Any]:
    return {theirs: getattr(spec, ours) for ours, theirs in IMAGE_ENCODER.items()}


_TRANSFORMER = ((".to_out.", ".to_out.0."), *((f".{ff}.proj.", f".{ff}.net.0.proj.") for ff in ("ff", "ff_in")))
_TRANSFORMER += ((".ff_normal.proj.", ".ff_normal.net.0.proj."),)
_TRANSFORMER += tuple((f".{ff}.out.", f".{ff}.net.2.") for ff in ("ff", "ff_in", "ff_normal"))

COMPONENTS = {
    "UNetMV2DConditionModel": Component(
        anchor.AnchorUNet,
        anchor.AnchorUNetSpec,
        _anchor_arguments,
        _anchor_config,
        renames=_TRANSFORMER,
        pointwise=("proj_in", "proj_out"),
    ),
    "UNetSpatioTemporalConditionModel": Component(
        interpolation.InterpolationUNet,
        interpolation.InterpolationUNetSpec,
        _interpolation_arguments,
        _interpolation_config,
        renames=_TRANSFORMER,
    ),
    "AutoencoderKL": Component(
        autoencoder.Autoencoder,
        autoencoder.AutoencoderSpec,
        _autoencoder_arguments,
        _autoencoder_config,
        outdated=(
            (".query.", ".to_q."),
            (".key.", ".to_k."),
            (".value.", ".to_v."),
            (".proj_attn.", ".to_out.0."),
        ),
    ),
    "AutoencoderKLTemporalDecoder": Component(
        autoencoder.Autoencoder,
        autoencoder.AutoencoderSpec,
        _temporal_autoencoder_arguments,
        _temporal_autoencoder_config,
    ),
    "CLIPVisionModelWithProjection": Component(
        image_encoder.ImageEncoder,
        image_encoder.ImageEncoderSpec,
        _image_encoder_arguments,
        _image_encoder_config,
        renames=(
            *((f".to_{x}.", f".{x}_proj.") for x in "qkv"),
            (".to_out.", ".out_proj."),
            ("layers.", "vision_model.encoder.layers."),
            *((f"{x}_embedding", f"vision_model.embeddings.{x}_embedding") for x in ("class", "patch", "position")),
            *((f"{x}norm.", f"vision_model.{x}norm.") for x in ("pre_layr", "post_layer")),
        ),
        # Files of a whole CLIP hold its text encoder, too.
        ignored=("*position_ids", "*text_model.*", "*text_projection.*", "*logit_scale"),
    ),
}


def kind_of(config: Mapping[str, Any]) -> str | None:
    """Return the class that a ``config.json`` names; a key of ``COMPONENTS`` if it is supported."""
    if "_class_name" in config:
        return config["_class_name"]
    clip = "hidden_act" in config or config.get("model_type") in ("clip", "clip_vision_model")
    return "CLIPVisionModelWithProjection" if clip else None


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``config.json`` with the defaults of diffusers or transformers for entries that it lacks.

    Files of a whole CLIP describe the image encoder in a section of its own.
    """
    kind = kind_of(config)
    absent = diffusers_defaults.ABSENT.get(kind or "", {})
    given = {name: value for name, value in config.items() if value is not None or name not in absent}
    sections = [config.get(name) for name in ("vision_config", "vision_config_dict")]
    nested = [section for section in sections if kind == "CLIPVisionModelWithProjection" and section]
    return functools.reduce(operator.or_, map(dict, nested), absent) | given


def component_of(config: Mapping[str, Any]) -> Component:
    """Return the kind of network that a ``config.json`` describes.

    Raises:
      ValueError: it is not supported.
    """
    name = kind_of(config)
    if name is None:
        raise ValueError(f"config.json names no class (_class_name); expected one of {', '.join(COMPONENTS)}")
    if name not in COMPONENTS:
        raise ValueError(f"config.json describes a {name!r}; expected one of {', '.join(COMPONENTS)}")
    return COMPONENTS[name]


def tensor_name(path: ParameterPath, component: Component) -> str:
    """Return the released name of the parameter at ``path`` in our module."""
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(str(path[-1]), str(path[-1]))
    name = ".".join([*map(str, path[:-1]), leaf])
    return _replace(name, component.renames)


def _replace(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for old, new in renames:
        name = name.replace(old, new)
    return name


def released_shape(shape: tuple[int, ...], path: ParameterPath, component: Component) -> tuple[int, ...]:
    """Return the shape that a parameter of ours has in the files: [*window, in, out] becomes [out, in, *window]."""
    if path[-1] != "kernel":
        return shape
    window = (1, 1) if path[-2] in component.pointwise else shape[:-2]
    return (shape[-1], shape[-2], *window)


def to_ours(tensor: np.ndarray, path: ParameterPath, component: Component) -> np.ndarray:
    """Return a tensor of the files in our layout."""
    if path[-1] != "kernel":
        return tensor
    if path[-2] in component.pointwise:
        tensor = tensor[:, :, 0, 0]
    return tensor.transpose(*range(2, tensor.ndim), 1, 0)


def to_released(array: np.ndarray, path: ParameterPath, component: Component) -> np.ndarray:
    """Return a tensor of ours in the layout of the files; the inverse of :func:`to_ours`."""
    if path[-1] != "kernel":
        return array
    array = array.transpose(-1, -2, *range(array.ndim - 2))
    return array[..., None, None] if path[-2] in component.pointwise else array


def parameters(module: nnx.Module) -> dict[ParameterPath, Any]:
    """Return every parameter of a module by its path."""
    return {path: variable for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))}


def match(
    module: nnx.Module, tensors: Mapping[str, tensor_files.Tensor], component: Component
) -> dict[ParameterPath, tensor_files.Tensor]:
    """Return the tensors of the files in our layout by path of their parameter; their numbers are not read yet.

    Raises:
      ValueError: tensors are missing, unknown or of another shape; the first of them are named.
    """
    ours = {tensor_name(path, component): (path, variable) for path, variable in parameters(module).items()}
    problems = [f"missing {name}" for name in sorted(ours.keys() - tensors.keys())]
    problems += [f"unknown {name}" for name in sorted(tensors.keys() - ours.keys())]
    matched = {}
    for name in sorted(ours.keys() & tensors.keys()):
        path, variable = ours[name]
        expected = released_shape(variable.shape, path, component)
        if tensors[name].shape != expected:
            problems.append(f"{name} has shape {tensors[name].shape}, expected {expected}")
        matched[path] = tensors[name].map(variable.shape, functools.partial(to_ours, path=path, component=component))
    if problems:
        raise ValueError(
            f"the weights do not fit the {component.module.__name__} of the configuration; give the files that belong "
            f"to it: {variants.shorten(problems, '; ')}"
        )
    return matched


def read_config(folder: Path | str) -> dict[str, Any]:
    """Read the ``config.json`` of a component folder, and :func:`complete` it.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not a JSON object.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"missing file {path}; give a whole pipeline in diffusers' format")
    try:
        return complete(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a JSON object ({error}); copy the component folder again") from error


def read_component(
    folder: Path | str,
) -> tuple[dict[str, Any], nnx.Module, dict[ParameterPath, tensor_files.Tensor]]:
    """Return ``config.json``, a module of shapes, and tensors (in our layout, not read yet) of a component folder.

    Raises:
      OSError: a file cannot be read.
      ValueError: ``config.json`` and weights do not fit together, or a file is damaged.
    """
    config = read_config(folder)
    try:
        component = component_of(config)
        module = nnx.eval_shape(lambda: build(config, layers.Types(rngs=nnx.Rngs(0))))
        return config, module, match(module, read_tensors(folder, module, component), component)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def read_tensors(folder: Path | str, module: nnx.Module, component: Component) -> dict[str, tensor_files.Tensor]:
    """Return the tensors of a component folder by their released names, without common prefixes; not read yet.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged, or there are several variants of the weights.
    """
    tensors = tensor_files.read_files(variants.find_files(folder), (*component.ignored, *COUNTERS))
    current = {_replace(name.replace("_orig_mod.", ""), component.outdated): x for name, x in tensors.items()}
    return prefixes.strip(current, {tensor_name(path, component) for path in parameters(module)})


def build(config: Mapping[str, Any], types: layers.Types) -> Any:
    """Build an untrained module of the size that a ``config.json`` describes.

    Raises:
      ValueError: the kind of network is not supported, or an entry is missing or invalid.
    """
    config = complete(config)
    component = component_of(config)
    name = component.module.__name__
    try:
        spec = settings.parse(component.spec, component.arguments(config))
        return component.module(spec, types)
    except KeyError as error:
        raise ValueError(f"config.json of {name} lacks {error}") from error
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"config.json does not describe a valid {name} ({reason})") from error


def load(folder: Path | str, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32) -> Any:
    """Load the module of a component folder with its weights; its kind is one of ``COMPONENTS``.

    Args:
      folder: holds ``config.json`` and safetensors files.
      dtype: of the computation.
      param_dtype: of the weights in memory.

    Raises:
      OSError: a file cannot be read.
      ValueError: ``config.json`` and weights do not fit together.
    """
    config, _, tensors = read_component(folder)
    module = nnx.eval_shape(lambda: build(config, layers.Types(dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))))
    for path, variable in parameters(module).items():
        tensor_files.fill(variable, tensors[path])
    return module
