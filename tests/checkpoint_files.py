"""Checkpoints as PyTorch writes them, without PyTorch: a pickle in a zip file, assembled from opcodes."""

import pickle
import zipfile

import numpy as np

KINDS = {"f": "FloatStorage", "e": "HalfStorage", "d": "DoubleStorage", "q": "LongStorage"}


def value(content):
    """Return opcodes that push plain content."""
    return pickle.dumps(content, 0)[:-1]


def name(module, attribute):
    """Return opcodes that push an attribute of a module."""
    return f"c{module}\n{attribute}\n".encode()


def tensor(key, array, offset=0, strides=None, kind=None):
    """Return opcodes that push a tensor: a call that rebuilds it from a storage."""
    strides = strides or tuple(stride // array.itemsize for stride in array.strides)
    storage = b"(" + value("storage") + name("torch", kind or KINDS[array.dtype.char.lower().replace("l", "q")])
    storage += value(key) + value("cpu") + value(array.size) + b"tQ"
    rest = value(offset) + value(array.shape) + value(strides) + value(False) + name("collections", "OrderedDict")
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + rest + b")Rt" + b"R"


def state(arrays):
    """Return opcodes that push a dict of tensors, whose storages are numbered."""
    items = [value(key) + tensor(str(i), array) for i, (key, array) in enumerate(arrays.items())]
    return b"(" + b"".join(items) + b"d"


def write(path, arrays, pickled=None):
    """Write a checkpoint of arrays; ``pickled`` replaces the opcodes of its pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        program = (b"(" + value("state_dict") + state(arrays) + b"d") if pickled is None else pickled
        archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("archive/byteorder", "little")
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(array).tobytes())


def write_legacy(path, arrays, pickled=None):
    """Write a checkpoint as PyTorch did before 1.6: pickles one after the other, then the numbers."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts.append(b"\x80\x02" + (state(arrays) if pickled is None else pickled) + b".")
    parts.append(pickle.dumps([str(i) for i in range(len(arrays))], 2))
    for array in arrays.values():
        parts += [array.size.to_bytes(8, "little"), np.ascontiguousarray(array).tobytes()]
    path.write_bytes(b"".join(parts))
