"""Storage: files that are never seen half-written, on this machine or in a bucket.

Shards of records are listed, written and copied here. Paths go through :mod:`etils.epath`, so ``gs://BUCKET/...``
works where a client for it is installed (``gcsfs``). A shard for a bucket is written to a temporary folder and copied
once it is whole. Reading shards is left to ArrayRecord; not all of its builds can open ``gs://``, and for those the
bucket must be copied or mounted.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is a URL such as ``gs://BUCKET/FOLDER``."""
    return "://" in os.fspath(path)


def join(folder: str | os.PathLike, *names: str) -> str:
    """Return the path of a file below a folder."""
    return str(epath.Path(folder).joinpath(*names))


def glob(folder: str | os.PathLike, pattern: str) -> list[str]:
    """Return the sorted paths below a folder that match a pattern; none if the folder does not exist."""
    below = epath.Path(folder)
    return sorted(str(path) for path in below.glob(pattern)) if below.exists() else []


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder and those above it; buckets need none.

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
    return epath.Path(path).read_bytes()


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
    """Write a file under a temporary name beside it, then rename it: it appears whole or not at all.

    Raises:
      OSError: the folder does not exist or cannot be written to.
    """
    with write_errors(path):
        if is_remote(path):
            epath.Path(path).write_bytes(data)  # Buckets show an object only once it is complete.
            return
        path = pathlib.Path(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            pathlib.Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def staged(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a local file to write, which becomes ``path`` when the block ends well and is removed otherwise.

    Folders on the way are made. The file is named PATH.incomplete until then; for a bucket it is a temporary one that
    is uploaded at the end.

    Raises:
      OSError: the folder cannot be written to.
    """
    target = epath.Path(path)
    incomplete = target.with_name(target.name + ".incomplete")
    with contextlib.ExitStack() as stack:
        with write_errors(path):
            if is_remote(path):
                local = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / target.name
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                local = pathlib.Path(incomplete)
        try:
            yield local
            with write_errors(path):
                if is_remote(path):
                    with local.open("rb") as source, incomplete.open("wb") as upload:
                        shutil.copyfileobj(source, upload)
                    incomplete.replace(target)
                else:
                    os.replace(local, target)
        finally:
            local.unlink(missing_ok=True)


def readable(path: str | os.PathLike) -> str:
    """Return the path by which libraries that read local files can read a file.

    Raises:
      ValueError: it is in a bucket, from which shards cannot be read.
    """
    if is_remote(path):
        raise ValueError(f"{path} is in a bucket, from which records cannot be read; copy or mount it")
    return os.fspath(path)


@contextlib.contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[str]:
    """Yield a local path of a file: its own, or that of a temporary copy where it is remote.

    Raises:
      OSError: the file cannot be read.
    """
    if not is_remote(path):
        yield os.fspath(path)
        return
    remote = epath.Path(path)
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / remote.name
        with remote.open("rb") as source, local.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        yield str(local)
