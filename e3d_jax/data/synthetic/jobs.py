"""Synthetic objects as shards of records."""

import functools
import os
import pathlib
import re

import numpy as np

from e3d_jax import cameras, files, images
from e3d_jax.data import engine, photographs, records
from e3d_jax.data.synthetic import examples

OBJECTS_PER_SHARD = 256


def pack(example: examples.Example, split: str, seed: int, rig: records.Rig, effects: float = 0.0) -> bytes:
    """Return an object's images as a record; runs in the encoding processes.

    Args:
      example: the images.
      split: "train" or "test".
      seed: of the sequence of objects.
      rig: of the views.
      effects: strength of what is added to input images (:func:`photographs.develop`).
    """
    name = examples.name_of(split, seed, example.index)
    provenance = {"generator": "e3d_jax.data.synthetic", "split": split, "seed": seed, "index": example.index}
    colors, normals = list(example.rgba), list(example.normals)
    if (inputs := example.inputs) is not None:
        rig = rig.with_inputs(inputs.cameras)
        for rgba, taken in zip(inputs.rgba, inputs.seeds.tolist(), strict=True):
            colors.append(images.to_uint8(photographs.develop(rgba / np.float32(255), taken, effects)))
        normals.extend(inputs.normals)
    maps = {"color": dict(enumerate(colors)), "normal": dict(zip(rig.normal_views, normals, strict=True))}
    return records.pack(records.encode(name, provenance, rig, maps))


def plan(
    out: str | os.PathLike, count: int, split: str, seed: int, shard: tuple[int, int] = (0, 1)
) -> tuple[list[engine.Shard], int]:
    """Return the shards of the objects that a dataset lacks, and how many it has.

    Objects are numbered and their shards are named by number, so that a dataset can be extended by a larger ``count``.

    Args:
      out: folder of the dataset.
      count: the objects are those from 0 to ``count - 1``.
      split: "train" or "test".
      seed: of the sequence of objects.
      shard: (i, n): only every n-th block of :data:`OBJECTS_PER_SHARD` objects, from the i-th on.
    """
    name = f"{split}-{seed}-{{:08d}}-{{:04d}}"
    pattern = re.compile(rf"{split}-{seed}-(\d+)-(\d+){re.escape(records.SUFFIX)}")
    there: set[int] = set()
    for path in files.glob(out, f"*{records.SUFFIX}"):
        if match := pattern.fullmatch(pathlib.PurePath(path).name):
            first, number = map(int, match.groups())
            there |= set(range(first, first + number))
    blocks = [range(first, min(first + OBJECTS_PER_SHARD, count)) for first in range(0, count, OBJECTS_PER_SHARD)]
    blocks = blocks[shard[0] :: shard[1]]
    shards = []
    for block in blocks:
        missing = np.array([index for index in block if index not in there])
        for run in np.split(missing, np.flatnonzero(np.diff(missing) != 1) + 1) if len(missing) else ():
            names = [examples.name_of(split, seed, index) for index in run.tolist()]
            shards.append(engine.Shard(name.format(run[0], len(run)), run.tolist(), names))
    return shards, sum(map(len, blocks)) - sum(len(each.items) for each in shards)


def make_work(split: str, seed: int, rig: records.Rig, inputs: cameras.InputCameras | None, batch: int) -> engine.Work:
    """Return the work of drawing objects by number; arguments as of :func:`write_records`."""
    draw = functools.partial(
        examples.generate,
        split,
        seed,
        cameras=rig.cameras,
        normal_views=np.array(rig.normal_views, int),
        inputs=inputs,
        batch=batch,
    )
    finish = functools.partial(pack, split=split, seed=seed, rig=rig, effects=inputs.effects if inputs else 0.0)
    return engine.Work(device=draw, finish=finish)


def write_records(
    out: str | os.PathLike,
    count: int,
    rig: records.Rig,
    *,
    inputs: cameras.InputCameras | None = None,
    split: str = "train",
    seed: int = 0,
    batch: int = 64,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    runner: engine.Runner = engine.write_shards,
) -> engine.Counts:
    """Draw on the device, encode in other processes, and write the objects that a dataset lacks.

    Args:
      out: folder of the dataset.
      count: the objects are those from 0 to ``count - 1``.
      rig: cameras to draw from.
      inputs: input images to draw beside the rig's views; none when not given.
      split: "train" or "test"; they share no object.
      seed: of the sequence of objects.
      batch: objects per call of the device, if a shard has as many.
      workers: encoding processes; one per core by default, 0 for none but this one.
      shard: (i, n): do the i-th of n parts of the work.
      runner: does the job.

    Raises:
      OSError: the folder cannot be written to.
      ValueError: it holds records of another schema version.
    """
    shards, already = plan(out, count, split, seed, shard)
    if already:
        records.check_schema(out)
    # What a batch lacks is drawn all the same, so that one shape is compiled.
    batch = min(batch, max((len(each.items) for each in shards), default=batch))
    work = functools.partial(make_work, split, seed, rig, inputs, batch)
    return runner(engine.Job(out, shards, work, seed), workers=workers)._replace(already=already)
