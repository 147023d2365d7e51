"""Storage: files that are never seen half-written, on this machine or in an object store.

Paths with ``://``, such as ``gs://BUCKET/FOLDER`` and ``s3://BUCKET/FOLDER``, go to fsspec, which needs a client of the
store (``gcsfs``, ``s3fs``). The clients try again, ever later, what a store refuses for the moment. Stores show an
object only when it is complete, so it is sent under its own name; nothing is renamed there.

:mod:`e3d_jax.stores` copies whole folders.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import fsspec


def user_cache() -> pathlib.Path:
    """Return the folder of what may be removed at any time: ``XDG_CACHE_HOME/e3d_jax``, or ``~/.cache/e3d_jax``."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "e3d_jax"


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is a URL such as ``gs://BUCKET/FOLDER``."""
    return "://" in os.fspath(path)


def store(path: str | os.PathLike) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
      OSError: the client of the store is missing.
    """
    try:
        # Other machines write there, so nothing is remembered of what was listed.
        return fsspec.core.url_to_fs(os.fspath(path), use_listings_cache=False)
    except ImportError as error:
        raise OSError(f"{path}: {error}") from error


def join(folder: str | os.PathLike, *names: str) -> str:
    """Return the path of a file below a folder."""
    if is_remote(folder):
        return "/".join((os.fspath(folder).rstrip("/"), *names))
    return os.path.join(folder, *names)


def glob(folder: str | os.PathLike, pattern: str) -> list[str]:
    """Return the sorted paths in a folder that match a pattern; none if the folder does not exist."""
    if is_remote(folder):
        system, inside = store(folder)
        protocol = os.fspath(folder).partition("://")[0]
        return sorted(f"{protocol}://{path.lstrip('/')}" for path in system.glob(f"{inside}/{pattern}"))
    return sorted(str(path) for path in pathlib.Path(folder).glob(pattern))


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder and those above it; stores need none.

    Raises:
      OSError: it cannot be made.
    """
    if not is_remote(folder):
        with write_errors(folder):
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)


def read(path: str | os.PathLike) -> bytes:
    """Return what a file holds.

    Raises:
      OSError: it cannot be read.
    """
    if is_remote(path):
        system, inside = store(path)
        return system.cat_file(inside)
    return pathlib.Path(path).read_bytes()


@contextlib.contextmanager
def write_errors(path: str | os.PathLike) -> Iterator[None]:
    """Re-raise I/O errors from this block as one OSError that names the path.

    Raises:
      OSError: writing failed.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter.
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {path} ({reason}); check the folder, its space and its permissions") from error


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises:
      OSError: the folder does not exist or cannot be written to.
    """
    with write_errors(path):
        if is_remote(path):
            system, inside = store(path)
            system.pipe_file(inside, data)
            return
        with _temporary(pathlib.Path(path)) as local:
            local.write_bytes(data)


@contextlib.contextmanager
def staged(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a local file to write, which becomes ``path`` when the block ends well and is removed otherwise.

    Folders on the way are made.

    Raises:
      OSError: the folder cannot be written to.
    """
    make_folder(os.path.dirname(path))
    with contextlib.ExitStack() as stack:
        with write_errors(path):
            if is_remote(path):
                local = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), os.path.basename(path))
            else:
                local = stack.enter_context(_temporary(pathlib.Path(path)))
        yield local
        with write_errors(path):
            if is_remote(path):
                system, inside = store(path)
                system.put_file(str(local), inside)
            stack.close()


@contextlib.contextmanager
def _temporary(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a new file beside another, which it replaces when the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".incomplete")
    os.close(handle)
    try:
        yield pathlib.Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise
