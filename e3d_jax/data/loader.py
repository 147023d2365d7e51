"""Grain pipelines from record shards to batches, one a stage.

Batches hold uint8 images (a quarter of the bytes of float32 on their way to the device); the training step scales them.
Random choices come from Grain's per-example generator, so a batch depends only on the seed and on its number, not on
the number of workers or processes.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import grain
import numpy as np
from jaxtyping import UInt8

from e3d_jax import cameras, images
from e3d_jax.data import encoded, parallel, records

Stage = Literal["autoencoder", "normals", "anchor", "interpolation"]


def autoencoder_example(record: records.Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Four colour views and four normal maps, chosen at random: ``image`` uint8 ``[8, h, w, 4]``."""
    views = [record.view(i) for i in rng.choice(len(record.views), 4, replace=False)]
    normals = [record.normal(i) for i in rng.choice(record.normal_views, 4, replace=False)]
    return {"image": np.stack(views + normals)}


def normals_example(record: records.Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A cropped view and its cropped normal map: ``image`` and ``normal`` uint8 ``[h, w, 4]``.

    Any anchor may play the input view; ``azimuth`` (radians) is where it stands, so that the step can turn the normals
    into the frame in which the input view is view 0.
    """
    anchor = int(rng.integers(cameras.NUM_ANCHORS))
    image, normal = condition_pair(record, anchor)
    return {"image": image, "normal": normal, "azimuth": cameras.azimuths(cameras.NUM_ANCHORS)[anchor]}


def anchor_example(record: records.Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The input pair and the eight anchors in both domains.

    ``condition`` uint8 ``[2, h, w, 4]`` (colour, normal; cropped like a user's picture) and ``target`` uint8
    ``[2, 8, h, w, 4]``. Half of the time the record's own view 0 is the input view, else any anchor; ``azimuth`` as in
    :func:`normals_example`. Half of the examples are the object's mirror image, which is as good an object.
    """
    example = seen_from(record, encoded.choose_input(rng))
    return mirrored(example) if rng.random() < 0.5 else example


def seen_from(record: records.Record, first: int) -> dict[str, np.ndarray]:
    """The anchor example, see :func:`anchor_example`, whose input view is anchor ``first``."""
    order = np.roll(record.anchors, -first)
    return {
        "condition": np.stack(condition_pair(record, first)),
        "target": np.stack([[record.view(i) for i in order], [record.normal(i) for i in order]]),
        "azimuth": cameras.azimuths(cameras.NUM_ANCHORS)[first],
    }


def mirrored(example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An anchor example, see :func:`anchor_example`, of the object behind a mirror that holds the input view's axis."""
    condition, target = (example[name][..., ::-1, :].copy() for name in ("condition", "target"))
    target = target[:, -np.arange(cameras.NUM_ANCHORS)]
    for normals in (condition[1], target[1]):
        # White stands for "no normal", which has no mirror image.
        normals[..., 1] = np.where(normals[..., 3] > 0, 255 - normals[..., 1], normals[..., 1])
    return {"condition": condition, "target": target, "azimuth": -example["azimuth"]}


def interpolation_example(record: records.Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Nine consecutive views that start at a random anchor: ``window`` uint8 ``[9, h, w, 4]``."""
    frames = cameras.window_views(int(rng.integers(cameras.NUM_ANCHORS)))
    return {"window": np.stack([record.view(i) for i in frames])}


EXAMPLES = {
    "autoencoder": autoencoder_example,
    "normals": normals_example,
    "anchor": anchor_example,
    "interpolation": interpolation_example,
}


def condition_pair(
    record: records.Record, anchor: int
) -> tuple[UInt8[np.ndarray, "h w 4"], UInt8[np.ndarray, "h w 4"]]:
    """An anchor view and its normal map, framed the way a user's picture is (:func:`e3d_jax.images.object_box`)."""
    view, normal = (read(record.anchors[anchor]) for read in (record.view, record.normal))
    box = images.object_box(view[..., 3] / np.float32(255))
    crop = lambda image: images.to_uint8(images.crop(image / np.float32(255), box, record.size))  # noqa: E731
    return crop(view), crop(normal)


class Rows(grain.MapDataset):
    """Of every batch of a data set only some rows, from a certain batch on.

    Which example stands in which row of which batch therefore does not depend on how many processes read.
    """

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: Sequence[int], start: int):
        super().__init__(parent)
        self._batch_size, self._rows, self._start = batch_size, tuple(int(row) for row in rows), start

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._parent[(self._start + batch) * self._batch_size + self._rows[row]]


def make_loader(
    folders: Mapping[str, float],
    stage: Stage,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    rows: Sequence[int] | None = None,
    start: int = 0,
) -> grain.DatasetIterator:
    """An endless iterator of this process's rows of the batches; each has the records' ids as ``id``.

    Close it to end its workers.

    Args:
      folders: where the record shards are, each with the share of examples that is drawn from it. Either all hold
        pictures or all hold what :mod:`e3d_jax.data.encode` made of them for this stage.
      stage: whose examples to make.
      batch_size: examples of a whole batch.
      seed: of the shuffle and of every random choice.
      workers: decoding processes; 0 decodes in threads of this one.
      rows: which rows of a batch to read; all when not given.
      start: number of the first batch; all that a run must remember to continue.

    Raises:
      FileNotFoundError, ValueError: see :func:`e3d_jax.data.records.find_shards`; fewer records than a batch, a record
        of another schema or stage, or a share that is not positive.
    """
    if not all(0 < share < math.inf for share in folders.values()):
        raise ValueError(f"the shares of the record sets are {dict(folders)}; give positive numbers")
    sources = {folder: grain.sources.ArrayRecordDataSource(records.find_shards(folder)) for folder in folders}
    if (total := sum(map(len, sources.values()))) < batch_size:
        raise ValueError(
            f"{', '.join(folders)} holds {total} records, fewer than one batch of {batch_size}; "
            "make more records or lower the batch size"
        )
    decoders = [_decoder(folder, source[0], stage) for folder, source in sources.items()]
    sets = [
        # Random choices follow an example's place in the global order.
        grain.MapDataset.source(source).seed(seed + i).shuffle().repeat().random_map(decoder)
        for i, (source, decoder) in enumerate(zip(sources.values(), decoders, strict=True))
    ]
    dataset = grain.MapDataset.mix(sets, weights=list(folders.values())) if len(sets) > 1 else sets[0]
    rows = range(batch_size) if rows is None else rows
    # Batched before Grain deals elements to workers, or these would deal examples and make other batches of them.
    batches = Rows(dataset, batch_size, rows, start).batch(len(rows), drop_remainder=True)
    threads = 1 if workers else 4
    ready = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        parallel.one_core_each()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        ready = ready.mp_prefetch(options, worker_init_fn=parallel.live_with_parent)
    return iter(ready)


def parse_shares(folders: Iterable[str]) -> dict[str, float]:
    """Record sets as given on a command line, ``FOLDER`` or ``FOLDER@SHARE``; the share is 1 when not given.

    Raises:
      ValueError: a share is no number.
    """
    shares = {}
    for given in folders:
        folder, at, share = given.rpartition("@")
        if not at or "/" in share:
            folder, share = given, "1"
        try:
            shares[folder] = float(share)
        except ValueError as error:
            raise ValueError(f"the record set {given!r} has the share {share!r}; give a number after '@'") from error
    return shares


def holds_encoded(folders: Iterable[str], stage: Stage, size: int, latent_size: int) -> bool:
    """Whether record sets hold what was encoded for a stage rather than pictures, as their first records tell.

    Raises:
      FileNotFoundError, ValueError: see :func:`make_loader`; or there are both kinds, the pictures are not of ``size``
        pixels or the latents not of ``latent_size``, or the pictures lack the views between the anchors, which the
        interpolation learns, or normal maps of the anchors, which all others do.
    """
    kinds = set()
    for folder in folders:
        first = grain.sources.ArrayRecordDataSource(records.find_shards(folder))[0]
        _decoder(folder, first, stage)
        kinds.add(of_latents := encoded.is_encoded(first))
        if of_latents:
            side = encoded.unpack(first, stage).arrays["views"].shape[1]
            if side != latent_size:
                raise ValueError(
                    f"{folder} holds latents of {side} x {side}, the config wants {latent_size} x {latent_size}; "
                    f"encode pictures of {size} px"
                )
            continue
        record = records.unpack(first)
        if record.size != size:
            raise ValueError(f"{folder} holds pictures of {record.size} px, the config wants {size}; draw them anew")
        if stage == "interpolation" and len(record.views) != cameras.NUM_VIEWS:
            raise ValueError(
                f"{folder} holds {len(record.views)} views an object, the interpolation learns from "
                f"{cameras.NUM_VIEWS}; draw them with --views={cameras.NUM_VIEWS}"
            )
        if stage != "interpolation" and not set(record.anchors) <= set(record.normal_views):
            raise ValueError(
                f"{folder} holds no normal maps of the anchors, from which the {stage} learns; draw them without "
                "--nonormals"
            )
    if len(kinds) > 1:
        raise ValueError(f"{', '.join(folders)}: some records are encoded and some are pictures; give one kind")
    return kinds.pop()


def _decoder(folder: str, data: bytes, stage: Stage) -> Callable[[bytes, np.random.Generator], dict[str, np.ndarray]]:
    """Makes examples of records like this one of a folder."""
    try:
        if encoded.is_encoded(data):
            encoded.unpack(data, stage)
            return functools.partial(_encoded_example, stage)
        records.unpack(data)
        return functools.partial(_picture_example, stage)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _picture_example(stage: Stage, data: bytes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    record = records.unpack(data)
    return {"id": np.array(record.id), **EXAMPLES[stage](record, rng)}


def _encoded_example(stage: Stage, data: bytes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    record = encoded.unpack(data, stage)
    return {"id": np.array(record.id), **encoded.EXAMPLES[stage](record.arrays, rng)}
