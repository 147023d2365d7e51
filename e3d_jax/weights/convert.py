"""Convert whole pipelines in diffusers' folder format to weights folders and back."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import numpy as np
from flax import nnx

from e3d_jax import config as config_lib
from e3d_jax import settings, stages
from e3d_jax.models import layers
from e3d_jax.weights import diffusers, diffusers_defaults, folder, omnidata, tensors

Stage = Literal["anchor", "interpolation"]
Contents = dict[str, dict[str, tensors.Tensor]]
# As diffusers splits them.
SHARD_BYTES = 5 * 1000**3


@dataclasses.dataclass(frozen=True)
class Part:
    """One folder of a pipeline, and which network of ours it becomes.

    Attributes:
      folder: its name in the pipeline.
      kind: the class in its ``config.json``, a key of :data:`diffusers.COMPONENTS`.
      component: name of our component.
      network: name of the network's settings in the component's ``model`` section.
      attribute: of the network in the component; empty if it is the whole component.
    """

    folder: str
    kind: str
    component: str
    network: str
    attribute: str = ""


ENCODER = "CLIPVisionModelWithProjection"
PARTS: dict[Stage, tuple[Part, ...]] = {
    "anchor": (
        Part("unet", "UNetMV2DConditionModel", "anchor", "unet", "unet"),
        Part("image_encoder", ENCODER, "anchor", "image_encoder", "image_encoder"),
        Part("vae", "AutoencoderKL", "autoencoder", "kl"),
    ),
    "interpolation": (
        Part("unet", "UNetSpatioTemporalConditionModel", "interpolation", "unet", "unet"),
        Part("image_encoder", ENCODER, "interpolation", "image_encoder", "image_encoder"),
        Part("vae", "AutoencoderKLTemporalDecoder", "interpolation_autoencoder", "kl"),
    ),
}


def locate(pipeline: str | os.PathLike) -> Path:
    """Return the folder of a pipeline, downloaded if it is the id of a Hugging Face repository.

    Raises:
      OSError: there is no such folder or repository, or it is not a pipeline.
    """
    path, hub = Path(pipeline), str(pipeline).count("/") == 1 and not str(pipeline).startswith((".", "/"))
    if not path.exists() and hub:
        try:
            patterns = ["*.json", "*/*.json", "*/*.safetensors"]
            path = Path(huggingface_hub.snapshot_download(str(pipeline), allow_patterns=patterns))
        except Exception as error:  # Its many types, from no network to a wrong name, share no base.
            reason = str(error).strip().split("\n")[0]
            raise OSError(
                f"{pipeline} is not a folder and cannot be downloaded from Hugging Face ({reason})"
            ) from error
    if not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{path} is not a pipeline: it has no model_index.json; give a folder in diffusers' format"
        )
    return path


def read_part(pipeline: Path, part: Part) -> tuple[dict[str, Any], dict[str, tensors.Tensor]]:
    """Return ``config.json`` of a part of a pipeline, and its tensors by their names in our component.

    Raises:
      OSError: a file cannot be read.
      ValueError: the part has another class, or :func:`diffusers.read_component` refuses it.
    """
    config = diffusers.read_config(pipeline / part.folder)
    kind = diffusers.kind_of(config)
    if kind != part.kind:
        found = f"a {kind}" if kind else "of no known class"
        raise ValueError(
            f"{pipeline / part.folder} is {found}, but component {part.component} needs a {part.kind}; "
            "give the stage-1 pipeline as anchor and the stage-2 pipeline as interpolation"
        )
    _, _, parameters = diffusers.read_component(pipeline / part.folder)
    return config, {_dotted(part, path): tensor for path, tensor in parameters.items()}


def import_pipelines(
    pipelines: Mapping[Stage, str | os.PathLike],
    out: str | os.PathLike,
    config: config_lib.SystemConfig,
    normals: str | os.PathLike,
) -> None:
    """Make a weights folder from the pipelines of both stages; tensors keep their type.

    Args:
      pipelines: folders or Hugging Face ids, by stage.
      out: the folder to make.
      config: of a system; sizes come from the pipelines, everything else from here.
      normals: the normal estimator, which pipelines lack: Omnidata's checkpoint (:mod:`omnidata`) or a weights folder.

    Raises:
      OSError: a file cannot be read, or the folder cannot be written.
      ValueError: a pipeline belongs to another stage, or its configurations and tensors do not fit together.
    """
    contents: Contents = {}
    values = config.to_dict()
    for stage, pipeline in pipelines.items():
        path = locate(pipeline)
        for part in PARTS[stage]:
            theirs, found = read_part(path, part)
            set_model(values, part, theirs)
            contents.setdefault(part.component, {}).update(found)
    add_normals(contents, values, normals)
    write_folder(out, contents, values)


def add_normals(contents: Contents, values: dict[str, Any], normals: str | os.PathLike) -> None:
    """Add a normal estimator: Omnidata's checkpoint (:mod:`omnidata`), or that of a weights folder.

    Raises:
      OSError: a file cannot be read.
      ValueError: it holds no estimator, or one that differs from the config's.
    """
    if Path(normals).is_file():
        contents["normals"] = omnidata.read(normals, _model(values, "normals"))
    else:
        estimator = folder.resolve(normals)
        contents["normals"] = folder.read(estimator, "normals")
        values["normals"] = {"model": settings.to_dict(folder.read_config(estimator)["normals"].model)}


def set_model(values: dict[str, Any], part: Part, theirs: Mapping[str, Any]) -> None:
    """Write the sizes of a part's ``config.json`` into the plain config of a system."""
    kind = diffusers.COMPONENTS[part.kind]
    model = values.setdefault(part.component, {}).setdefault("model", {})
    model[part.network] = settings.to_dict(settings.parse(kind.spec, kind.arguments(theirs)))
    if part.folder == "unet" and (size := theirs.get("sample_size")):
        if not isinstance(size, int):
            raise ValueError(
                f"the U-Net's config.json has sample_size {size!r}; expected the width of the latents, an integer"
            )
        values["size"] = size * _model(values, "autoencoder").network.factor


def _model(values: Mapping[str, Any], component: str) -> Any:
    """Return the ``model`` section of a component, without checking that it fits the others."""
    return settings.parse(stages.get(component).model, values[component]["model"], f"{component}.model")


def write_folder(out: str | os.PathLike, contents: Contents, values: Mapping[str, Any]) -> None:
    """Write a weights folder, which appears under its name complete or not at all.

    Raises:
      OSError: the folder exists and is not empty, or the disk is full.
      ValueError: a tensor is not finite, or the sizes of several parts do not fit together.
    """
    config = stages.parse_config(values)
    with _appearing(out, sum(tensor.nbytes for part in contents.values() for tensor in part.values())) as partial:
        for component, found in contents.items():
            folder.write(partial, component, found, config, SHARD_BYTES)


def export_pipelines(
    weights: str | os.PathLike, out: str | os.PathLike, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write both pipelines of a weights folder, ``anchor`` and ``interpolation``, in diffusers' folder format.

    Args:
      weights: weights folder, or the name of bundled weights.
      out: the folder to make.
      dtype: "float16", "bfloat16" or "float32"; as stored if not given.
      shard_bytes: larger files are split, with an index.

    Raises:
      OSError: a file cannot be read, or the folder cannot be written.
      ValueError: the weights do not fit their config, or are not finite in the type.
    """
    source = folder.resolve(weights)
    config = folder.read_config(source)
    if "anchor" in config and not config["anchor"].model.injection:
        raise ValueError(
            f"the anchor stage in {source} has no injection, which diffusers' format cannot express; export others"
        )
    chosen = {(stage, part): _export_part(source, config, part, dtype) for stage in PARTS for part in PARTS[stage]}
    schedulers = {stage: _scheduler(stage, config) for stage in PARTS}
    size = sum(tensor.nbytes for _, found in chosen.values() for tensor in found.values())
    with _appearing(out, size) as partial:
        for (stage, part), (theirs, found) in chosen.items():
            write_part(partial / stage / part.folder, part, theirs, found, shard_bytes)
        for stage in PARTS:
            _write_json(partial / stage / "model_index.json", diffusers_defaults.MODEL_INDEX[stage])
            _write_json(partial / stage / "scheduler" / "scheduler_config.json", schedulers[stage])
            _write_json(
                partial / stage / "feature_extractor" / "preprocessor_config.json", diffusers_defaults.FEATURE_EXTRACTOR
            )


def _export_part(
    source: Path, config: config_lib.SystemConfig, part: Part, dtype: str | None
) -> tuple[dict[str, Any], dict[str, tensors.Tensor]]:
    """Return ``config.json`` and tensors, by their released names, of a part."""
    if part.component not in config:
        raise ValueError(f"{source} has no {part.component}, but the released system has one; import or train it")
    model, component = config[part.component].model, diffusers.COMPONENTS[part.kind]
    if part.network != "image_encoder" and model.architecture != part.network:
        raise ValueError(
            f"{part.component} in {source} has the architecture {model.architecture!r}; only {part.network!r} can be "
            "exported"
        )
    spec = getattr(model, part.network)
    module = nnx.eval_shape(lambda: component.module(spec, layers.Types(rngs=nnx.Rngs(0))))
    stored, found = folder.read(source, part.component), {}
    for path, variable in diffusers.parameters(module).items():
        name = _dotted(part, path)
        if name not in stored or stored[name].shape != variable.shape:
            raise ValueError(
                f"{source}: {name} of component {part.component} is missing or its shape differs from the config's"
            )
        shape = diffusers.released_shape(variable.shape, path, component)
        change = functools.partial(diffusers.to_released, path=path, component=component)
        tensor = stored[name].map(shape, change)
        found[diffusers.tensor_name(path, component)] = tensor.astype(np.dtype(dtype)) if dtype else tensor
    theirs = diffusers_defaults.CONFIGS[part.kind] | component.config(spec)
    if part.kind == ENCODER:
        theirs["torch_dtype"] = next(iter(found.values())).dtype.name
    else:
        latent = part.folder == "unet"
        theirs["sample_size"] = config.latent_size(part.component) if latent else config.size
    return theirs, found


def write_part(
    path: Path, part: Part, config: Mapping[str, Any], found: Mapping[str, tensors.Tensor], shard_bytes: int
) -> None:
    """Write a component's folder in diffusers' format: ``config.json``, and one file or shards with an index."""
    _write_json(path / "config.json", config)
    stem = "model" if part.kind == ENCODER else "diffusion_pytorch_model"
    shards = tensors.split(dict(sorted(found.items())), shard_bytes)
    if len(shards) == 1:
        tensors.write(path / f"{stem}.safetensors", shards[0])
        return
    files = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        tensors.write(path / file, shard)
    total = {"total_size": sum(tensor.nbytes for tensor in found.values())}
    where = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    _write_json(path / f"{stem}.safetensors.index.json", {"metadata": total, "weight_map": where})


def _scheduler(stage: Stage, config: config_lib.SystemConfig) -> dict[str, Any]:
    default = diffusers_defaults.SCHEDULERS[stage]
    if stage == "interpolation":
        return default | {"sigma_max": config[stage].sampling.noise_max}
    diffusion = config[stage].diffusion
    if diffusion.shift != 1:
        raise ValueError(
            f"{stage}.diffusion.shift is {diffusion.shift}, but diffusers' DDIM scheduler has no shift; export a "
            "system with shift 1"
        )
    scheduler = default | {"prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[diffusion.prediction]}
    trailing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler | trailing if diffusion.zero_terminal_snr else scheduler


def _dotted(part: Part, path: diffusers.ParameterPath) -> str:
    return ".".join([*([part.attribute] if part.attribute else []), *map(str, path)])


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def _appearing(out: str | os.PathLike, size: int) -> Iterator[Path]:
    """Give a folder to write in, which becomes ``out`` if nothing fails and is removed otherwise."""
    path = Path(out).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; choose another folder or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {path.parent} ({error.strerror}); write somewhere else") from error
    if (free := shutil.disk_usage(path.parent).free) < size:
        raise OSError(
            f"{out} needs {size / 1e9:.1f} GB but the disk has {free / 1e9:.1f} GB left; free some or write elsewhere"
        )
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        partial.chmod(0o755)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"cannot write {out} ({error.strerror or error}); nothing was left behind") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
