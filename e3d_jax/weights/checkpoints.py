"""Tensors of a PyTorch checkpoint (a zip file around a pickle), without PyTorch and without running what it says.

A pickle is a program that may call anything that it can import. Here nothing is imported: the few names that tensors
are made of are stood in for, and any other name is refused.
"""

import collections
import functools
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from e3d_jax.weights import tensors

FLOATS = {
    f"{kind}Storage": tensors.FLOATS[code]
    for kind, code in {"Half": "F16", "BFloat16": "BF16", "Float": "F32", "Double": "F64"}.items()
}
# Lightning's checkpoints name its callbacks beside the tensors.
TRAINER = "pytorch_lightning."


class _Storage(NamedTuple):
    """Numbers in the file: their type, the name of their record, and how many there are."""

    kind: str
    key: str
    length: int


class _View(NamedTuple):
    """A tensor: part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Fresh or immutable objects only, as a pickle may also set attributes.
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *rest: _View(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda view, *rest: view
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module.startswith(TRAINER):
            return type("Unused", (), {"__init__": lambda self, *args, **kwargs: None})
        raise ValueError(
            f"it asks for {module}.{name}, which is no part of a tensor and could run code; give a checkpoint of "
            "tensors alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, length = pid
        return _Storage(kind, key, length)


def read(path: Path) -> dict[str, tensors.Tensor]:
    """The tensors of a checkpoint by name: its ``state_dict``, or all of it; nothing is read yet.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no such checkpoint, is damaged, or its pickle asks for more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch compresses nothing; what is compressed could be far larger than the file.
            stored = [info for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
            sizes = {info.filename: info.file_size for info in stored}
            pickled = next((name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")), None)
            if pickled is None:
                raise zipfile.BadZipFile("it has no data.pkl")
            folder = pickled.removesuffix("/data.pkl")
            if f"{folder}/byteorder" in sizes and archive.read(f"{folder}/byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            with archive.open(pickled) as stream:
                content = _Unpickler(stream).load()
    except OSError:
        raise
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is damaged, or no checkpoint of PyTorch 1.6 or later ({error}); copy it again"
        ) from error
    except Exception as error:  # A damaged pickle can fail in any way.
        raise ValueError(f"{path} cannot be used: {error}") from error
    named = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{path} holds no tensors by name; give a checkpoint with a state_dict")
    return {str(name): _tensor(path, folder, sizes, str(name), value) for name, value in named.items()}


def _tensor(path: Path, folder: str, sizes: dict[str, int], name: str, view: Any) -> tensors.Tensor:
    """A tensor that is read when needed; everything that the file says of it is checked here."""
    if not isinstance(view, _View) or not isinstance(view.storage, _Storage) or view.storage.kind not in FLOATS:
        raise ValueError(f"{name} in {path} is no tensor of {', '.join(FLOATS)}; give another checkpoint")
    dtype, record = FLOATS[view.storage.kind], f"{folder}/data/{view.storage.key}"
    if not _inside(view, sizes.get(record, 0) // dtype.itemsize):
        raise ValueError(f"{name} in {path} lies outside of the file's data; copy the checkpoint again")
    return tensors.Tensor(view.shape, dtype, functools.partial(_read, path, record, dtype, view))


def _inside(view: _View, length: int) -> bool:
    """Whether a tensor is made of well-formed numbers and lies within a storage of ``length``."""
    if not isinstance(view.shape, tuple) or not isinstance(view.strides, tuple) or len(view.shape) != len(view.strides):
        return False
    if not all(isinstance(number, int) and number >= 0 for number in (view.offset, *view.shape, *view.strides)):
        return False
    last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    return 0 in view.shape or last < length


def _read(path: Path, record: str, dtype: np.dtype, view: _View) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        numbers = np.frombuffer(archive.read(record), dtype)[view.offset :]
    if not math.prod(view.shape):
        return np.zeros(view.shape, dtype)
    strides = [stride * dtype.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(numbers, view.shape, strides, writeable=False)
