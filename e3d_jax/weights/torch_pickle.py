"""Reader of PyTorch checkpoints that needs no PyTorch and runs no code of theirs.

A checkpoint is a zip file around a pickle; before PyTorch 1.6, it was several pickles with the numbers after them.

A pickle is a program that may call anything that it can import. Here nothing is imported: the few names that tensors
need are replaced by stand-ins, and any other name is refused.
"""

import collections
import functools
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from e3d_jax.weights import tensors

FLOATS = {
    f"{kind}Storage": tensors.FLOATS[code]
    for kind, code in {"Half": "F16", "BFloat16": "BF16", "Float": "F32", "Double": "F64"}.items()
}
# Bytes per number of the storages that are skipped.
_OTHERS = collections.defaultdict(
    lambda: 1, {f"{kind}Storage": size for kind, size in {"Long": 8, "Int": 4, "Short": 2}.items()}
)
# Lightning's checkpoints also hold its callbacks.
TRAINER = "pytorch_lightning."


class _Storage(NamedTuple):
    """Numbers in the file: their type, the name of their record, and their count."""

    kind: str
    key: str
    length: int


class _View(NamedTuple):
    """A tensor: part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *rest):
    return _View(storage, offset, shape, strides)


def _rebuild_parameter(view, *rest):
    return view


class _Unpickler(pickle.Unpickler):
    """Rebuilds only descriptions of tensors.

    Attributes:
      itemsizes: bytes per number of each storage that the pickle mentions, by its name.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self.itemsizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Only new or immutable objects, because a pickle may also set attributes.
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module.startswith(TRAINER):
            return type("Unused", (), {"__init__": lambda self, *args, **kwargs: None})
        raise ValueError(
            f"it asks for {module}.{name}, which is not part of a tensor and could run code; give a checkpoint of "
            "tensors only"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, length = pid[:5]
        self.itemsizes[key] = FLOATS[kind].itemsize if kind in FLOATS else _OTHERS[kind]
        return _Storage(kind, key, length)


ReadRecord = Callable[[str], bytes]
# How a file of PyTorch before 1.6 starts: a pickle of a fixed number. More pickles follow, then the storages.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


def read(path: Path) -> dict[str, tensors.Tensor]:
    """Return the tensors of a checkpoint by name: those of its ``state_dict``, or all. Their numbers are not read yet.

    Files of PyTorch before 1.6, which are not zip files, are read as well.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is not a checkpoint, is damaged, or its pickle asks for more than tensors.
    """
    try:
        content, read_record, sizes = _read_legacy(path) if _is_legacy(path) else _read_zip(path)
    except OSError:
        raise
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged, or not a checkpoint of PyTorch ({error}); copy it again") from error
    except Exception as error:  # A damaged pickle can fail in any way.
        raise ValueError(f"{path} cannot be used: {error}") from error
    named = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{path} holds no tensors by name; give a checkpoint with a state_dict")
    return {str(name): _tensor(path, read_record, sizes, str(name), value) for name, value in named.items()}


def _read_zip(path: Path) -> tuple[Any, ReadRecord, dict[str, int]]:
    """Return the pickled content of a zip file, a function that reads a storage, and the storages' sizes in bytes."""
    with zipfile.ZipFile(path) as archive:
        # PyTorch does not compress; a compressed record could be far larger than the file.
        stored = [info for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
        sizes = {info.filename: info.file_size for info in stored}
        pickled = next((name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if pickled is None:
            raise zipfile.BadZipFile("it has no data.pkl")
        folder = pickled.removesuffix("/data.pkl") + "/"
        if f"{folder}byteorder" in sizes and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        with archive.open(pickled) as stream:
            content = _Unpickler(stream).load()

    def read_record(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{folder}data/{key}")

    prefix = f"{folder}data/"
    return content, read_record, {n.removeprefix(prefix): size for n, size in sizes.items() if n.startswith(prefix)}


def _is_legacy(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(len(_LEGACY_START)) == _LEGACY_START


def _read_legacy(path: Path) -> tuple[Any, ReadRecord, dict[str, int]]:
    """Return the same as :func:`_read_zip` for a file of PyTorch before 1.6."""
    with open(path, "rb") as stream:
        _, _, system = (_Unpickler(stream).load() for _ in range(3))
        if not isinstance(system, dict) or not system.get("little_endian"):
            raise ValueError("its numbers are big-endian")
        unpickler = _Unpickler(stream)
        content, keys = unpickler.load(), _Unpickler(stream).load()
        places, total = {}, path.stat().st_size
        for key in keys:
            # Every storage is its length as a 64-bit number, then its numbers.
            start = stream.seek(0, 1) + 8
            length = int.from_bytes(stream.read(8), "little") * unpickler.itemsizes[key]
            if not 0 <= length <= total - start:
                raise EOFError("it ends too early")
            places[key] = start, length
            stream.seek(start + length)

    def read_record(key: str) -> bytes:
        start, length = places[key]
        with open(path, "rb") as stream:
            stream.seek(start)
            return stream.read(length)

    return content, read_record, {key: length for key, (_, length) in places.items()}


def _tensor(path: Path, read_record: ReadRecord, sizes: dict[str, int], name: str, view: Any) -> tensors.Tensor:
    """Return a tensor that is read when needed, after checking everything that the file says about it."""
    if not isinstance(view, _View) or not isinstance(view.storage, _Storage) or view.storage.kind not in FLOATS:
        raise ValueError(f"{name} in {path} is not a tensor of type {' or '.join(FLOATS)}; give another checkpoint")
    dtype = FLOATS[view.storage.kind]
    if not _inside(view, sizes.get(view.storage.key, 0) // dtype.itemsize):
        raise ValueError(f"{name} in {path} lies outside the file's data; copy the checkpoint again")
    return tensors.Tensor(view.shape, dtype, functools.partial(_read, read_record, dtype, view))


def _inside(view: _View, length: int) -> bool:
    """Return whether a tensor's description is well formed and lies within a storage of ``length`` numbers."""
    if not isinstance(view.shape, tuple) or not isinstance(view.strides, tuple) or len(view.shape) != len(view.strides):
        return False
    if not all(isinstance(number, int) and number >= 0 for number in (view.offset, *view.shape, *view.strides)):
        return False
    last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    return 0 in view.shape or last < length


def _read(read_record: ReadRecord, dtype: np.dtype, view: _View) -> np.ndarray:
    numbers = np.frombuffer(read_record(view.storage.key), dtype)[view.offset :]
    if not math.prod(view.shape):
        return np.zeros(view.shape, dtype)
    strides = [stride * dtype.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)
