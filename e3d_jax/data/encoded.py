"""Encoded records: what the frozen components of a diffusion stage make of an object's pictures.

An encoded record is a msgpack map, in ArrayRecord shards like any other (:mod:`e3d_jax.data.records`):

    encoded    1, the version of this schema
    id         of the object
    stage      the stage that it was encoded for
    arrays     map from name to [dtype, shape, bytes]; latents and tokens are float16

Arrays of the anchor stage; the input view may be any anchor a, in whose frame the normals then are:

    views        [8, h, w, c]     scaled latents of the colour anchors
    normals      [8, 8, h, w, c]  of the normal maps: first a, then the views in the ring's order from a on
    condition    [8, 3, h, w, c]  of the cropped input: colour, true normals, estimated normals
    tokens       [8, 3, e]        image tokens of the same
    blank, blank_token            of a picture without an object

and of the interpolation stage, whose windows start at an anchor a:

    views        [32, h, w, c]    scaled latents of the ring
    anchors      [8, 3, h, w, c]  latents of a window's anchors after noise was added, not scaled
    tokens       [8, e]           image token of the first of them, without that noise
    strength     [8]              standard deviation of that noise
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from e3d_jax import cameras

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One object's encodings."""

    id: str
    stage: str
    arrays: Mapping[str, np.ndarray]


def pack(record: Encoded) -> bytes:
    """A record's bytes, as documented at the top of this module."""
    arrays = {name: [x.dtype.str, list(x.shape), x.tobytes()] for name, x in record.arrays.items()}
    return msgpack.packb({"encoded": SCHEMA, "id": record.id, "stage": record.stage, "arrays": arrays})


def is_encoded(data: bytes) -> bool:
    """Whether a record's bytes are of this schema, whatever its version, rather than pictures."""
    try:
        return "encoded" in msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException):
        return False


def unpack(data: bytes, stage: str) -> Encoded:
    """Inverse of :func:`pack`.

    Raises:
      ValueError: the record is of another version, or was encoded for another stage.
    """
    fields: dict[str, Any] = msgpack.unpackb(data)
    if (version := fields["encoded"]) != SCHEMA:
        raise ValueError(
            f"an encoded record has schema version {version}, this code reads version {SCHEMA}; encode it again"
        )
    if fields["stage"] != stage:
        raise ValueError(
            f"a record was encoded for stage {fields['stage']}, not {stage}; encode the pictures for {stage}"
        )
    arrays = {name: np.frombuffer(raw, dtype).reshape(shape) for name, (dtype, shape, raw) in fields["arrays"].items()}
    return Encoded(id=fields["id"], stage=stage, arrays=arrays)


def anchor_example(arrays: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The anchors in both domains and the input pair, chosen as :func:`e3d_jax.data.loader.anchor_example` does.

    ``target`` ``[2, 8, h, w, c]``; of ``condition`` ``[3, h, w, c]`` and ``tokens`` ``[3, e]`` the step takes the true
    or the estimated normals.
    """
    first = choose_input(rng)
    return {
        "target": np.stack([np.roll(arrays["views"], -first, 0), arrays["normals"][first]]),
        "condition": arrays["condition"][first],
        "tokens": arrays["tokens"][first],
        "blank": arrays["blank"],
        "blank_token": arrays["blank_token"],
        "azimuth": cameras.azimuths(cameras.NUM_ANCHORS)[first],
    }


def interpolation_example(arrays: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Nine consecutive views that start at a random anchor, and their condition."""
    first = int(rng.integers(cameras.NUM_ANCHORS))
    return {
        "window": arrays["views"][cameras.window_views(first)],
        "anchors": arrays["anchors"][first],
        "token": arrays["tokens"][first],
        "strength": arrays["strength"][first],
    }


def choose_input(rng: np.random.Generator) -> int:
    """The anchor that plays the input view: half of the time the record's own view 0, else any."""
    return 0 if rng.random() < 0.5 else int(rng.integers(cameras.NUM_ANCHORS))


EXAMPLES = {"anchor": anchor_example, "interpolation": interpolation_example}
