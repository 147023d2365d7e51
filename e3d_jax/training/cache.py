"""Cache latents: records of images become records of what the frozen components of a stage make of them.

The denoiser then trains without its encoders. Needs the stage's image encoder, its autoencoder and, for the anchor
stage, the normal estimator in the weights; the image encoder must be one that training leaves alone
(``train.freeze``).
"""

import functools
import itertools
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from e3d_jax import config as config_lib
from e3d_jax import distributed, files, stages, stores
from e3d_jax.data import damage, engine, loader, records
from e3d_jax.data import latents as latent_records
from e3d_jax.stages import base, caching
from e3d_jax.weights import folder

OBJECTS_AT_ONCE = 4
# Floats are stored in half precision, which NumPy reads anywhere, as it does not bfloat16; except these.
FULL_PRECISION = {"strength", "poses", "input_poses", "input_fov"}

Decoded = tuple[str, dict[str, np.ndarray]]


class PackedRecords(Sequence):
    """The records of a shard, each with the shard and its number, read one by one; see :class:`damage.Numbered`.

    A shard at a URL is read from a copy on the machine that reads it.
    """

    def __init__(self, path: str):
        self._path = path

    def __reduce__(self):
        return PackedRecords, (self._path,)

    @functools.cached_property
    def _records(self) -> damage.Numbered:
        return damage.Numbered(loader.open_shards([stores.local(self._path)]))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> tuple[str, int, Any]:
        return self._path, *self._records[index]

    def __iter__(self) -> Iterator[Any]:
        # By length: past the last record the reader does not raise the IndexError that ends other sequences.
        return map(self.__getitem__, range(len(self)))


def cache_dataset(
    config: config_lib.SystemConfig,
    stage: str,
    weights: str,
    dataset: str,
    out: str,
    *,
    seed: int = 0,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    runner: engine.Runner = engine.write_shards,
) -> engine.Counts:
    """Cache a dataset of images for a stage; shards keep their names, and those that exist are kept.

    Records that cannot be used are skipped.

    Args:
      config: of the system.
      stage: that will be trained.
      weights: folder of the frozen components, or bundled weights.
      dataset: folder of record shards of images.
      out: folder of the new shards.
      seed: of the noise in the anchors of windows.
      workers: decoding processes; one per core when not given.
      shard: (i, n): do every n-th shard from the i-th on.
      runner: does the job.

    Raises:
      FileNotFoundError: records or weights are missing.
      ValueError: the dataset does not hold images that the stage can learn from, or the stage cannot be trained on
        cached latents.
      OSError: ``out`` cannot be written.
    """
    index, count = shard
    if loader.kind_of([dataset], stages.get(stage), config) != "images":
        raise ValueError(f"{dataset} holds cached latents; give a dataset of images")
    cached_source(config, stage)
    folder.resolve(weights)
    paths = records.find_shards(dataset)[index::count]
    names = [pathlib.PurePath(path).name for path in paths]
    shards = [
        engine.Shard(name.removesuffix(records.SUFFIX), PackedRecords(files.join(dataset, name))) for name in names
    ]
    work = functools.partial(make_work, config, stage, weights, seed)
    return runner(engine.Job(out, shards, work, seed), workers=workers)


def make_work(config: config_lib.SystemConfig, stage: str, weights: str, seed: int) -> engine.Work:
    """Load the weights and return the work of caching; arguments and exceptions as of :func:`make_compute`."""
    images, source = stages.get(stage).sources["images"], cached_source(config, stage)
    return engine.Work(
        prepare=functools.partial(_read, images, source, config),
        device=functools.partial(compute_objects, make_compute(config, stage, weights, seed)),
        finish=functools.partial(_pack, stage),
    )


def cached_source(config: config_lib.SystemConfig, stage: str) -> caching.CachedSource:
    """Return what a stage caches.

    Raises:
      ValueError: it learns from images alone, or its settings need them.
    """
    definition = stages.get(stage)
    source = definition.sources.get("latents")
    if not isinstance(source, caching.CachedSource):
        raise ValueError(f"the {stage} stage trains on images, which cached latents do not hold")
    definition.check_source("latents", config[stage])
    return source


def _read(
    images: base.Source, source: caching.CachedSource, config: config_lib.SystemConfig, item: tuple[str, int, Any]
) -> Decoded | engine.Skipped:
    path, index, data = item
    try:
        if isinstance(data, Exception):
            raise data
        record = images.unpack(data)
        images.check(record, config)
        return record.id, source.read(record, config)
    except Exception as error:  # Decoders of damaged bytes raise anything.
        folder = path.rpartition("/")[0]
        return engine.Skipped(f"{damage.describe(folder, [path], index, data, error)}; write it again")


def _pack(stage: str, computed: Decoded) -> bytes:
    name, arrays = computed
    return latent_records.pack(latent_records.Latents(name, stage, arrays))


def make_compute(
    config: config_lib.SystemConfig, stage: str, weights: str, seed: int = 0
) -> Callable[[list[Decoded]], dict[str, Array]]:
    """Return a function from the decoded images of some objects to their cached arrays, one leading axis for all.

    Args:
      config: of the system.
      stage: to cache for.
      weights: folder, or bundled weights.
      seed: of the noise in the anchors of windows.

    Raises:
      FileNotFoundError, ValueError: weights are missing or have another architecture; or see :func:`cached_source`.
    """
    source = cached_source(config, stage)
    dtype = distributed.compute_dtype()
    path, modules = folder.resolve(weights), {}
    for role in (stage, *stages.get(stage).needs):
        name = config.provider(stage, role) if role != stage else stage
        modules[role] = folder.restore(path, name, config, dtype=dtype)
    graph, state = nnx.split(modules)

    @jax.jit
    def compute_all(state, arrays, keys):
        frozen = nnx.merge(graph, state)
        model = frozen.pop(stage)
        computed = jax.lax.map(lambda inputs: source.compute(model, frozen, *inputs, config), (arrays, keys))
        return {name: x.astype(stored_type(name, x.dtype)) for name, x in computed.items()}

    def compute(objects):
        # The noise follows the object, not its place in a shard.
        seeds = np.array([zlib.crc32(name.encode(), seed) for name, _ in objects], np.uint32)
        arrays = jax.tree.map(lambda *rows: np.stack(rows), *(arrays for _, arrays in objects))
        return compute_all(state, arrays, jax.vmap(jax.random.key)(seeds))

    return compute


def stored_type(name: str, computed: Any) -> Any:
    """Return the type in which a cached array is stored.

    Args:
      name: of the array.
      computed: the type that it was computed in.
    """
    return jnp.float16 if jnp.issubdtype(computed, jnp.floating) and name not in FULL_PRECISION else computed


def compute_objects(
    compute: Callable[[list[Decoded]], dict[str, Array]], objects: Iterator[Decoded]
) -> Iterator[Decoded]:
    """Yield the id and cached arrays of each object, the device working on the next few objects meanwhile.

    Args:
      compute: from :func:`make_compute`.
      objects: ids and decoded images.

    Raises:
      ValueError: an array is not finite.
    """
    objects = iter(objects)
    pending: tuple[list[str], dict[str, Array]] = ([], {})
    while batch := list(itertools.islice(objects, OBJECTS_AT_ONCE)):
        # The last batch repeats its last object, so that only one shape is ever compiled.
        filled = batch + batch[-1:] * (OBJECTS_AT_ONCE - len(batch))
        ahead = [name for name, _ in batch], compute(filled)
        yield from _fetch(*pending)
        pending = ahead
    yield from _fetch(*pending)


def _fetch(names: list[str], arrays: dict[str, Array]) -> Iterator[Decoded]:
    arrays = jax.device_get(arrays)
    for row, name in enumerate(names):
        kept = {part: np.asarray(x[row]) for part, x in arrays.items()}
        overflown = sorted(part for part, x in kept.items() if x.dtype.kind == "f" and not np.isfinite(x).all())
        if overflown:
            raise ValueError(f"record {name!r}: {', '.join(overflown)} are not finite in float16; check the weights")
        yield name, kept
