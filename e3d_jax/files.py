"""Files that are never seen half-written."""

import os
import pathlib
import tempfile


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file under a temporary name beside it, then renames it: it appears whole or not at all.

    Raises:
      OSError: the folder does not exist or cannot be written to.
    """
    path = pathlib.Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            pathlib.Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {path} ({reason}); check the folder and its permissions") from error
