"""Files that are never seen half-written."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Says in one sentence what it means when what is done inside, writing to a path, fails.

    Raises:
      OSError: it failed.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter.
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {path} ({reason}); check the folder, its space and its permissions") from error


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames it: it appears whole or not at all.

    Raises:
      OSError: the folder does not exist or cannot be written to.
    """
    path = pathlib.Path(path)
    with writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            pathlib.Path(name).unlink(missing_ok=True)
            raise
