"""Pictures of clients: checked before anything else is done with them, and cut out."""

import pathlib
from typing import Any

from e3d_jax.app import schema


class Refused(Exception):
    """A request cannot be served; the message is one sentence for the client, without paths of this machine.

    Args:
      message: the sentence.
      status: code of HTTP.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def write(path: pathlib.Path, data: bytes, number: int) -> None:
    """Write a picture, and check that it can be read.

    Raises:
      Refused: it is too large, or cannot be read.
      OSError: it cannot be written.
    """
    if len(data) > schema.MAX_BYTES:
        raise Refused(f"picture {number + 1} has more than {schema.MAX_BYTES // 10**6} MB; shrink it first", 413)
    path.write_bytes(data)
    read(path, number)


def read(path: pathlib.Path, number: int, tolerance: float | None = None, *, cut: bool = False) -> Any:
    """Return a picture as RGBA in [0, 1].

    Args:
      path: the file, whose name clients do not see.
      number: of the picture, from 0.
      tolerance: see :func:`e3d_jax.images.matte`; None lets it be found.
      cut: cut the object out, even without a tolerance.

    Raises:
      Refused: it cannot be used.
    """
    from e3d_jax import images  # Imports JAX, which the page does not wait for.

    try:
        rgba = images.read_image(path)
        return images.matte(rgba, tolerance) if cut or tolerance is not None else rgba
    except (OSError, ValueError) as error:
        raise Refused(str(error).replace(str(path), f"picture {number + 1}"), 422) from error
