"""Records: ArrayRecord shards with one object per example, whatever its images were rendered from.

A record of images is a msgpack map:

    schema        2; readers refuse any other
    kind          "images"
    id            name of the object, unique within its dataset
    provenance    map: what made the object (generator, split, seed, index; or the asset's file)
    size          width and height of the images in pixels
    cameras       map: world_from_cam (float32 bytes, [v, 4, 4], OpenCV axes), focal and center (float32 bytes, [v, 2])
    maps          map from the name of a map to a list of [view, PNG file]: RGBA, straight alpha, white where
                  transparent. "color" is the image; "normal" holds RGB = (n + 1) / 2 of the normal in the world frame
    anchors       views that are the anchors of the layout (:class:`e3d_jax.cameras.ViewLayout`), in its order
    ring          views that are the whole layout, in its order; empty if only the anchors were drawn
    inputs        views that may be the input image; the first is preferred. Those that are neither anchors nor in the
                  ring have cameras of their own and are stored framed as a user's image is
                  (:func:`e3d_jax.images.object_box`); the first of them is in the direction of view 0

Cached latents (:mod:`e3d_jax.data.latents`) are records of the kind "latents".
"""

import contextlib
import dataclasses
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import msgpack
import numpy as np
from array_record.python import array_record_module
from jaxtyping import UInt8
from PIL import Image

from e3d_jax import cameras as cameras_lib
from e3d_jax import files, stores, structs
from e3d_jax.data import manifest

SCHEMA = 2
SUFFIX = ".array_record"


@dataclasses.dataclass(frozen=True)
class Record:
    """One object's images, still encoded; they are decoded one by one, on demand."""

    id: str
    provenance: dict
    cameras: structs.Cameras
    maps: Mapping[str, Mapping[int, bytes]]
    anchors: Sequence[int]
    ring: Sequence[int]
    inputs: Sequence[int]

    @property
    def size(self) -> int:
        """Width and height of the images in pixels."""
        return self.cameras.width

    def is_framed(self, view: int) -> bool:
        """Return whether an input is stored framed, from a camera of its own."""
        return view not in (*self.anchors, *self.ring)

    def views_with(self, name: str) -> list[int]:
        """Return the views that have a map."""
        return list(self.maps.get(name, ()))

    def image(self, view: int | np.integer, name: str = "color") -> UInt8[np.ndarray, "h w 4"]:
        """Decode a map of a view: RGBA, straight alpha.

        Raises:
          ValueError: the view has no such map.
        """
        maps = self.maps.get(name, {})
        if int(view) not in maps:
            raise ValueError(f"record {self.id!r}: view {view} has no {name} map; views with one: {list(maps)}")
        return decode_png(maps[int(view)])


@dataclasses.dataclass(frozen=True)
class Rig:
    """Cameras to draw objects from, and what the views are for; see the top of this module.

    Attributes:
      cameras: one per view.
      anchors, ring, inputs: as in a record.
      normal_views: views that get a normal map.
    """

    cameras: structs.Cameras
    anchors: tuple[int, ...]
    ring: tuple[int, ...]
    inputs: tuple[int, ...]
    normal_views: tuple[int, ...]

    @classmethod
    def of_layout(
        cls, layout: cameras_lib.ViewLayout, size: int, *, anchors_only: bool = False, normals: bool = True
    ) -> "Rig":
        """Return the rig of a layout: every anchor has a normal map and may be the input.

        Args:
          layout: of the views.
          size: width and height of the images in pixels.
          anchors_only: draw the anchors alone, which is enough for all stages but the interpolation.
          normals: whether there are normal maps.
        """
        cameras, anchors = layout.cameras(size), layout.anchors
        ring = tuple(range(layout.num_views))
        if anchors_only:
            cameras, anchors, ring = cameras[anchors], np.arange(len(anchors)), ()
        chosen = tuple(anchors.tolist())
        return cls(cameras, chosen, ring, chosen, chosen if normals else ())

    def with_inputs(self, cameras: structs.Cameras) -> "Rig":
        """Return the rig with inputs from cameras of their own after its views; with normal maps if others have them.

        Args:
          cameras: of the framed images; the first is in the direction of view 0.
        """
        inputs = tuple(range(len(self.cameras), len(self.cameras) + len(cameras)))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), self.cameras, cameras)
        normals = (*self.normal_views, *inputs) if self.normal_views else ()
        return Rig(joined, self.anchors, self.ring, inputs, normals)


def encode_png(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """Return a PNG file's bytes; run-length matching is both the fastest and the smallest on renders over white."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=2, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def decode_png(data: bytes) -> UInt8[np.ndarray, "h w c"]:
    """Invert :func:`encode_png`."""
    return np.asarray(Image.open(io.BytesIO(data)))


def encode(
    name: str, provenance: dict, rig: Rig, maps: Mapping[str, Mapping[int, UInt8[np.ndarray, "h w 4"]]]
) -> Record:
    """Make a record of images in memory.

    Args:
      name: of the object, unique within its dataset.
      provenance: what made it.
      rig: the cameras, and what the views are for.
      maps: images by name of the map and by view.
    """
    encoded = {kind: {view: encode_png(image) for view, image in images.items()} for kind, images in maps.items()}
    return Record(name, provenance, rig.cameras, encoded, rig.anchors, rig.ring, rig.inputs)


def pack(record: Record) -> bytes:
    """Return a record's bytes, as documented at the top of this module."""
    poses = {
        name: np.asarray(getattr(record.cameras, name), np.float32).tobytes()
        for name in ("world_from_cam", "focal", "center")
    }
    return msgpack.packb(
        {
            "schema": SCHEMA,
            "kind": "images",
            "id": record.id,
            "provenance": record.provenance,
            "size": record.size,
            "cameras": poses,
            "maps": {name: list(views.items()) for name, views in record.maps.items()},
            **{name: list(getattr(record, name)) for name in ("anchors", "ring", "inputs")},
        }
    )


def fields_of(data: bytes) -> dict[str, Any]:
    """Return the msgpack map of a record of any kind.

    Raises:
      ValueError: the bytes are not a record, or one of another schema version.
    """
    try:
        fields = msgpack.unpackb(data)
        schema = fields.pop("schema") if "encoded" not in fields else 1
    except (ValueError, TypeError, AttributeError, KeyError, msgpack.UnpackException) as error:
        raise ValueError(f"{len(data)} bytes that are not a record of e3d_jax; write the records again") from error
    if schema != SCHEMA:
        raise ValueError(f"a record has schema version {schema}, this code reads version {SCHEMA}; write it again")
    return fields


def kind_of(data: bytes) -> str:
    """Return the kind of a record: "images" or "latents".

    Raises:
      ValueError: see :func:`fields_of`.
    """
    return str(fields_of(data).get("kind"))


def unpack(data: bytes) -> Record:
    """Invert :func:`pack`.

    Raises:
      ValueError: the bytes are not a record of images, one of another schema version, or without some of its fields.
    """
    fields = fields_of(data)
    if (kind := fields.get("kind")) != "images":
        raise ValueError(f"a record holds {kind}, not images; give a dataset of images")
    shapes = {"world_from_cam": (-1, 4, 4), "focal": (-1, 2), "center": (-1, 2)}
    try:
        size = fields["size"]
        poses = {k: np.frombuffer(fields["cameras"][k], np.float32).reshape(shape) for k, shape in shapes.items()}
        return Record(
            id=fields["id"],
            provenance=fields["provenance"],
            cameras=structs.Cameras(**poses, width=size, height=size),
            maps={name: dict(views) for name, views in fields["maps"].items()},
            anchors=fields["anchors"],
            ring=fields["ring"],
            inputs=fields["inputs"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a record lacks fields of version {SCHEMA} ({error}); write it again") from error


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
    """Return the record shards of a dataset, sorted, after comparing them with its manifest if it has one.

    ArrayRecord reads local files, so of a dataset in a store these are this host's copies (:mod:`e3d_jax.stores`).

    Raises:
      FileNotFoundError: the folder has none.
      OSError: the dataset cannot be copied.
      ValueError: a shard is empty or truncated, or missing; names it.
    """
    if not files.glob(folder, f"*{SUFFIX}"):
        raise FileNotFoundError(
            f"no record shards (*{SUFFIX}) in {str(folder)!r}; make some with "
            f"'e3d data synthetic --out={folder} --objects=1000'"
        )
    copy = stores.local(folder, without=(f"{manifest.RECEIPTS}/",))
    shards = files.glob(copy, f"*{SUFFIX}")
    check_shards(shards, manifest.expected(copy, shards))
    return shards


def check_shards(paths: Sequence[str], numbers: Mapping[str, int] | None = None) -> None:
    """Refuse shards that cannot be read or that do not hold as many records as expected.

    Args:
      paths: of the shards.
      numbers: of records, by path, as far as they are known.

    Raises:
      ValueError: names each.
    """
    counts = {path: _count(path) for path in paths}
    numbers = counts if numbers is None else counts | dict(numbers)
    if broken := [path for path, count in counts.items() if not count or count != numbers[path]]:
        raise ValueError(f"truncated or damaged record shards: {', '.join(broken)}; delete or rewrite them")


def check_schema(folder: str | os.PathLike) -> None:
    """Refuse to extend a dataset of another schema version; its first record is looked at.

    Raises:
      ValueError: says to choose another folder.
    """
    for path in files.glob(folder, f"*{SUFFIX}")[:1]:
        reader = array_record_module.ArrayRecordReader(stores.local(path))
        first = reader.read([0])[0]
        reader.close()
        try:
            fields_of(first)
        except ValueError as error:
            raise ValueError(f"{folder} cannot be extended: {error}, into an empty folder") from error


def _count(path: str) -> int:
    """Return the number of records of a shard by its footer, which is written last; 0 if that cannot be read."""
    try:
        reader = array_record_module.ArrayRecordReader(path)
        count = reader.num_records() if reader.ok() else 0
        reader.close()
        return count
    except (RuntimeError, ValueError, IndexError):
        return 0
