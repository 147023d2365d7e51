"""Decoding of buffers that meshoptimizer compressed (EXT_meshopt_compression and KHR_meshopt_compression of glTF).

Written from the extensions' specifications, since no maintained wheel decodes them. 100,000 vertices or triangles take
one to four seconds.
"""

import numpy as np
from jaxtyping import UInt8

# Values of the packed bytes of a group: 1, 2 or 4 bits each; single bits from the lowest, others from the highest.
_UNPACKED = {
    bits: [
        bytes(
            (byte >> (place * bits if bits == 1 else 8 - bits - place * bits)) & ((1 << bits) - 1)
            for place in range(8 // bits)
        )
        for byte in range(256)
    ]
    for bits in (1, 2, 4)
}
_BITS = {None: (0, 2, 4, 8), 0: (0, 1, 2, 4), 1: (1, 2, 4, 8)}  # By control mode; None for version 0.
_GROUP = 16


def decode(data: bytes, count: int, stride: int, mode: str, filter: str = "NONE") -> UInt8[np.ndarray, "n s"]:
    """Return the decompressed rows of a buffer view.

    Args:
      data: compressed.
      count: number of rows: vertices or indices.
      stride: bytes per row.
      mode: ATTRIBUTES, TRIANGLES or INDICES.
      filter: NONE, OCTAHEDRAL, QUATERNION, EXPONENTIAL or COLOR; how rows of attributes are to be understood.

    Raises:
      ValueError: the data are damaged or of a later version.
    """
    try:
        if mode == "ATTRIBUTES":
            return _FILTERS[filter](_vertices(data, count, stride))
        indices = {"TRIANGLES": _triangles, "INDICES": _sequence}[mode](data, count)
    except (IndexError, KeyError) as error:
        raise ValueError(f"its meshopt data are damaged or of a later version ({error})") from error
    kind = np.uint16 if stride == 2 else np.uint32
    return indices.astype(kind).view(np.uint8).reshape(count, stride)


def _vertices(data: bytes, count: int, stride: int) -> np.ndarray:
    if data[0] not in (0xA0, 0xA1):
        raise ValueError(f"its meshopt data have header {data[0]:#x}; expected 0xa0 or 0xa1")
    version = data[0] & 15
    tail = len(data) - stride - (stride // 4 if version else 0)
    last = np.frombuffer(data, np.uint8, stride, tail)
    channels = data[tail + stride :] if version else bytes(stride // 4)
    block_size = min(8192 // stride // _GROUP * _GROUP, 256)
    out, at = np.empty((count, stride), np.uint8), 1
    for first in range(0, count, block_size):
        size = min(count - first, block_size)
        deltas, at = _block(data, at, size, stride, version)
        for column in range(0, stride, 4):
            block = _undo(deltas[:, column : column + 4], last[column : column + 4], channels[column // 4])
            out[first : first + size, column : column + 4] = block
        last = out[first + size - 1]
    return out


def _block(data: bytes, at: int, size: int, stride: int, version: int) -> tuple[np.ndarray, int]:
    """Return the differences of a block of rows, and where it ends."""
    groups = -(-size // _GROUP)
    controls = data[at : at + stride // 4] if version else b""
    at += len(controls)
    columns = np.zeros((stride, groups * _GROUP), np.uint8)
    for column in range(stride):
        control = controls[column // 4] >> column % 4 * 2 & 3 if version else None
        if control == 2:
            continue
        if control == 3:
            columns[column, :size] = np.frombuffer(data, np.uint8, size, at)
            at += size
            continue
        header, at = at, at + -(-groups // 4)
        pieces = []
        for group in range(groups):
            bits = _BITS[control][data[header + group // 4] >> group % 4 * 2 & 3]
            if bits == 0:
                pieces.append(bytes(_GROUP))
            elif bits == 8:
                pieces.append(data[at : at + _GROUP])
                at += _GROUP
            else:
                table, escape = _UNPACKED[bits], (1 << bits) - 1
                values = b"".join([table[byte] for byte in data[at : at + 2 * bits]])
                at += 2 * bits
                if escape in values:
                    whole = bytearray(values)
                    for place, value in enumerate(values):
                        if value == escape:
                            whole[place] = data[at]
                            at += 1
                    values = bytes(whole)
                pieces.append(values)
        columns[column] = np.frombuffer(b"".join(pieces), np.uint8)
    return np.ascontiguousarray(columns[:, :size].T), at


def _undo(deltas: np.ndarray, last: np.ndarray, channel: int) -> np.ndarray:
    """Return four columns of bytes from their differences: of bytes, of 16-bit words, or by XOR of 32-bit words."""
    deltas, last = np.ascontiguousarray(deltas), np.ascontiguousarray(last)
    kind = channel & 3
    if kind == 2:
        turn, words = channel >> 4, deltas.view("<u4")
        turned = (words >> np.uint32(turn)) | (words << np.uint32(32 - turn)) if turn else words
        return (np.bitwise_xor.accumulate(turned, axis=0) ^ last.view("<u4")).view(np.uint8)
    words, start = (deltas, last) if kind == 0 else (deltas.view("<u2"), last.view("<u2"))
    signed = (words >> 1) ^ (-(words & 1).astype(words.dtype)).astype(words.dtype)
    return (np.cumsum(signed, axis=0, dtype=words.dtype) + start).astype(words.dtype).view(np.uint8)


class _Numbers:
    """Reads variable-length numbers."""

    def __init__(self, data: bytes, at: int):
        self.data, self.at = data, at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7


def _unzigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _sequence(data: bytes, count: int) -> np.ndarray:
    if data[0] != 0xD1:
        raise ValueError(f"its meshopt data have header {data[0]:#x}; expected 0xd1")
    numbers, last, out = _Numbers(data, 1), [0, 0], np.empty(count, np.uint32)
    for place in range(count):
        value = numbers.number()
        last[value & 1] = (last[value & 1] + _unzigzag(value >> 1)) & 0xFFFFFFFF
        out[place] = last[value & 1]
    return out


def _triangles(data: bytes, count: int) -> np.ndarray:
    if data[0] != 0xE1:
        raise ValueError(f"its meshopt data have header {data[0]:#x}; expected 0xe1")
    codes, numbers, common = data[1 : 1 + count // 3], _Numbers(data, 1 + count // 3), data[len(data) - 16 :]
    edges, recent, following, last = [(0, 0)] * 16, [0] * 16, 0, 0
    out: list[int] = []

    def explicit():
        nonlocal last
        last = (last + _unzigzag(numbers.number())) & 0xFFFFFFFF
        return last

    for code in codes:
        high, low = code >> 4, code & 15
        if high < 15:
            a, b = edges[-1 - high]
            if 0 < low < 13:
                c = recent[-1 - low]
            else:
                if low == 0:
                    c = following
                    following += 1
                elif low == 15:
                    c = explicit()
                else:
                    c = last = (last + (-1 if low == 13 else 1)) & 0xFFFFFFFF
                recent.append(c)
        else:
            if low < 14:
                pair, escape = common[low], -1
            else:
                pair, escape = numbers.byte(), 15
                if pair == 0:
                    following = 0
            corners, fresh = [], []
            # The second and third corner may be recent ones, which the first must not push out.
            for place, kind in enumerate((0 if low != 15 else 15, pair >> 4, pair & 15)):
                if kind == 0:
                    corner = following
                    following += 1
                elif kind == escape or (place == 0 and kind == 15):
                    corner = explicit()
                else:
                    corner = recent[-kind]
                    corners.append(corner)
                    continue
                corners.append(corner)
                fresh.append(corner)
            recent += fresh
            a, b, c = corners
            edges.append((b, a))
        edges += [(c, b), (a, c)]
        out += (a, b, c)
    return np.array(out, np.uint32)


def _octahedral(rows: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(rows).view(np.int8 if rows.shape[1] == 4 else np.int16)
    x, y, one, rest = values.astype(np.float64).T
    x, y = x / np.maximum(one, 1), y / np.maximum(one, 1)
    z = 1 - np.abs(x) - np.abs(y)
    folded = np.maximum(-z, 0)
    x, y = x - np.where(x >= 0, folded, -folded), y - np.where(y >= 0, folded, -folded)
    scale = (127 if rows.shape[1] == 4 else 32767) / np.sqrt(x * x + y * y + z * z)
    out = np.stack([np.rint(x * scale), np.rint(y * scale), np.rint(z * scale), rest], -1)
    return out.astype(values.dtype).view(np.uint8)


def _quaternion(rows: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(rows).view(np.int16)
    largest = values[:, 3] & 3
    x, y, z = (values[:, :3] * (np.sqrt(0.5) / (values[:, 3:] | 3))).T
    w = np.sqrt(np.maximum(0, 1 - x * x - y * y - z * z))
    out, at = np.empty(values.shape), np.arange(len(values))
    for place, part in ((1, x), (2, y), (3, z), (0, w)):
        out[at, (largest + place) % 4] = np.rint(part * 32767)
    return out.astype(np.int16).view(np.uint8)


def _exponential(rows: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(rows).view(np.int32)
    return np.ldexp((words << 8 >> 8).astype(np.float32), words >> 24).astype(np.float32).view(np.uint8)


def _color(rows: np.ndarray) -> np.ndarray:
    unsigned = np.uint8 if rows.shape[1] == 4 else np.uint16
    signed = np.ascontiguousarray(rows).view(np.int8 if rows.shape[1] == 4 else np.int16).astype(np.int64)
    data = np.ascontiguousarray(rows).view(unsigned).astype(np.int64)
    y, orange, green, alpha = data[:, 0], signed[:, 1], signed[:, 2], data[:, 3]
    whole = (1 << np.ceil(np.log2(alpha + 1)).astype(np.int64)) - 1  # All bits up to the highest that is set.
    opacity = alpha & (whole >> 1)
    opacity = opacity << 1 | opacity & 1
    rgba = np.stack([y + orange - green, y + green, y - orange - green, opacity], -1)
    scale = np.iinfo(unsigned).max / np.maximum(whole, 1)
    return np.rint(rgba * scale[:, None]).astype(unsigned).view(np.uint8)


_FILTERS = {
    "NONE": lambda rows: rows,
    "OCTAHEDRAL": _octahedral,
    "QUATERNION": _quaternion,
    "EXPONENTIAL": _exponential,
    "COLOR": _color,
}
