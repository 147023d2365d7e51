"""Tensors in safetensors files, read and written one at a time so that a file need not fit into memory.

A kernel may be stored in 8 bits (:func:`quantized`); reading undoes it.
"""

import dataclasses
import fnmatch
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from e3d_jax import files

FLOATS = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
INT8 = np.dtype(np.int8)
CODES = {dtype: code for code, dtype in FLOATS.items()} | {INT8: "I8"}
# Ends the name of the scales of a kernel in 8 bits.
SCALE = "@scale"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Tensor that is read, or computed, when it is needed.

    Attributes:
      shape: of the array.
      dtype: of the array; one of ``FLOATS`` or, in a file, ``INT8``.
      read: returns the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in a file, in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def map(self, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> "Tensor":
        """Return the tensor after a change that gives it another shape."""
        return Tensor(shape, self.dtype, lambda: change(self.read()))

    def astype(self, dtype: np.dtype) -> "Tensor":
        """Return the tensor cast to another type."""
        # Overflowing values become infinite, which `write` refuses.
        return Tensor(self.shape, dtype, lambda: self.read().astype(dtype))


def quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whose kernels are in 8 bits, as :func:`write` may store them.

    A kernel becomes integers from -127 to 127 and a factor for each of its outputs (its last axis), whose name ends in
    :data:`SCALE`.
    """
    found = {}
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] != "kernel":
            found[name] = tensor
            continue
        found[name + SCALE] = Tensor(tensor.shape[-1:], FLOATS["F32"], functools.partial(_scale, tensor))
        found[name] = Tensor(tensor.shape, INT8, functools.partial(_integers, tensor))
    return found


def _scale(tensor: Tensor) -> np.ndarray:
    kernel = np.abs(tensor.read().astype(np.float32))
    # The scale of an output whose weights are all 0 does not matter, but must not be 0.
    return np.maximum(kernel.reshape(-1, kernel.shape[-1]).max(0), np.finfo(np.float32).tiny * 127) / np.float32(127)


def _integers(tensor: Tensor) -> np.ndarray:
    return np.round(tensor.read().astype(np.float32) / _scale(tensor)).astype(np.int8)


def fill(variable: nnx.Variable, tensor: Tensor) -> None:
    """Give a variable a tensor's values, in the variable's type.

    They go where its value is or, if that is only a shape, to the sharding that comes with it; each process fills its
    own devices. The array in memory is released before this returns.
    """
    place, array = variable.get_value(), tensor.read()
    sharding = place.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    filled = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index].astype(place.dtype))
    variable.set_value(filled.block_until_ready())


def read_files(paths: Iterable[Path], ignored: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of safetensors files by name, except those that match one of the ``ignored`` patterns.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is damaged, or a tensor is of an unknown type.
    """
    tensors: dict[str, Tensor] = {}
    for file in paths:
        try:
            with safetensors.safe_open(file, framework="numpy") as opened:
                names = [name for name in opened.keys() if not any(fnmatch.fnmatch(name, p) for p in ignored)]  # noqa: SIM118
        except safetensors.SafetensorError as error:
            message = f"{file} is damaged or incomplete, not a safetensors file ({error}); copy it again"
            raise ValueError(message) from error
        except OSError as error:  # Its message does not name the file.
            raise OSError(f"{file} cannot be read ({error}); copy the folder again") from error
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        tensors |= {name: _stored(file, 8 + length, name, header[name]) for name in names}
    return {name: _restored(name, tensors) for name in tensors if not name.endswith(SCALE)}


def _restored(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor as it is used; see :func:`quantized`."""
    tensor = stored[name]
    if tensor.dtype != INT8:
        return tensor
    if name + SCALE not in stored:
        raise ValueError(f"{name} is in 8 bits, but its scales are missing; copy the files again")
    scale, bfloat16 = stored[name + SCALE], FLOATS["BF16"]
    return Tensor(tensor.shape, bfloat16, lambda: (tensor.read() * scale.read()).astype(bfloat16))


def _stored(file: Path, data: int, name: str, entry: Mapping[str, Any]) -> Tensor:
    """Return a tensor of a file whose tensors start at byte ``data``."""
    dtypes = {code: dtype for dtype, code in CODES.items()}
    if entry["dtype"] not in dtypes:
        raise ValueError(f"{name} in {file} has type {entry['dtype']}; expected one of {', '.join(dtypes)}")
    shape, dtype, (start, end) = tuple(entry["shape"]), dtypes[entry["dtype"]], entry["data_offsets"]

    def read() -> np.ndarray:
        with open(file, "rb") as stream:
            stream.seek(data + start)
            return np.frombuffer(stream.read(end - start), dtype).reshape(shape)

    return Tensor(shape, dtype, read)


def split(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Split tensors, in their order, into groups of at most ``limit`` bytes or of a single larger tensor."""
    groups: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if used and used + tensor.nbytes > limit:
            groups.append({})
            used = 0
        groups[-1][name] = tensor
        used += tensor.nbytes
    return groups


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, which appears under its name only when it is complete.

    Raises:
      OSError: the file cannot be written, such as when the disk is full.
      ValueError: a tensor is not finite.
    """
    # Larger types come first so that every tensor is aligned.
    order = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in order:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".incomplete")

    def parts() -> Iterator[bytes]:
        yield len(text).to_bytes(8, "little") + text
        for name, tensor in order:
            array = np.ascontiguousarray(tensor.read(), tensor.dtype)
            if not np.isfinite(array).all():
                raise ValueError(f"{name} has values that are not finite in {tensor.dtype}; use other weights")
            yield array.tobytes()

    try:
        with files.write_errors(path):
            stream = open(temporary, "wb")  # noqa: SIM115
        with stream:
            for part in parts():  # A failure to read is not reported as a failure to write.
                with files.write_errors(path):
                    stream.write(part)
                    stream.flush()
        with files.write_errors(path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
