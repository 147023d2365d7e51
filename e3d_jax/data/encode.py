"""Turn records of pictures into records of latents and image tokens, so that U-Nets train without their encoders.

    python -m e3d_jax.data.encode --config=configs/envision3d.py --stage=anchor --weights=DIR --records=DIR2 --out=DIR3

Needs the stage's image encoder, its autoencoder and, for the anchor stage, the normal estimator in ``--weights``; the
image encoder must be one that training leaves alone (``train.freeze``). Shards keep their names and those that exist
are kept, so the same call continues an interrupted one; several machines may each do every n-th (``--share=I/N``).
"""

import functools
import pathlib
import sys
import typing
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import app, flags
from array_record.python import array_record_data_source
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import config_flags

from e3d_jax import cameras
from e3d_jax.data import encoded, loader, records
from e3d_jax.models import build, latents, stages
from e3d_jax.training import losses
from e3d_jax.weights import folder


@jax.jit
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
    encode = functools.partial(losses.encode_scaled, autoencoder)
    see = lambda rgba: stage.condition(latents.network_image(rgba)[None], encode(rgba)[None])  # noqa: E731

    def from_anchor(inputs):
        """Everything in the frame of one input view."""
        azimuth, order, pair = inputs
        turned = latents.turn_normals(maps[order] / 255.0, jnp.full(len(order), azimuth))
        pair = pair / 255.0
        pair = pair.at[1].set(latents.turn_normals(pair[1:], azimuth[None])[0])
        three = jnp.concatenate([pair, losses.estimate_normals(normals, pair[None])])
        known = see(three)
        return encode(turned), known.latents[:, 0], known.tokens[:, 0, 0]

    # One input view after another, so that memory stays that of one.
    anchors = np.arange(cameras.NUM_ANCHORS)
    order = (anchors[:, None] + anchors) % cameras.NUM_ANCHORS
    azimuths = cameras.azimuths(cameras.NUM_ANCHORS).astype(np.float32)
    turned, condition, tokens = jax.lax.map(from_anchor, (azimuths, order, pairs))
    blank = see(jnp.broadcast_to(losses.BLANK, (1, *views.shape[1:])))
    return {
        "views": encode(views / 255.0),
        "normals": turned,
        "condition": condition,
        "tokens": tokens,
        "blank": blank.latents[0, 0],
        "blank_token": blank.tokens[0, 0, 0],
    }


@jax.jit
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
    clean = jax.lax.map(lambda view: losses.encode_scaled(autoencoder, view[None] / 255.0)[0], views, batch_size=8)
    return {"views": clean, "anchors": anchors, "tokens": tokens, "strength": strength}


def make_encoder(
    config: Mapping[str, Any], stage: build.Component, weights: str, seed: int
) -> Callable[[records.Record], encoded.Encoded]:
    """A function from an object's pictures to its encodings.

    Raises:
      FileNotFoundError, ValueError: weights are missing, or of another architecture; or the stage trains its image
        encoder, whose tokens therefore cannot be kept.
    """
    if "image_encoder" not in config[stage]["train"]["freeze"]:
        raise ValueError(
            f"the {stage} stage trains its image encoder, so its tokens cannot be kept; freeze it with "
            f"--config.{stage}.train.freeze=\"('image_encoder',)\", or train from pictures"
        )
    dtype = "bfloat16" if jax.default_backend() in ("gpu", "tpu") else "float32"
    modules = {}
    roles: tuple[build.Component, ...] = (stage, *losses.NEEDS[stage])
    for role in roles:
        name = build.provider(config, stage, role)
        modules[role] = folder.restore(folder.resolve(weights), name, config, dtype=dtype)

    def encode(record: records.Record) -> encoded.Encoded:
        if stage == "anchor":
            views = np.stack([record.view(i) for i in record.anchors])
            maps = np.stack([record.normal(i) for i in record.anchors])
            pairs = np.stack([np.stack(loader.condition_pair(record, a)) for a in range(cameras.NUM_ANCHORS)])
            arrays = encode_anchors(modules[stage], modules["autoencoder"], modules["normals"], views, maps, pairs)
        else:
            views = np.stack([record.view(i) for i in range(cameras.NUM_VIEWS)])
            # The noise follows the object, not its place in a shard.
            key = jax.random.key(zlib.crc32(record.id.encode(), seed))
            log_noise = config[stage]["loss"]["log_augmentation_mean"]
            arrays = encode_windows(modules[stage], modules["autoencoder"], views, key, log_noise)
        kept = {name: np.asarray(x, np.float32 if name == "strength" else np.float16) for name, x in arrays.items()}
        if overflown := sorted(name for name, x in kept.items() if not np.isfinite(x).all()):
            raise ValueError(
                f"record {record.id!r}: {', '.join(overflown)} are not finite in float16; check the weights"
            )
        return encoded.Encoded(id=record.id, stage=stage, arrays=kept)

    return encode


def define_flags() -> None:
    """The options of the command; defined late, so that commands can be imported together."""
    config_flags.DEFINE_config_file("config", "configs/envision3d.py", "The system.")
    flags.DEFINE_enum("stage", None, list(encoded.EXAMPLES), "The stage to encode for.", required=True)
    flags.DEFINE_string("weights", None, "Weights folder.", required=True)
    flags.DEFINE_string("records", None, "Folder of record shards of pictures.", required=True)
    flags.DEFINE_string("out", None, "Folder of the encoded shards.", required=True)
    flags.DEFINE_integer("seed", 0, "Of the noise in the anchors of windows.", lower_bound=0)
    flags.DEFINE_string("share", "0/1", "I/N: do shards I, I + N, ...")


def main(_) -> None:
    """Encodes shard after shard."""
    try:
        index, count = map(int, flags.FLAGS.share.split("/"))
        shards = records.find_shards(flags.FLAGS.records)[index::count]
        stage = typing.cast(build.Component, flags.FLAGS.stage)
        encode = make_encoder(flags.FLAGS.config.to_dict(), stage, flags.FLAGS.weights, flags.FLAGS.seed)
        for shard in tqdm.tqdm(shards, unit="shard", disable=None):
            path = pathlib.Path(flags.FLAGS.out) / pathlib.Path(shard).name
            if path.exists():
                continue
            source = array_record_data_source.ArrayRecordDataSource(shard)
            with records.Writer(path) as writer:
                for i in range(len(source)):
                    writer.write(encoded.pack(encode(records.unpack(source[i]))))
    except (ValueError, OSError) as error:
        sys.exit(f"e3d_jax.data.encode: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
