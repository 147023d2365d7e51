"""Folders in object stores: read through copies that all processes of a host share, written through local ones."""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from e3d_jax import files

# Folder of the copies, unless the environment variable of this name says another.
CACHE = "E3D_STORE_CACHE"
# Files that are copied at once.
THREADS = 16
# Seconds between uploads of what has changed.
INTERVAL = 30.0
INDEX = ".index.json"
# URLs by the paths of their copies, of this process.
_urls: dict[str, str] = {}
# What sends the changes of a mirrored folder, by its path.
_senders: dict[str, "_Sender"] = {}


def local(path: str | os.PathLike, *, without: Sequence[str] = ()) -> str:
    """Return a local path of a file or folder: itself, or an up-to-date copy that all processes of this host share.

    The first process that asks fetches what is new or has changed; the others wait for it.

    Args:
      path: or URL.
      without: beginnings of the paths below the folder that are left out.

    Raises:
      FileNotFoundError: there is nothing at a URL.
      OSError: it cannot be read or copied.
    """
    if not files.is_remote(path):
        return os.fspath(path)
    system, root = files.store(path)
    root = root.rstrip("/")
    found = {name: info for name, info in system.find(root, detail=True).items() if info["type"] == "file"}
    wanted = {name.removeprefix(root).lstrip("/") or os.path.basename(root): info for name, info in found.items()}
    wanted = {name: info for name, info in wanted.items() if not name.startswith(tuple(without))}
    if not wanted:
        raise FileNotFoundError(f"there is nothing at {path}; check the URL and its permissions")
    copy = _folder_of(path)
    with _alone(copy):
        _update(system, wanted, copy)
    path_of_copy = str(copy / os.path.basename(root) if root in found else copy)
    _urls[path_of_copy] = os.fspath(path)
    return path_of_copy


def named(message: str) -> str:
    """Return a message to the user with URLs in place of the paths of their copies."""
    for path_of_copy, url in _urls.items():
        message = message.replace(path_of_copy, url.rstrip("/"))
    return message


def _folder_of(path: str | os.PathLike) -> pathlib.Path:
    parent = os.environ.get(CACHE) or os.path.join(os.path.expanduser("~"), ".cache", "e3d_jax", "stores")
    return pathlib.Path(parent, hashlib.sha256(os.fspath(path).encode()).hexdigest()[:16])


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Keep other processes of this host out of a block."""
    files.make_folder(folder)
    with open(folder.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _update(system: Any, wanted: Mapping[str, Any], copy: pathlib.Path) -> None:
    """Make a local folder hold the wanted files, given what the store says of each."""
    index = copy / INDEX
    known = json.loads(index.read_text()) if index.exists() else {}
    marks = {name: _mark(info) for name, info in wanted.items()}
    for name in known.keys() - marks.keys():
        (copy / name).unlink(missing_ok=True)
    new = [name for name, mark in marks.items() if known.get(name) != mark or not (copy / name).is_file()]

    def fetch(name: str) -> None:
        with files.staged(copy / name) as target:
            system.get_file(wanted[name]["name"], str(target))
            if target.stat().st_size != wanted[name]["size"]:
                raise OSError(f"{wanted[name]['name']} changed while it was read; try again")

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, new))
    if marks != known:
        files.write_atomically(index, json.dumps(marks).encode())


def _mark(info: Mapping[str, Any]) -> list[str]:
    """Return what differs when the content of an object differs, under the names of the stores."""
    names = ("size", "generation", "etag", "ETag", "md5Hash", "LastModified", "created")
    return [str(info[name]) for name in names if name in info]


@contextlib.contextmanager
def mirrored(url: str, *, without: Sequence[str] = (), upload: bool = True) -> Iterator[str]:
    """Yield a local folder that is kept like one in a store: fetched now, and sent there as it changes and at the end.

    Args:
      url: of the folder, which need not exist yet; a path of this machine is yielded as it is.
      without: beginnings of the paths below the folder that are left out.
      upload: whether this process sends.

    Raises:
      OSError: the folder cannot be read, or changes cannot be sent at the end.
    """
    if not files.is_remote(url):
        yield url
        return
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        _urls[str(folder)] = url
        system, root = files.store(url)
        fetched = {name: info for name, info in system.find(root, detail=True).items() if info["type"] == "file"}
        names = {name.removeprefix(root).lstrip("/"): info for name, info in fetched.items()}
        _update(system, {name: info for name, info in names.items() if not name.startswith(tuple(without))}, folder)
        (folder / INDEX).unlink(missing_ok=True)
        sender, stop = _Sender(folder, url, without), threading.Event()

        def send_often() -> None:
            while not stop.wait(INTERVAL):
                send(folder)

        thread = threading.Thread(target=send_often, daemon=True)
        if upload:
            _senders[str(folder)] = sender
            thread.start()
        try:
            yield str(folder)
        finally:
            stop.set()
            if upload:
                thread.join()
                del _senders[str(folder)]
                sender.send()


def send(folder: str | os.PathLike) -> None:
    """Send now what has changed in a folder, if it is a mirrored one; what the store refuses is sent later."""
    if sender := _senders.get(os.fspath(folder)):
        with contextlib.suppress(OSError):  # The next time, or the last, will do.
            sender.send()


class _Sender:
    """Sends the files of a folder that have changed since they were last sent."""

    def __init__(self, folder: pathlib.Path, url: str, without: Sequence[str]):
        self._folder, self._url, self._without = folder, url, tuple(without)
        self._sent, self._lock = self._states(), threading.Lock()

    def _states(self) -> dict[str, tuple[int, int]]:
        states = {}
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder).as_posix()
            with contextlib.suppress(FileNotFoundError):  # It is gone again.
                if path.is_file() and not name.startswith(self._without) and not path.name.endswith(".incomplete"):
                    states[name] = (path.stat().st_mtime_ns, path.stat().st_size)
        return states

    def send(self) -> None:
        """Send what has changed.

        Raises:
          OSError: a file cannot be sent.
        """
        with self._lock:
            for name, state in self._states().items():
                if self._sent.get(name) != state:
                    url = files.join(self._url, name)
                    with files.write_errors(url), contextlib.suppress(FileNotFoundError):
                        system, inside = files.store(url)
                        system.put_file(str(self._folder / name), inside)
                    self._sent[name] = state
