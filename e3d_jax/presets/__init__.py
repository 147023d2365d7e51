"""Configs that ship with the package; ``configs/*.py`` of the repository are the same, for editing."""

import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from e3d_jax import stages

NAMES = ("mini", "base", "envision3d")


def config_of(values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Return a locked config with every setting, from those that differ from the defaults (:mod:`e3d_jax.config`).

    Raises:
      ValueError: see :func:`e3d_jax.stages.parse_config`.
    """
    return ml_collections.ConfigDict(_flexible(stages.parse_config(values).to_dict())).lock()


def _flexible(value: Any) -> Any:
    """Return values that the command line can change: tuples instead of lists, placeholders instead of None."""
    if isinstance(value, Mapping):
        return {name: _flexible(each) for name, each in value.items()}
    if isinstance(value, list):
        return tuple(map(_flexible, value))
    return config_dict.placeholder(float) if value is None else value


def load(name: str) -> ml_collections.ConfigDict:
    """Return the config of a preset or of a file, ``NAME`` or ``NAME:VARIANT``, such as ``mini:smoke``.

    Raises:
      OSError: there is no such preset or file.
      ValueError: the file is not a config, has no such variant, or a setting of it cannot be used.
    """
    source, _, variant = name.partition(":")
    if source in NAMES:
        return importlib.import_module(f"e3d_jax.presets.{source}").get_config(variant)
    path = pathlib.Path(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise FileNotFoundError(
            f"no config {source}; give one of {', '.join(NAMES)}, or a file such as configs/mini.py"
        )
    module = importlib.util.module_from_spec(spec)
    if (folder := str(path.parent.resolve())) not in sys.path:
        sys.path.append(folder)  # A config may import stages and networks that lie beside it; so do loader processes.
    try:
        spec.loader.exec_module(module)
        return module.get_config(*[variant] if variant else [])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # A config is a program: it may fail in any way.
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is not a config ({type(error).__name__}: {reason})") from error


def check_variant(name: str, variant: str, known: tuple[str, ...]) -> None:
    """Refuse an unknown variant.

    Raises:
      ValueError: names those that there are.
    """
    if variant and variant not in known:
        raise ValueError(f"{name} has no variant {variant!r}; there is {' and '.join(known)}")
