"""Weights folders: one system's weights as safetensors, with the config that they belong to.

    config.json                           the system's config (:mod:`configs`), as JSON
    <component>-00001-of-00002.safetensors  tensors named by their path in the module, bfloat16

Components are those of :mod:`e3d_jax.models.build`; training adds them to the folder one by one.
"""

import json
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import safetensors
import safetensors.flax
from flax import nnx

from e3d_jax.models import build

CONFIG = "config.json"
BUNDLED = pathlib.Path(__file__).parent
# Small shards keep clear of the file size limits of code hosts.
SHARD_BYTES = 15 * 1000**2


def resolve(name_or_folder: str | os.PathLike) -> pathlib.Path:
    """The folder of bundled weights ("mini"), or of a path.

    Raises:
      FileNotFoundError: there is no such folder, or it holds no weights.
    """
    bundled, given = BUNDLED / str(name_or_folder), pathlib.Path(name_or_folder)
    folder = bundled if (bundled / CONFIG).is_file() else given
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"no weights at {str(name_or_folder)!r}: expected 'mini' or a folder with {CONFIG} and safetensors, "
            "such as WORKDIR/weights of train.py"
        )
    return folder


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The config that the weights of a folder belong to.

    Raises:
      ValueError: the file is no JSON map.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        return dict(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}); restore the weights folder") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file under its final name only once it is whole."""
    temporary = path.with_name(path.name + ".incomplete")
    temporary.write_text(text)
    os.replace(temporary, path)


def save(folder: str | os.PathLike, component: build.Component, module: nnx.Module, config: dict[str, Any]) -> None:
    """Add a component's weights (rounded to bfloat16) and its part of the config to a weights folder."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Any]] = [{}]
    used = 0
    for name, parameter in sorted(_parameters(module).items()):
        tensor = jnp.asarray(parameter[...], jnp.bfloat16)
        if used and used + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    names = [f"{component}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, tensors in zip(names, shards, strict=True):
        safetensors.flax.save_file(tensors, folder / (name + ".incomplete"))
    for stale in _shards(folder, component):
        stale.unlink()
    for name in names:
        os.replace(folder / (name + ".incomplete"), folder / name)
    known = read_config(folder) if (folder / CONFIG).is_file() else {}
    trained = {k: v for k, v in known.items() if k in build.COMPONENTS and _shards(folder, k)}
    write_text(folder / CONFIG, json.dumps({**config, **trained, component: config[component]}, indent=2))


def load(folder: pathlib.Path, component: build.Component, module: nnx.Module) -> None:
    """Fill a module with a component's weights, cast to the module's parameter types.

    Raises:
      FileNotFoundError: the folder lacks the component.
      ValueError: a file is damaged, or tensors are missing, left over or of another shape; names every one.
    """
    files = _shards(folder, component)
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights of the {component}; train that stage first")
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            tensors.update(safetensors.flax.load_file(file))
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}); restore the weights folder") from error
    parameters = _parameters(module)
    problems = [f"missing {name}" for name in sorted(parameters.keys() - tensors.keys())]
    problems += [f"left over {name}" for name in sorted(tensors.keys() - parameters.keys())]
    for name in sorted(parameters.keys() & tensors.keys()):
        if parameters[name].shape != tensors[name].shape:
            problems.append(f"{name} is {tensors[name].shape}, expected {parameters[name].shape}")
    if problems:
        raise ValueError(f"{folder}: the {component}'s weights are of another config: {'; '.join(problems)}")
    for name, parameter in parameters.items():
        parameter.set_value(tensors[name].astype(parameter.dtype))


def _parameters(module: nnx.Module) -> dict[str, nnx.Variable]:
    """A module's parameters by dotted path."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): parameter for path, parameter in flat}


def _shards(folder: pathlib.Path, component: str) -> list[pathlib.Path]:
    return sorted(folder.glob(f"{component}-?????-of-?????.safetensors"))
