"""Grain pipelines from record shards to batches, one a stage.

Batches hold uint8 images (a quarter of the bytes of float32 on their way to the device); the training step scales them.
Random choices come from Grain's per-example generator, so a batch depends only on the seed and on its position, not on
the number of workers, and a saved iterator continues where it stopped.
"""

import os
from typing import Literal

import grain
import numpy as np
from jaxtyping import UInt8

from e3d_jax import cameras, images
from e3d_jax.data import records

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
    :func:`normals_example`.
    """
    first = 0 if rng.random() < 0.5 else int(rng.integers(cameras.NUM_ANCHORS))
    order = np.roll(cameras.ANCHORS, -first)
    return {
        "condition": np.stack(condition_pair(record, first)),
        "target": np.stack([[record.view(i) for i in order], [record.normal(i) for i in order]]),
        "azimuth": cameras.azimuths(cameras.NUM_ANCHORS)[first],
    }


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
    view, normal = record.view(cameras.ANCHORS[anchor]), record.normal(cameras.ANCHORS[anchor])
    box = images.object_box(view[..., 3] / np.float32(255))
    crop = lambda image: images.to_uint8(images.crop(image / np.float32(255), box, record.size))  # noqa: E731
    return crop(view), crop(normal)


def make_loader(
    folder: str | os.PathLike,
    stage: Stage,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless, checkpointable iterator of this process's share of the batches.

    Args:
      folder: where the record shards are.
      stage: whose examples to make.
      batch_size: examples a batch of this process.
      seed: of the shuffle and of every random choice.
      workers: decoding processes; 0 decodes in threads of this one.
      process_index: which share of the records this process reads.
      process_count: number of shares.

    Raises:
      FileNotFoundError, ValueError: see :func:`e3d_jax.data.records.find_shards`; or fewer records than a batch.
    """
    source = grain.sources.ArrayRecordDataSource(records.find_shards(folder))
    if len(source) < batch_size * process_count:
        raise ValueError(
            f"{folder} holds {len(source)} records, fewer than one batch of {batch_size * process_count}; "
            "make more records or lower the batch size"
        )
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    # Random choices before the split: they follow an example's place in the global order.
    examples = dataset.map(records.unpack).random_map(EXAMPLES[stage])[process_index::process_count]
    batches = examples.to_iter_dataset().batch(batch_size, drop_remainder=True)
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(batches)
