"""Where weights folders are. Imports no JAX, so that commands that only check a path start quickly."""

import os
import pathlib

from e3d_jax import stores

CONFIG = "config.json"
BUNDLED = pathlib.Path(__file__).parent


def resolve(name_or_folder: str | os.PathLike) -> pathlib.Path:
    """Return the folder of bundled weights ("mini"), or that at a path; of a URL, the copy (:mod:`e3d_jax.stores`).

    Raises:
      OSError: the weights at a URL cannot be copied.
      FileNotFoundError: there is no such folder, or it holds no weights.
    """
    bundled, given = BUNDLED / str(name_or_folder), pathlib.Path(stores.local(name_or_folder))
    folder = bundled if (bundled / CONFIG).is_file() else given
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"no weights at {str(name_or_folder)!r}: expected 'mini' or a folder with {CONFIG} and safetensors, "
            "such as WORKDIR/weights of a training run"
        )
    return folder
