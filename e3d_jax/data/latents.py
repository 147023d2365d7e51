"""Cached latents: what the frozen components of a diffusion stage make of an object's images.

A record of cached latents is a msgpack map, in ArrayRecord shards like any other (:mod:`e3d_jax.data.records`):

    schema     2, as for images
    kind       "latents"
    id         of the object
    stage      the stage that it was made for
    arrays     map from name to [dtype, shape, bytes]; each stage documents its own
"""

import dataclasses
from collections.abc import Mapping

import msgpack
import numpy as np

from e3d_jax.data import records


@dataclasses.dataclass(frozen=True)
class Latents:
    """One object's cached arrays."""

    id: str
    stage: str
    arrays: Mapping[str, np.ndarray]


def pack(record: Latents) -> bytes:
    """Return a record's bytes, as documented at the top of this module.

    Raises:
      ValueError: an array has a type that NumPy does not have, such as bfloat16.
    """
    for name, x in record.arrays.items():
        if np.dtype(x.dtype.str) != x.dtype:
            raise ValueError(f"array {name!r} of {record.id!r} is {x.dtype}, which records cannot hold; use float16")
    arrays = {name: [x.dtype.str, list(x.shape), x.tobytes()] for name, x in record.arrays.items()}
    header = {"schema": records.SCHEMA, "kind": "latents", "id": record.id, "stage": record.stage}
    return msgpack.packb({**header, "arrays": arrays})


def unpack(data: bytes, stage: str) -> Latents:
    """Invert :func:`pack`.

    Raises:
      ValueError: the record is of another version or kind, or was made for another stage.
    """
    fields = records.fields_of(data)
    if (kind := fields.get("kind")) != "latents":
        raise ValueError(f"a record holds {kind}, not cached latents")
    if fields["stage"] != stage:
        raise ValueError(
            f"a record was cached for stage {fields['stage']}, not {stage}; run 'e3d cache --stage={stage}' on the "
            "images"
        )
    arrays = {name: np.frombuffer(raw, dtype).reshape(shape) for name, (dtype, shape, raw) in fields["arrays"].items()}
    return Latents(id=fields["id"], stage=stage, arrays=arrays)
