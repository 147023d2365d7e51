"""Weights folders: a system's weights as safetensors, with the config that they belong to.

    config.json                             the system's config (:mod:`e3d_jax.config`), as JSON
    <component>-00001-of-00002.safetensors  tensors named by their path in the module, in bfloat16, or their kernels in
                                            8 bits (:func:`e3d_jax.weights.tensors.quantized`)

Training adds the components to the folder one by one.
"""

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax import files, settings, stages
from e3d_jax.models import layers
from e3d_jax.weights import tensors
from e3d_jax.weights.places import CONFIG as CONFIG
from e3d_jax.weights.places import resolve as resolve

# Small shards stay below the file size limits of code hosts.
SHARD_BYTES = 15 * 1000**2


def read_config(folder: pathlib.Path) -> config_lib.SystemConfig:
    """Read the config that the weights of a folder belong to.

    Raises:
      ValueError: the file is not JSON, or not the config of a system.
    """
    try:
        return stages.parse_config(json.loads((folder / CONFIG).read_text()))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged or of another version: {error}") from error


def save(folder: str | os.PathLike, component: str, module: nnx.Module, config: config_lib.SystemConfig) -> None:
    """Add a component's weights (rounded to bfloat16) and its part of the config to a weights folder."""
    bfloat16 = np.dtype(jnp.bfloat16)
    rounded = {
        name: tensors.Tensor(parameter.shape, bfloat16, functools.partial(np.asarray, parameter[...], bfloat16))
        for name, parameter in sorted(_parameters(module).items())
    }
    write(folder, component, rounded, config, SHARD_BYTES)


def write(
    folder: str | os.PathLike,
    component: str,
    contents: Mapping[str, tensors.Tensor],
    config: config_lib.SystemConfig,
    shard_bytes: int,
) -> None:
    """Add a component's tensors and its part of the config to a weights folder.

    Raises:
      OSError: the folder cannot be written.
      ValueError: a tensor is not finite, or the folder holds weights of other views.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = tensors.split(contents, shard_bytes)
    names = [f"{component}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        tensors.write(folder / name, shard)
    for stale in _shards(folder, component):
        if stale.name not in names:
            stale.unlink()
    check_same_views(folder, config)
    merged = config.to_dict()
    if (folder / CONFIG).is_file():
        stored = read_config(folder).to_dict()
        merged |= {name: stored[name] for name in stored if _shards(folder, name)}
    merged[component] = config[component].to_dict()
    files.write_atomically(folder / CONFIG, json.dumps(merged, indent=2).encode())


def quantize(source: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write all components of a weights folder with their kernels in 8 bits, half the size.

    Args:
      source: weights folder, or bundled weights.
      out: folder to make.

    Raises:
      FileNotFoundError, ValueError: ``source`` is not a weights folder, or is damaged.
      OSError: ``out`` cannot be written.
    """
    source = resolve(source)
    config = read_config(source)
    for component in config.components:
        if has(source, component):
            write(out, component, tensors.quantized(read(source, component)), config, SHARD_BYTES)


def check_same_views(folder: pathlib.Path, config: config_lib.SystemConfig) -> None:
    """Refuse a weights folder of a system with other views; one that does not exist yet will do.

    Raises:
      ValueError: the size or the layout of its views differs.
    """
    if not (folder / CONFIG).is_file():
        return
    stored, given = (
        {name: value for name, value in each.identity().items() if name == "size" or name.startswith("layout.")}
        for each in (read_config(folder), config)
    )
    if different := settings.differences(stored, given):
        raise ValueError(f"{folder} holds weights of other views: {different[0]}; choose another folder")


def has(folder: str | os.PathLike, component: str) -> bool:
    """Return whether a folder holds a component's weights."""
    return bool(_shards(pathlib.Path(folder), component))


def read(folder: pathlib.Path, component: str) -> dict[str, tensors.Tensor]:
    """Return a component's tensors by dotted path of their parameter; their numbers are not read yet.

    Raises:
      FileNotFoundError: the folder lacks the component.
      ValueError: a file is damaged.
    """
    shards = _shards(folder, component)
    if not shards:
        raise FileNotFoundError(f"{folder} has no weights of component {component}; train that stage first")
    return tensors.read_files(shards)


def load(folder: pathlib.Path, component: str, module: nnx.Module) -> None:
    """Fill a module with a component's weights, one by one, cast to the module's parameter types.

    Args:
      folder: weights folder.
      component: its name.
      module: its parameters may be shapes only, from ``nnx.eval_shape``. Each keeps its sharding, so that a module
        larger than one device's memory is filled in place.

    Raises:
      FileNotFoundError: the folder lacks the component.
      ValueError: a file is damaged, or tensors are missing, unknown or of another shape; all are named.
    """
    stored = read(folder, component)
    parameters = _parameters(module)
    problems = [f"missing {name}" for name in sorted(parameters.keys() - stored.keys())]
    problems += [f"unknown {name}" for name in sorted(stored.keys() - parameters.keys())]
    for name in sorted(parameters.keys() & stored.keys()):
        if parameters[name].shape != stored[name].shape:
            problems.append(f"{name} has shape {stored[name].shape}, expected {parameters[name].shape}")
    if problems:
        raise ValueError(f"{folder}: the weights of {component} belong to another config: {'; '.join(problems)}")
    for name, parameter in parameters.items():
        tensors.fill(parameter, stored[name])


def restore(
    folder: pathlib.Path,
    component: str,
    config: config_lib.SystemConfig,
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> nnx.Module:
    """Build a component of a system's config and fill it with its stored weights.

    Raises:
      FileNotFoundError, ValueError: see :func:`load`.
    """
    # Only shapes: initial values would be computed just to be thrown away.
    module = nnx.eval_shape(
        lambda: stages.build(config, component, layers.Types(dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
    )
    load(folder, component, module)
    return module


def _parameters(module: nnx.Module) -> dict[str, nnx.Variable]:
    """Return a module's parameters by dotted path."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): parameter for path, parameter in flat}


def _shards(folder: pathlib.Path, component: str) -> list[pathlib.Path]:
    return sorted(folder.glob(f"{component}-?????-of-?????.safetensors"))
