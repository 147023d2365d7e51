"""Turn records of pictures into records of latents and image tokens, so that U-Nets train without their encoders.

    python -m e3d_jax.data.encode --config=configs/envision3d.py --stage=anchor --weights=DIR --records=DIR2 --out=DIR3

Needs the stage's image encoder, its autoencoder and, for the anchor stage, the normal estimator in ``--weights``; the
image encoder must be one that training leaves alone (``train.freeze``). Anchor examples are not mirrored then, as they
are when made from pictures. Shards keep their names and those that exist are kept, so the same call continues an
interrupted one; several machines may each do every n-th (``--shard=I/N``).
"""

import functools
import itertools
import pathlib
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags
from array_record.python import array_record_data_source
from flax import nnx
from jaxtyping import Array, Float, UInt8

from e3d_jax import cameras, commands, settings
from e3d_jax.data import encoded, engine, loader, parallel, records
from e3d_jax.models import build, latents, stages
from e3d_jax.training import losses
from e3d_jax.weights import folder

# Pictures in one pass of the autoencoder, in pixels; bounds its memory.
PIXELS_AT_ONCE = 2**21
OBJECTS_AT_ONCE = 4


def encode_anchors(
    stage: stages.AnchorStage,
    autoencoder: nnx.Module,
    normals: nnx.Module,
    views: UInt8[Array, "8 h w 4"],
    maps: UInt8[Array, "8 h w 4"],
    pairs: UInt8[Array, "8 2 h w 4"],
) -> dict[str, Array]:
    """What the anchor stage trains on of one object, as :mod:`e3d_jax.data.encoded` has it.

    Args:
      stage: for its image encoder.
      autoencoder: of both domains.
      normals: the estimator.
      views: the colour anchors.
      maps: their normal maps, in the record's frame.
      pairs: of every anchor, what its picture becomes as an input, and the normal map of that.
    """
    encode = functools.partial(_encode, autoencoder)
    see = lambda rgba: stage.condition(latents.network_image(rgba), encode(rgba))  # noqa: E731
    anchors = np.arange(cameras.NUM_ANCHORS)
    order = (anchors[:, None] + anchors) % cameras.NUM_ANCHORS
    azimuths = jnp.asarray(cameras.azimuths(cameras.NUM_ANCHORS))
    # Row by row, everything in the frame of one input view.
    pairs = losses.turned(pairs / 255.0, azimuths)
    known = see(jnp.concatenate([pairs, losses.estimate_normals(normals, pairs)[:, None]], 1))
    blank = see(jnp.broadcast_to(losses.BLANK, (1, 1, *views.shape[1:])))
    return {
        "views": encode(views / 255.0),
        "normals": encode(latents.turn_normals(maps[order] / 255.0, azimuths)),
        "condition": jnp.moveaxis(known.latents, 0, 1),
        "tokens": jnp.moveaxis(known.tokens[:, :, 0], 0, 1),
        "blank": blank.latents[0, 0],
        "blank_token": blank.tokens[0, 0, 0],
    }


def _encode(autoencoder, rgba: Float[Array, "*b h w 4"]) -> Float[Array, "*b hl wl c"]:
    """Scaled latents, of so many pictures at once that memory does not grow with their number."""
    pictures = rgba.reshape(-1, *rgba.shape[-3:])
    at_once = max(1, PIXELS_AT_ONCE // (rgba.shape[-3] * rgba.shape[-2]))
    found = jax.lax.map(functools.partial(losses.encode_scaled, autoencoder), pictures, batch_size=at_once)
    return found.reshape(*rgba.shape[:-3], *found.shape[1:])


def encode_windows(
    stage: stages.InterpolationStage,
    autoencoder: nnx.Module,
    views: UInt8[Array, "32 h w 4"],
    key: jax.Array,
    log_noise: float | Float[Array, ""],
) -> dict[str, Array]:
    """What the interpolation stage trains on of one object, as :mod:`e3d_jax.data.encoded` has it.

    Args:
      stage: for its image encoder.
      autoencoder: of the pictures.
      views: the ring.
      key: of the noise in the anchors.
      log_noise: mean logarithm of its standard deviation.
    """

    def from_anchor(inputs):
        frames, key = inputs
        window = {"window": views[frames][None]}
        _, known = losses.window_of_images(stage, {"autoencoder": autoencoder}, window, key, mean=log_noise)
        return known.latents[0], known.token[0, 0], known.noise[0]

    frames = np.stack([cameras.window_views(anchor) for anchor in range(cameras.NUM_ANCHORS)])
    anchors, tokens, strength = jax.lax.map(from_anchor, (frames, jax.random.split(key, len(frames))))
    return {"views": _encode(autoencoder, views / 255.0), "anchors": anchors, "tokens": tokens, "strength": strength}


def pictures_of(stage: build.Component, data: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """A packed record's id, and the pictures that are encoded; the work of the host."""
    record = records.unpack(data)
    if stage == "interpolation":
        return record.id, {"views": np.stack([record.view(i) for i in range(cameras.NUM_VIEWS)])}
    views = np.stack([record.view(i) for i in record.anchors])
    maps = np.stack([record.normal(i) for i in record.anchors])
    pairs = np.stack([np.stack(loader.condition_pair(record, a)) for a in range(cameras.NUM_ANCHORS)])
    return record.id, {"views": views, "maps": maps, "pairs": pairs}


def make_encoder(
    config: Mapping[str, Any], stage: build.Component, weights: str, seed: int = 0
) -> Callable[[list[tuple[str, dict[str, np.ndarray]]]], dict[str, Array]]:
    """A function from what :func:`pictures_of` gives of some objects to their encodings, one array a name.

    Args:
      config: a whole system's.
      stage: to encode for.
      weights: folder, or bundled weights.
      seed: of the noise in the anchors of windows.

    Raises:
      FileNotFoundError, ValueError: weights are missing, or of another architecture; or the stage is not to be trained
        on encodings.
    """
    settings.check(config)
    losses.check_encoded(stage, config[stage])
    dtype = "bfloat16" if jax.default_backend() in ("gpu", "tpu") else "float32"
    modules = []
    roles: tuple[build.Component, ...] = (stage, *losses.NEEDS[stage])
    for role in roles:
        name = build.provider(config, stage, role)
        modules.append(folder.restore(folder.resolve(weights), name, config, dtype=dtype))
    graph, state = nnx.split(tuple(modules))

    @jax.jit
    def encode_all(state, pictures, keys):
        parts = nnx.merge(graph, state)

        def one(inputs):
            pictures, key = inputs
            if stage == "anchor":
                return encode_anchors(*parts, **pictures)
            return encode_windows(*parts, **pictures, key=key, log_noise=config[stage]["loss"]["log_augmentation_mean"])

        kept = jax.lax.map(one, (pictures, keys))
        return {name: x.astype(jnp.float32 if name == "strength" else jnp.float16) for name, x in kept.items()}

    def encode(objects):
        # The noise follows the object, not its place in a shard.
        seeds = np.array([zlib.crc32(name.encode(), seed) for name, _ in objects], np.uint32)
        pictures = jax.tree.map(lambda *rows: np.stack(rows), *(pictures for _, pictures in objects))
        return encode_all(state, pictures, jax.vmap(jax.random.key)(seeds))

    return encode


def encode_objects(
    encode: Callable[..., dict[str, Array]],
    stage: build.Component,
    objects: Iterable[tuple[str, dict[str, np.ndarray]]],
) -> Iterator[encoded.Encoded]:
    """Encodings one by one, the device working on the next few objects meanwhile.

    Args:
      encode: from :func:`make_encoder`.
      stage: that it encodes for.
      objects: what :func:`pictures_of` gives.

    Raises:
      ValueError: an encoding is not finite.
    """
    objects = iter(objects)
    pending: tuple[list[str], dict[str, Array]] = ([], {})
    while batch := list(itertools.islice(objects, OBJECTS_AT_ONCE)):
        # The last batch repeats its last object, so that only one shape is ever compiled.
        filled = batch + batch[-1:] * (OBJECTS_AT_ONCE - len(batch))
        ahead = [name for name, _ in batch], encode(filled)
        yield from _fetch(stage, *pending)
        pending = ahead
    yield from _fetch(stage, *pending)


def _fetch(stage, names, arrays) -> Iterator[encoded.Encoded]:
    arrays = jax.device_get(arrays)
    for row, name in enumerate(names):
        kept = {part: x[row] for part, x in arrays.items()}
        if overflown := sorted(part for part, x in kept.items() if not np.isfinite(x).all()):
            raise ValueError(f"record {name!r}: {', '.join(overflown)} are not finite in float16; check the weights")
        yield encoded.Encoded(id=name, stage=stage, arrays=kept)


def define_flags() -> None:
    """The options of the command; defined late, so that commands can be imported together."""
    flags.DEFINE_enum("stage", None, list(encoded.EXAMPLES), "The stage to encode for.", required=True)
    flags.DEFINE_string("weights", None, "Weights folder.", required=True)
    flags.DEFINE_string("records", None, "Folder of record shards of pictures.", required=True)
    flags.DEFINE_string("out", None, "Folder of the encoded shards.", required=True)
    flags.DEFINE_integer("seed", 0, "Of the noise in the anchors of windows.", lower_bound=0)
    flags.DEFINE_integer("workers", None, "Decoding processes; one a core when not given.", lower_bound=1)
    flags.DEFINE_string("shard", "0/1", "I/N, I from 0 on: do shards I, I + N, ...")


def main(_) -> None:
    """Encodes shard after shard."""
    index, count = engine.parse_shard(flags.FLAGS.shard)
    shards = records.find_shards(flags.FLAGS.records)[index::count]
    stage = typing.cast(build.Component, flags.FLAGS.stage)
    config = flags.FLAGS.config.to_dict()
    latent_size = build.latent_size(config, stage)
    if loader.holds_encoded(
        [flags.FLAGS.records], typing.cast(loader.Stage, stage), size=config["size"], latent_size=latent_size
    ):
        raise ValueError(f"{flags.FLAGS.records} holds encoded records; give records of pictures")
    encode = make_encoder(config, stage, flags.FLAGS.weights, flags.FLAGS.seed)
    sources = {
        path: array_record_data_source.ArrayRecordDataSource(shard)
        for shard in shards
        if not (path := pathlib.Path(flags.FLAGS.out) / pathlib.Path(shard).name).exists()
    }
    with (
        parallel.host_processes(flags.FLAGS.workers) as pool,
        tqdm.tqdm(total=sum(map(len, sources.values())), unit="object", mininterval=2) as bar,
    ):
        packed = (source[i] for source in sources.values() for i in range(len(source)))
        pictures = parallel.in_order(pool, functools.partial(pictures_of, stage), packed)
        objects = encode_objects(encode, stage, pictures)
        for path, source in sources.items():
            with records.Writer(path) as writer:
                for one in itertools.islice(objects, len(source)):
                    writer.write(encoded.pack(one))
                    bar.update()


if __name__ == "__main__":
    define_flags()
    commands.run(main, "e3d_jax.data.encode", "configs/envision3d.py")
