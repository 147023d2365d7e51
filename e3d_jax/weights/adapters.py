"""Low-rank adapters as diffusers and PEFT store them: pairs ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``.

Layers have their released names, after the part of the pipeline: ``unet.down_blocks.0...attn1.to_q``. A component that
is not part of a released pipeline has names of its own.
"""

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from e3d_jax import files, settings
from e3d_jax.weights import convert, diffusers, folder, tensors

FILE = "pytorch_lora_weights.safetensors"
# Entry of a file's metadata.
SETTINGS = "lora_adapter_metadata"
# Names of networks that are not part of a released pipeline.
OWN = diffusers.Component(object, settings.Settings, dict, dict, renames=())


def write(path: pathlib.Path, component: str, adapters: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write adapters to a file.

    Args:
      path: of the file; folders on the way are made.
      component: that they belong to.
      adapters: by dotted path of the kernel [i o], the matrices "a" [i r] and "b" [r o], whose product is added to it.

    Raises:
      OSError: the file cannot be written.
      ValueError: a matrix is not finite.
    """
    contents = {}
    for name, matrices in adapters.items():
        layer, layout, kind = _released(component, name)
        for letter in "ab":
            array = np.asarray(matrices[letter], np.float32)
            shape = diffusers.released_shape(array.shape, layout, kind)
            change = functools.partial(diffusers.to_released, path=layout, component=kind)
            tensor = tensors.Tensor(array.shape, array.dtype, functools.partial(np.asarray, array))
            contents[f"{layer}.lora_{letter.upper()}.weight"] = tensor.map(shape, change)
    files.make_folder(path.parent)
    tensors.write(path, contents)


def merge(weights: str | os.PathLike, component: str, path: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write a weights folder with the changes of adapters added to the kernels of a component.

    Args:
      weights: weights folder, or the name of bundled weights.
      component: that the adapters belong to.
      path: their file.
      out: the folder to make.

    Raises:
      OSError: a file cannot be read or written.
      ValueError: the file holds no adapters of the component, or more than pairs of matrices.
    """
    source = folder.resolve(weights)
    config = folder.read_config(source)
    contents, pairs = folder.read(source, component), tensors.read_files([pathlib.Path(path)])
    scale = _scale(pathlib.Path(path))
    if not pairs:
        raise ValueError(f"{path} holds no adapters")
    for name, kernel in contents.items():
        if not name.endswith(".kernel"):
            continue
        layer, layout, kind = _released(component, name)
        a, b = (pairs.pop(f"{layer}.lora_{letter}.weight", None) for letter in "AB")
        if a is None and b is None:
            continue
        fitting = a and b and a.shape[0] == b.shape[1] and (a.shape[1], b.shape[0]) == kernel.shape
        if not fitting:
            raise ValueError(f"{path}: the matrices of {layer} do not fit its kernel of shape {kernel.shape}")

        def changed(kernel=kernel, a=a, b=b, layout=layout, kind=kind) -> np.ndarray:
            first, second = (diffusers.to_ours(matrix.read().astype(np.float32), layout, kind) for matrix in (a, b))
            return (kernel.read().astype(np.float32) + scale * first @ second).astype(kernel.dtype)

        contents[name] = tensors.Tensor(kernel.shape, kernel.dtype, changed)
    if pairs:
        raise ValueError(
            f"{path} holds {next(iter(pairs))}, which belongs to no linear layer of the {component} in {source}; give "
            "adapters of this component"
        )
    for name in config.components:
        if folder.has(source, name):
            found = contents if name == component else folder.read(source, name)
            folder.write(out, name, found, config, folder.SHARD_BYTES)


def _released(component: str, kernel: str) -> tuple[str, diffusers.ParameterPath, diffusers.Component]:
    """Return the name that a layer has in a file, its path in the network, and the kind of that."""
    parts = [part for parts in convert.PARTS.values() for part in parts if part.component == component]
    for part in parts:
        prefix = f"{part.attribute}." if part.attribute else ""
        if kernel.startswith(prefix):
            kind, path = diffusers.COMPONENTS[part.kind], tuple(kernel.removeprefix(prefix).split("."))
            return f"{part.folder}.{diffusers.tensor_name(path, kind).removesuffix('.weight')}", path, kind
    path = tuple(kernel.split("."))
    return ".".join(path[:-1]), path, OWN


def _scale(path: pathlib.Path) -> float:
    """Return the factor of the products.

    Raises:
      ValueError: layers have different ones, or it is not the usual one.
    """
    with safetensors.safe_open(path, framework="numpy") as opened:
        given: dict[str, Any] = json.loads((opened.metadata() or {}).get(SETTINGS, "{}"))
    values = {name.rpartition(".")[2]: value for name, value in given.items()}
    if unknown := [name for name in ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora") if values.get(name)]:
        raise ValueError(f"{path} uses {unknown[0]}, which is not supported; merge it with PEFT")
    return values["lora_alpha"] / values["r"] if "lora_alpha" in values else 1.0
