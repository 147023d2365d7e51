"""The report beside a result: what made it, and what it took.

Every ``report.json`` has the same keys: ``seed``, ``seconds`` and ``peak_memory_gb`` by stage, ``device``, ``mesh``,
``versions`` and ``settings``; a command may add some of its own.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
from collections.abc import Mapping
from typing import Any

import jax

from e3d_jax import __version__, files, structs

REPORT = "report.json"
PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def report(
    *,
    seed: int,
    seconds: Mapping[str, float],
    peak_memory_gb: Mapping[str, float],
    mesh: structs.Mesh,
    settings: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Return a report.

    Args:
      seed: seed of all randomness.
      seconds: time of each stage.
      peak_memory_gb: peak memory at the end of each stage, see :func:`peak_memory_gb`.
      mesh: the resulting mesh.
      settings: all settings as a plain mapping, see :func:`e3d_jax.settings.to_dict`.
      more: further entries.
    """
    return {
        "seed": seed,
        "seconds": dict(seconds),
        "peak_memory_gb": dict(peak_memory_gb),
        "device": {"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind},
        "mesh": {"vertices": len(mesh.vertices), "faces": len(mesh.faces)},
        "versions": {
            "e3d_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        **more,
        "settings": dict(settings),
    }


def write(folder: str | os.PathLike, values: Mapping[str, Any]) -> None:
    """Write a report into a folder; the file appears whole or not at all.

    Raises:
      OSError: the folder does not exist or cannot be written.
    """
    files.write_atomically(pathlib.Path(folder) / REPORT, json.dumps(values, indent=2).encode())


def peak_memory_gb() -> float:
    """Return the peak memory in GB: of the device on an accelerator, of the process on a CPU."""
    if stats := jax.local_devices()[0].memory_stats():
        return round(stats["peak_bytes_in_use"] / 1e9, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)
