"""Records: ArrayRecord shards, one object an example, whatever it was rendered from.

A record is a msgpack map:

    schema        1; readers refuse any other
    id            name of the object, unique within its data set
    provenance    map: what made the object (generator, split, seed, index; or the asset's file)
    size          width and height of the images in pixels
    views         PNG files (RGBA, straight alpha, white where transparent), one a camera: the ring, or its 8 anchors
    normal_views  indices into the views of those with a normal map
    normals       PNG files (RGBA; RGB = (n + 1) / 2 in the world frame, white where transparent), one a normal view
    cameras       map: world_from_cam (float32 bytes, [v, 4, 4], OpenCV axes), focal and center (float32 bytes, [v, 2])
"""

import contextlib
import dataclasses
import io
import os
import zlib

import msgpack
import numpy as np
from array_record.python import array_record_module
from jaxtyping import UInt8
from PIL import Image

from e3d_jax import cameras, files, structs

SCHEMA = 1
SUFFIX = ".array_record"
# A record holds the ring or, which is enough for all stages but the interpolation, its anchors.
NUM_VIEWS = (cameras.NUM_VIEWS, cameras.NUM_ANCHORS)


@dataclasses.dataclass(frozen=True)
class Record:
    """One object's pictures, still encoded; images are decoded one by one, on demand."""

    id: str
    provenance: dict
    size: int
    views: list[bytes]
    normal_views: list[int]
    normals: list[bytes]
    cameras: structs.Cameras

    @property
    def anchors(self) -> np.ndarray:
        """Which views are the anchors."""
        return cameras.anchors_of(len(self.views))

    def view(self, index: int | np.integer) -> UInt8[np.ndarray, "h w 4"]:
        """View ``index``: RGBA, straight alpha."""
        return decode_png(self.views[index])

    def normal(self, index: int | np.integer) -> UInt8[np.ndarray, "h w 4"]:
        """The normal map of view ``index``: (n + 1) / 2 in the world frame, and alpha.

        Raises:
          ValueError: the view has no normal map.
        """
        if index not in self.normal_views:
            raise ValueError(
                f"record {self.id!r}: view {index} has no normal map; those with one are {self.normal_views}"
            )
        return decode_png(self.normals[self.normal_views.index(int(index))])


def encode_png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """A PNG file's bytes; run-length matching is both the fastest and the smallest on renders over white."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=2, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def decode_png(data: bytes) -> UInt8[np.ndarray, "h w c"]:
    """Inverse of :func:`encode_png`."""
    return np.asarray(Image.open(io.BytesIO(data)))


def pack(record: Record) -> bytes:
    """A record's bytes, as documented at the top of this module."""
    poses = {
        name: np.asarray(getattr(record.cameras, name), np.float32).tobytes()
        for name in ("world_from_cam", "focal", "center")
    }
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return msgpack.packb({"schema": SCHEMA, **fields, "cameras": poses})


def unpack(data: bytes) -> Record:
    """Inverse of :func:`pack`.

    Raises:
      ValueError: the bytes are no record, one of another schema version, or without the fields of this one.
    """
    try:
        fields = msgpack.unpackb(data)
        schema = fields.pop("schema")
    except (ValueError, TypeError, AttributeError, KeyError, msgpack.UnpackException) as error:
        raise ValueError(f"{len(data)} bytes that are no record of e3d_jax; write the records again") from error
    if schema != SCHEMA:
        raise ValueError(f"a record has schema version {schema}, this code reads version {SCHEMA}; write it again")
    shapes = {"world_from_cam": (-1, 4, 4), "focal": (-1, 2), "center": (-1, 2)}
    try:
        poses = {k: np.frombuffer(fields["cameras"][k], np.float32).reshape(shape) for k, shape in shapes.items()}
        fields["cameras"] = structs.Cameras(**poses, width=fields["size"], height=fields["size"])
        return Record(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"a record lacks fields, or has others than version {SCHEMA} ({error}); write it again"
        ) from error


class Writer:
    """Write one shard; the file gets its final name only when the ``with`` block ends well.

    Raises:
      OSError: the folder cannot be written to.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = path
        with contextlib.ExitStack() as stack:
            local = stack.enter_context(files.staged(path))
            with files.write_errors(path):
                # Groups of one record keep random access cheap: a reader never decodes a neighbor.
                self._writer = array_record_module.ArrayRecordWriter(str(local), "group_size:1")
            stack.callback(self._close)
            self._stack = stack.pop_all()

    def write(self, record: bytes) -> None:
        """Append a packed record."""
        with files.write_errors(self._path):
            self._writer.write(record)

    def _close(self) -> None:
        with files.write_errors(self._path):
            self._writer.close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        self._stack.__exit__(error_type, error, traceback)


def find_shards(folder: str | os.PathLike) -> list[str]:
    """Return the record shards of a dataset, sorted.

    Raises:
      FileNotFoundError: the folder has none.
      ValueError: a shard is empty or truncated; names each.
    """
    shards = files.glob(folder, f"*{SUFFIX}")
    if not shards:
        raise FileNotFoundError(
            f"no record shards (*{SUFFIX}) in {str(folder)!r}; make some with "
            f"'python -m e3d_jax.data.synthetic --out={folder} --objects=1000'"
        )
    check_shards(shards)
    return shards


def check_shards(paths: list[str]) -> None:
    """Refuse shards that cannot be read.

    Raises:
      ValueError: a shard is empty or truncated; names each.
    """
    if broken := [path for path in paths if not _readable(path)]:
        raise ValueError(f"truncated or damaged record shards: {', '.join(broken)}; delete or rewrite them")


def _readable(path: str) -> bool:
    """Return whether a shard's footer, which is written last, can be read."""
    try:
        reader = array_record_module.ArrayRecordReader(path)
        readable = reader.ok() and reader.num_records() > 0
        reader.close()
        return readable
    except (RuntimeError, ValueError, IndexError):
        return False
