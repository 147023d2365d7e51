"""What the anchor stage learns from: images of objects, or their cached latents, as batches and as sources of them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from e3d_jax import cameras, structs
from e3d_jax.data import latents as latent_records
from e3d_jax.data import records
from e3d_jax.diffusion import denoiser
from e3d_jax.models import denoisers, latents
from e3d_jax.stages import base, caching, common, conditions, normals

# An image without an object, which stands for a dropped condition.
BLANK = np.array([1.0, 1.0, 1.0, 0.0], np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Images of several objects: inputs with normal maps, and the anchors in both domains.

    Attributes:
      inputs: color and normal map of each input, framed as a user's image is.
      input_cameras: of the framed inputs.
      targets: the anchors, starting from the azimuth of the first input.
      cameras: of the anchors. Cameras and normals are in the world frame of the record.
      count: how many of the inputs exist, from the first one on.
    """

    inputs: UInt8[Any, "*b d n h w 4"]
    input_cameras: structs.Cameras
    targets: UInt8[Any, "*b d v h w 4"]
    cameras: structs.Cameras
    count: Int[Any, "*b"]

    def azimuth(self) -> Float[Array, " b"]:
        """Return the azimuth of the first input, which is 0 in the frame that the stage works in."""
        return cameras.azimuth_of(self.input_cameras.world_from_cam)[:, 0]

    def existing(self) -> Int[Array, " b"] | None:
        """Return how many inputs exist; None if there is one, as the first always does."""
        return self.count if self.inputs.shape[2] > 1 else None

    def true_inputs(self) -> Float[Array, "b d n h w 4"]:
        """Return the inputs and their normal maps in the stage's frame, in [0, 1]."""
        return turn(common.unit(self.inputs), self.azimuth())

    def true_views(self) -> Float[Array, "b d v h w 4"]:
        """Return the anchors in the stage's frame, in [0, 1]."""
        return turn(common.unit(self.targets), self.azimuth())

    def labels(self, known: Bool[Array, "b n 2"] | None) -> Float[Array, "b d views 12"]:
        """Return the labels of :func:`conditions.view_labels`; those of the release if ``known`` is None."""
        return _labels(
            self.cameras.world_from_cam, self.input_cameras.world_from_cam, cameras.fov_of(self.input_cameras), known
        )

    def prepare(
        self,
        model: Any,
        frozen: base.Modules,
        estimated: Bool[Array, " b"],
        dropped: Bool[Array, " b"],
        known: Bool[Array, "b n 2"] | None = None,
    ) -> tuple[Float[Array, "b d v hl wl c"], denoisers.AnchorCondition]:
        """Return the scaled latents of the anchors, and the condition.

        Args:
          model: the stage's module.
          frozen: ``autoencoder`` and ``normals``.
          estimated: which examples have estimated input normal maps.
          dropped: which examples have a blank condition.
          known: whether field of view and elevation of each input are known; None for the labels of the release.
        """
        inputs = self.true_inputs()
        estimate = normals.estimate(frozen["normals"], inputs[:, 0], inputs[:, 1, ..., 3:])
        estimate = turn_others(estimate, self.input_cameras.world_from_cam)
        normal = jnp.where(denoiser.expand(estimated, estimate), estimate, inputs[:, 1])
        inputs = jnp.where(denoiser.expand(dropped, inputs), BLANK, inputs.at[:, 1].set(normal))
        encode = functools.partial(common.encode_scaled, frozen["autoencoder"])
        condition = conditions.anchor_condition(model, inputs, encode(inputs), self.labels(known), self.existing())
        return encode(self.true_views()), condition


def turn(maps: Float[Array, "b 2 *n h w 4"], azimuth: Float[Array, " b"]) -> Float[Array, "b 2 *n h w 4"]:
    """Turn the normal maps of pairs (:func:`latents.turn_normals`)."""
    return maps.at[:, 1].set(latents.turn_normals(maps[:, 1], azimuth))


def turn_others(estimates: Float[Array, "b n h w 4"], poses: Float[Array, "b n 4 4"]) -> Float[Array, "b n h w 4"]:
    """Turn normal maps that are each in the frame of their own input into that of the first.

    Args:
      estimates: encoded normal maps; the first stays.
      poses: ``world_from_cam`` of the inputs.
    """
    others, azimuth = estimates[:, 1:], cameras.relative_azimuth(poses[:, 1:], poses[:, :1])
    flat = others.reshape(-1, *others.shape[2:])
    turned = latents.turn_normals(flat, -azimuth.reshape(-1))
    return jnp.concatenate([estimates[:, :1], turned.reshape(others.shape)], 1)


def _labels(poses: Any, input_poses: Any, fov: Any, known: Any) -> Any:
    return conditions.view_labels(poses, input_poses, None if known is None else fov, known)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentBatch:
    """Cached latents of several objects, float16; see :class:`Latents`.

    Attributes:
      inputs: scaled latents of each color input, of its rendered and of its estimated normal map.
      tokens: their image tokens.
      blank: the same of an image without an object.
      blank_token: its image token.
      input_poses: ``world_from_cam`` of the inputs.
      input_fov: see :func:`cameras.fov_of`.
      targets: scaled latents of the anchors.
      poses: ``world_from_cam`` of the anchors.
      count: how many of the inputs exist, from the first one on.
    """

    inputs: Float[Any, "*b n 3 h w c"]
    tokens: Float[Any, "*b n 3 e"]
    blank: Float[Any, "*b h w c"]
    blank_token: Float[Any, "*b e"]
    input_poses: Float[Any, "*b n 4 4"]
    input_fov: Float[Any, "*b n"]
    targets: Float[Any, "*b d v h w c"]
    poses: Float[Any, "*b v 4 4"]
    count: Int[Any, "*b"]

    def prepare(
        self,
        model: Any,
        frozen: base.Modules,
        estimated: Bool[Array, " b"],
        dropped: Bool[Array, " b"],
        known: Bool[Array, "b n 2"] | None = None,
    ) -> tuple[Float[Array, "b d v hl wl c"], denoisers.AnchorCondition]:
        """Do what :meth:`Batch.prepare` does; needs neither the module nor frozen components."""
        del model, frozen

        def choose(options, blank):
            normal = jnp.where(denoiser.expand(estimated, options[:, :, 2]), options[:, :, 2], options[:, :, 1])
            pairs = jnp.stack([options[:, :, 0], normal], 1).astype(jnp.float32)
            return jnp.where(denoiser.expand(dropped, pairs), blank[:, None, None].astype(jnp.float32), pairs)

        tokens = choose(self.tokens, self.blank_token)[..., None, :]
        labels = _labels(self.poses, self.input_poses, self.input_fov, known)
        count = self.count if self.inputs.shape[1] > 1 else None
        condition = denoisers.AnchorCondition(choose(self.inputs, self.blank), tokens, labels, count)
        return self.targets.astype(jnp.float32), condition


def num_fronts(record: records.Record) -> int:
    """Return how many of the inputs can be the first: all views of the layout, but one with a camera of its own."""
    return 1 if record.is_framed(record.inputs[0]) else len(record.inputs)


def choose_inputs(fronts: int, count: int, most: int, rng: np.random.Generator) -> list[int]:
    """Choose inputs of an object: half of the time number 0 is the first, else any that can be; then up to ``most``.

    Args:
      fronts: how many can be the first.
      count: how many there are.
      most: how many to choose at most.
      rng: source of randomness.
    """
    first = 0 if rng.random() < 0.5 else int(rng.integers(fronts))
    if most == 1:
        return [first]
    others = rng.permutation([number for number in range(count) if number != first])
    return [first, *others[: rng.integers(most)].tolist()]


def example_from(record: records.Record, inputs: Sequence[int], slots: int = 1) -> Batch:
    """Make an example.

    Args:
      record: of the object.
      inputs: numbers of the record's inputs, the first one first.
      slots: inputs of the example; those that do not exist repeat the first.
    """
    order = common.anchors_from(record, inputs[0])
    pairs = [normals.input_pair(record, record.inputs[number]) for number in inputs]
    pairs += pairs[:1] * (slots - len(pairs))
    pictures, maps, views = zip(*pairs, strict=True)
    targets = np.stack([[record.image(view, name) for view in order] for name in conditions.DOMAINS])
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *views)
    return Batch(np.array([pictures, maps]), joined, targets, record.cameras[order], np.int32(len(inputs)))


def mirrored(example: Batch) -> Batch:
    """Return an example of the object's mirror image, which is as good an object."""
    inputs, targets = map(_mirrored_pairs, (example.inputs, example.targets))
    order = _backward(targets.shape[1])
    views = cameras.mirrored(example.cameras)[order]
    return Batch(inputs, cameras.mirrored(example.input_cameras), targets[:, order], views, example.count)


def _backward(views: int) -> Int[np.ndarray, " v"]:
    """Return the order of views around an object in the other direction, still starting with the first."""
    return -np.arange(views) % views


def _mirrored_pairs(maps: UInt8[np.ndarray, "2 *n h w 4"]) -> UInt8[np.ndarray, "2 *n h w 4"]:
    """Return images and normal maps flipped left to right."""
    color, normal = maps[..., ::-1, :].copy()
    # White stands for "no normal", which has no mirror image.
    normal[..., 1] = np.where(normal[..., 3] > 0, 255 - normal[..., 1], normal[..., 1])
    return np.stack([color, normal])


class Images(base.ImageSource):
    """The inputs and the anchors in both domains; half of the examples are mirror images."""

    def check(self, record: records.Record, config: Any) -> None:
        """Refuse records of another size, without normal maps, with another number of anchors, or with few inputs."""
        common.check_images(record, config, "anchor")
        common.check_anchors(len(record.anchors), config)
        _check_inputs(len(record.inputs), config)

    def example(self, record: records.Record, rng: np.random.Generator, config: Any) -> Batch:
        """Choose inputs and make their example."""
        most = config["anchor"].diffusion.max_inputs
        example = example_from(record, choose_inputs(num_fronts(record), len(record.inputs), most, rng), most)
        return mirrored(example) if rng.random() < 0.5 else example

    def spec(self, config: Any) -> Batch:
        """Return the shapes of an example."""
        maps, views = (config.size, config.size, 4), config.layout.num_anchors
        inputs = config["anchor"].diffusion.max_inputs
        return Batch(
            jax.ShapeDtypeStruct((len(conditions.DOMAINS), inputs, *maps), jnp.uint8),
            common.camera_spec(inputs, config.size),
            jax.ShapeDtypeStruct((len(conditions.DOMAINS), views, *maps), jnp.uint8),
            common.camera_spec(views, config.size),
            jax.ShapeDtypeStruct((), jnp.int32),
        )


def _check_inputs(count: int, config: Any) -> None:
    """Refuse records with fewer inputs than an example may have."""
    most = config["anchor"].diffusion.max_inputs
    if count < most:
        raise ValueError(
            f"holds {count} input image{'s' * (count != 1)} per object, but anchor.diffusion.max_inputs is {most}; "
            f"draw the objects with --inputs={most}"
        )


class Latents(caching.CachedSource):
    """Cached latents of an object with n inputs, f of which can be the first: all or one.

    Arrays, each for the object and for its mirror image: ``views`` [v, h, w, c], scaled latents of the color anchors;
    ``normals`` [f, v, h, w, c], of their normal maps in the frame of each first input, from that input's azimuth on;
    ``order`` [f, v], that order of the views; ``inputs`` [n, 3, h, w, c] and ``tokens`` [n, 3, e], of the framed input,
    its rendered and its estimated normal map, in the frame of the first input if there is one, else in its own;
    ``blank`` and ``blank_token``, of an image without an object; ``poses`` [v, 4, 4], ``input_poses`` [n, 4, 4] and
    ``input_fov`` [n].
    """

    stage = "anchor"

    def check(self, record: latent_records.Latents, config: Any) -> None:
        """Refuse latents of another size, of another number of anchors, with few inputs, or of an older version."""
        if record.arrays["order"].ndim != 3:
            raise ValueError("holds latents of an older version, without the mirror image; cache them again")
        views, inputs, order = (record.arrays[name][0] for name in ("views", "inputs", "order"))
        common.check_latents(views, config, "anchor")
        common.check_anchors(len(views), config)
        _check_inputs(len(inputs), config)
        if config["anchor"].diffusion.max_inputs > 1 and len(order) > 1:
            raise ValueError(
                "holds inputs that are views of the layout, each in a frame of its own, but "
                f"anchor.diffusion.max_inputs is {config['anchor'].diffusion.max_inputs}; draw the objects with input "
                "images of their own (--inputs), or train from images"
            )

    def example(self, record: latent_records.Latents, rng: np.random.Generator, config: Any) -> LatentBatch:
        """Choose inputs as :class:`Images` does, and make their example."""
        most = config["anchor"].diffusion.max_inputs
        fronts, count = (record.arrays[name].shape[1] for name in ("order", "inputs"))
        chosen = choose_inputs(fronts, count, most, rng)
        side = int(rng.random() < 0.5)
        arrays = {name: both[side] for name, both in record.arrays.items()}
        order = arrays["order"][chosen[0]]
        filled = chosen + chosen[:1] * (most - len(chosen))
        return LatentBatch(
            inputs=arrays["inputs"][filled],
            tokens=arrays["tokens"][filled],
            blank=arrays["blank"],
            blank_token=arrays["blank_token"],
            input_poses=arrays["input_poses"][filled],
            input_fov=arrays["input_fov"][filled],
            targets=np.stack([arrays["views"][order], arrays["normals"][chosen[0]]]),
            poses=arrays["poses"][order],
            count=np.int32(len(chosen)),
        )

    def spec(self, config: Any) -> LatentBatch:
        """Return the shapes of an example."""
        half, single = jnp.float16, jnp.float32
        side, channels = config.latent_size("anchor"), config.autoencoder("anchor").latent_channels
        token, latent = (config["anchor"].model.image_encoder.projection_dim,), (side, side, channels)
        views, inputs = config.layout.num_anchors, config["anchor"].diffusion.max_inputs
        return LatentBatch(
            inputs=jax.ShapeDtypeStruct((inputs, 3, *latent), half),
            tokens=jax.ShapeDtypeStruct((inputs, 3, *token), half),
            blank=jax.ShapeDtypeStruct(latent, half),
            blank_token=jax.ShapeDtypeStruct(token, half),
            input_poses=jax.ShapeDtypeStruct((inputs, 4, 4), single),
            input_fov=jax.ShapeDtypeStruct((inputs,), single),
            targets=jax.ShapeDtypeStruct((len(conditions.DOMAINS), views, *latent), half),
            poses=jax.ShapeDtypeStruct((views, 4, 4), single),
            count=jax.ShapeDtypeStruct((), jnp.int32),
        )

    def read(self, record: records.Record, config: Any) -> dict[str, np.ndarray]:
        """Decode what is cached of an object; the work of the host."""
        del config
        anchors, fronts = [int(view) for view in record.anchors], range(num_fronts(record))
        order = np.array([[anchors.index(view) for view in common.anchors_from(record, first)] for first in fronts])
        pictures, maps, views = zip(*(normals.input_pair(record, view) for view in record.inputs), strict=True)
        targets = np.stack([[record.image(view, name) for view in anchors] for name in conditions.DOMAINS])
        seen, taken = record.cameras[anchors], record.cameras[np.asarray(record.inputs)]
        fov = np.concatenate([cameras.fov_of(camera) for camera in views])

        def side(targets, pairs, order, seen, taken):
            poses = {"poses": seen.world_from_cam, "input_poses": taken.world_from_cam, "input_fov": fov}
            return {"targets": targets, "pairs": pairs, "order": order.astype(np.int32), **poses}

        pairs = np.array([pictures, maps])
        backward = order[:, _backward(len(anchors))]
        flipped = _mirrored_pairs(targets), _mirrored_pairs(pairs), backward
        sides = (
            side(targets, pairs, order, seen, taken),
            side(*flipped, cameras.mirrored(seen), cameras.mirrored(taken)),
        )
        return jax.tree.map(lambda *both: np.stack(both), *sides)

    def compute(self, model: Any, frozen: base.Modules, arrays: Any, key: jax.Array, config: Any) -> dict[str, Array]:
        """Compute what is cached of an object from :meth:`read`."""
        del key, config
        return jax.lax.map(lambda side: self._compute(model, frozen, side), arrays)

    def _compute(self, model: Any, frozen: base.Modules, arrays: Any) -> dict[str, Array]:
        """Compute what is cached of an object, or of its mirror image."""
        encode = caching.in_turns(functools.partial(common.encode_scaled, frozen["autoencoder"]))
        own = cameras.azimuth_of(arrays["input_poses"])
        fronts = own[: len(arrays["order"])]
        azimuth = jnp.broadcast_to(fronts, own.shape)  # of the first input, if there is one

        def see(rgba):
            return encode(rgba), model.tokens(latents.network_image(rgba))[:, :, 0]

        pairs = turn(common.unit(arrays["pairs"]).swapaxes(0, 1), azimuth)
        estimate = normals.estimate(frozen["normals"], pairs[:, 0], pairs[:, 1, ..., 3:])
        if len(fronts) == 1:
            estimate = turn_others(estimate[None], arrays["input_poses"][None])[0]
        views, maps = arrays["targets"]
        inputs, tokens = see(jnp.concatenate([pairs, estimate[:, None]], 1))
        blank, blank_token = see(jnp.broadcast_to(BLANK, (1, 1, *views.shape[1:])))
        return {
            "views": encode(common.unit(views)),
            "normals": encode(latents.turn_normals(common.unit(maps[arrays["order"]]), fronts)),
            "inputs": inputs,
            "tokens": tokens,
            "blank": blank[0, 0],
            "blank_token": blank_token[0, 0],
            **{name: arrays[name] for name in ("order", "poses", "input_poses", "input_fov")},
        }
