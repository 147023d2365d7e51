"""Stage 1: from an image-normal pair to the anchor views and their normal maps (Envision3D, arXiv 2403.08902)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from e3d_jax import cameras, images, settings, structs
from e3d_jax.data import latents as latent_records
from e3d_jax.data import records
from e3d_jax.diffusion import denoiser, samplers, schedules
from e3d_jax.models import anchor, denoisers, latents, layers
from e3d_jax.models import image_encoder as encoders
from e3d_jax.stages import base, caching, common, conditions, image_loss, normals

NETWORKS = {"unet": anchor.AnchorUNet}
# An image without an object, which stands for a dropped condition.
BLANK = np.array([1.0, 1.0, 1.0, 0.0], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(base.ModelSettings):
    """The networks of the stage."""

    architecture: str = settings.setting("Which denoising network.", "unet", choices=tuple(NETWORKS))
    unet: anchor.AnchorUNetSpec = settings.setting("Multi-view U-Net.", anchor.AnchorUNetSpec())
    image_encoder: encoders.ImageEncoderSpec = settings.setting("Makes the image tokens.", encoders.ImageEncoderSpec())
    injection: bool = settings.setting(
        "Inject the image-normal pair as in the paper; False is what the paper compares it with.", True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(settings.Settings):
    """What training and sampling must agree on."""

    prediction: str = settings.setting("What the network returns.", "epsilon", choices=("epsilon", "v"))
    zero_terminal_snr: bool = settings.setting(
        "Train down to pure noise (arXiv 2305.08891); takes prediction v.", False
    )
    shift: float = settings.setting(
        "Factor of the ratio of noise to signal at every level; 1 suits one 64 x 64 latent. The more pixels and views "
        "show the same thing, the more noise it takes to hide it (arXiv 2301.11093, 2405.10314).",
        1.0,
        above=0,
    )

    max_inputs: int = settings.setting(
        "Input images at most. Training draws their number; the first is the front.", 1, at_least=1, at_most=4
    )
    input_cameras: bool = settings.setting(
        "State elevation and field of view of the inputs, or that they are unknown. As released, the input is taken to "
        "be a view of the layout.",
        False,
    )

    def check(self) -> None:
        """Refuse a prediction that is undefined at pure noise."""
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "prediction is 'epsilon'; expected 'v' with zero_terminal_snr: at pure noise, epsilon says nothing of "
                "the views"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(settings.Settings):
    """The loss of the stage."""

    min_snr_gamma: float = settings.setting("Gamma of min-SNR weighting (arXiv 2303.09556); 0 is off.", 0.0, at_least=0)
    terminal_step_fraction: float = settings.setting(
        "Fraction of examples at the noisiest level, on which sampling in one or two steps depends; the others spread "
        "evenly over all levels.",
        0.0,
        at_least=0,
        below=1,
    )
    estimated_normals_fraction: float = settings.setting(
        "Fraction of examples whose input normal map is estimated, as in inference, rather than rendered.",
        0.7,
        at_least=0,
        at_most=1,
    )
    cond_dropout: float = settings.setting("Fraction of examples whose condition is blank.", 0.0, at_least=0, at_most=1)
    known_cameras_fraction: float = settings.setting(
        "With diffusion.input_cameras, fraction of inputs whose elevation is known, and whose field of view is.",
        0.5,
        at_least=0,
        at_most=1,
    )
    image_weight: float = settings.setting(
        "Weight of the loss between one decoded view of each object and its ground truth. The squared error alone asks "
        "for the mean of all possible latents, which does not decode to the mean of the possible images.",
        0.0,
        at_least=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(settings.Settings):
    """How views are sampled."""

    sampler: str = settings.setting("Sampler; ddim as released.", "ddim", choices=tuple(samplers.ORDERS))
    num_steps: int = settings.setting("Calls of the network.", 50, at_least=1, at_most=schedules.NUM_TRAIN_STEPS - 1)
    guidance: float = common.guidance_setting()


# ------------------------------------------------------------------------------------------------------------ batches


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

    def true_inputs(self) -> Float[Array, "b d n h w 4"]:
        """Return the inputs and their normal maps in the stage's frame, in [0, 1]."""
        return _turn(common.unit(self.inputs), self.azimuth())

    def true_views(self) -> Float[Array, "b d v h w 4"]:
        """Return the anchors in the stage's frame, in [0, 1]."""
        return _turn(common.unit(self.targets), self.azimuth())

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
        estimate = turn_others(estimate, _relative(self.input_cameras.world_from_cam))
        normal = jnp.where(denoiser.expand(estimated, estimate), estimate, inputs[:, 1])
        inputs = jnp.where(denoiser.expand(dropped, inputs), BLANK, inputs.at[:, 1].set(normal))
        encode = functools.partial(common.encode_scaled, frozen["autoencoder"])
        condition = conditions.anchor_condition(
            model, inputs, encode(inputs), self.labels(known), _count(self.count, inputs.shape[2])
        )
        return encode(self.true_views()), condition


def _turn(maps: Float[Array, "b 2 *n h w 4"], azimuth: Float[Array, " b"]) -> Float[Array, "b 2 *n h w 4"]:
    """Turn the normal maps of pairs (:func:`latents.turn_normals`)."""
    return maps.at[:, 1].set(latents.turn_normals(maps[:, 1], azimuth))


def turn_others(estimates: Float[Array, "b n h w 4"], relative: Float[Array, "b n"]) -> Float[Array, "b n h w 4"]:
    """Turn normal maps that are each in the frame of their own input into that of the first.

    Args:
      estimates: encoded normal maps; the first stays.
      relative: azimuths of the inputs as seen from the first.
    """
    others = estimates[:, 1:]
    flat = others.reshape(-1, *others.shape[2:])
    turned = latents.turn_normals(flat, -relative[:, 1:].reshape(-1))
    return jnp.concatenate([estimates[:, :1], turned.reshape(others.shape)], 1)


def _relative(poses: Float[Any, "b n 4 4"]) -> Float[Any, "b n"]:
    return cameras.relative_azimuth(poses, poses[:, :1])


def _labels(poses: Any, input_poses: Any, fov: Any, known: Any) -> Any:
    return conditions.view_labels(poses, input_poses, None if known is None else fov, known)


def _count(count: Int[Any, " b"], inputs: int) -> Int[Any, " b"] | None:
    """Return how many inputs exist; None if there is one, as the first always does."""
    return count if inputs > 1 else None


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
        count = _count(self.count, self.inputs.shape[1])
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
    inputs, targets = (maps[..., ::-1, :].copy() for maps in (example.inputs, example.targets))
    # Around the object in the other direction, still starting with the input's azimuth.
    order = -np.arange(targets.shape[1]) % targets.shape[1]
    targets = targets[:, order]
    for maps in (inputs[1], targets[1]):
        # White stands for "no normal", which has no mirror image.
        maps[..., 1] = np.where(maps[..., 3] > 0, 255 - maps[..., 1], maps[..., 1])
    views = cameras.mirrored(example.cameras)[order]
    return Batch(inputs, cameras.mirrored(example.input_cameras), targets, views, example.count)


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

    Arrays: ``views`` [v, h, w, c], scaled latents of the color anchors; ``normals`` [f, v, h, w, c], of their normal
    maps in the frame of each first input, from that input's azimuth on; ``order`` [f, v], that order of the views;
    ``inputs`` [n, 3, h, w, c] and ``tokens`` [n, 3, e], of the framed input, its rendered and its estimated normal map,
    in the frame of the first input if there is one, else in its own; ``blank`` and ``blank_token``, of an image without
    an object; ``poses`` [v, 4, 4], ``input_poses`` [n, 4, 4] and ``input_fov`` [n]. Examples are not mirrored.
    """

    stage = "anchor"

    def check(self, record: latent_records.Latents, config: Any) -> None:
        """Refuse latents of another size, of another number of anchors, with few inputs, or of an older version."""
        if "input_fov" not in record.arrays:
            raise ValueError(
                "holds latents of an older version, without fields of view of the inputs; cache them again"
            )
        common.check_latents(record.arrays["views"], config, "anchor")
        common.check_anchors(len(record.arrays["views"]), config)
        _check_inputs(len(record.arrays["inputs"]), config)
        if config["anchor"].diffusion.max_inputs > 1 and len(record.arrays["order"]) > 1:
            raise ValueError(
                "holds inputs that are views of the layout, each in a frame of its own, but "
                f"anchor.diffusion.max_inputs is {config['anchor'].diffusion.max_inputs}; draw the objects with input "
                "images of their own (--inputs), or train from images"
            )

    def example(self, record: latent_records.Latents, rng: np.random.Generator, config: Any) -> LatentBatch:
        """Choose inputs as :class:`Images` does, and make their example."""
        arrays, most = record.arrays, config["anchor"].diffusion.max_inputs
        chosen = choose_inputs(len(arrays["order"]), len(arrays["inputs"]), most, rng)
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
        poses = np.asarray(record.cameras.world_from_cam)
        order = [[anchors.index(view) for view in common.anchors_from(record, first)] for first in fronts]
        pictures, maps, views = zip(*(normals.input_pair(record, view) for view in record.inputs), strict=True)
        return {
            "views": np.stack([record.image(view) for view in anchors]),
            "maps": np.stack([record.image(view, "normal") for view in anchors]),
            "pairs": np.stack([pictures, maps], 1),
            "order": np.array(order, np.int32),
            "poses": poses[anchors],
            "input_poses": poses[np.asarray(record.inputs)],
            "input_fov": np.concatenate([cameras.fov_of(camera) for camera in views]),
        }

    def compute(self, model: Any, frozen: base.Modules, arrays: Any, key: jax.Array, config: Any) -> dict[str, Array]:
        """Compute what is cached of an object from :meth:`read`."""
        del key, config
        encode = caching.in_turns(functools.partial(common.encode_scaled, frozen["autoencoder"]))
        own = cameras.azimuth_of(arrays["input_poses"])
        fronts = own[: len(arrays["order"])]
        azimuth = jnp.broadcast_to(fronts, own.shape)  # of the first input, if there is one

        def see(rgba):
            return encode(rgba), model.tokens(latents.network_image(rgba))[:, :, 0]

        pairs = _turn(common.unit(arrays["pairs"]), azimuth)
        estimate = normals.estimate(frozen["normals"], pairs[:, 0], pairs[:, 1, ..., 3:])
        if len(fronts) == 1:
            estimate = turn_others(estimate[None], _relative(arrays["input_poses"][None]))[0]
        inputs, tokens = see(jnp.concatenate([pairs, estimate[:, None]], 1))
        blank, blank_token = see(jnp.broadcast_to(BLANK, (1, 1, *arrays["views"].shape[1:])))
        return {
            "views": encode(common.unit(arrays["views"])),
            "normals": encode(latents.turn_normals(common.unit(arrays["maps"][arrays["order"]]), fronts)),
            "inputs": inputs,
            "tokens": tokens,
            "blank": blank[0, 0],
            "blank_token": blank_token[0, 0],
            **{name: arrays[name] for name in ("order", "poses", "input_poses", "input_fov")},
        }


# --------------------------------------------------------------------------------------------------------------- loss


class Anchor(base.Stage):
    """A multi-view diffusion model of color and normals together."""

    name = "anchor"
    needs = ("autoencoder", "normals")
    sources: ClassVar = {"images": Images(), "latents": Latents()}
    model = Model
    diffusion = Diffusion
    loss_settings = Loss
    sampling = Sampling

    def build(self, model: Model, types: layers.Types) -> nnx.Module:
        """Make the denoiser with its image encoder."""
        encoder = encoders.ImageEncoder(model.image_encoder, types)
        network = NETWORKS[model.architecture](model.network, types)
        return denoisers.AnchorDenoiser(model.architecture, network, encoder, model.injection)

    def check(self, config: Any, component: str) -> None:
        """Refuse networks that do not fit the autoencoder or the image encoder, and guidance that is not trained."""
        common.check_denoiser(config, component)
        common.check_guidance(config, component)
        if config[component].diffusion.max_inputs > 1 and not config[component].model.injection:
            raise ValueError(
                f"{component}.diffusion.max_inputs is {config[component].diffusion.max_inputs}; expected 1 without "
                f"{component}.model.injection, which alone shows the network more than the first input"
            )

    def check_source(self, kind: str, settings: Any) -> None:
        """Refuse settings that cached latents cannot serve."""
        if kind == "latents":
            caching.check_frozen_encoder("anchor", settings.train)
            if settings.loss.image_weight:
                raise ValueError(
                    f"anchor.loss.image_weight is {settings.loss.image_weight}, but cached latents hold no images; set "
                    "it to 0, or train from images"
                )

    def loss(
        self, model: Any, frozen: base.Modules, batch: Any, key: jax.Array, settings: Any, layout: Any
    ) -> tuple[Float[Array, ""], base.Metrics]:
        """Return the squared error of the network's output on the noisy views, see :func:`denoiser.loss_weight`.

        All views of an object have one noise level.
        """
        del layout
        chosen: Loss = settings.loss
        prediction = settings.diffusion.prediction
        key_noise, key_time, key_estimate, key_drop, key_view = jax.random.split(key, 5)
        if settings.diffusion.input_cameras:
            key_drop, key_known = jax.random.split(key_drop)
        size = len(jax.tree.leaves(batch)[0])
        estimated = jax.random.bernoulli(key_estimate, chosen.estimated_normals_fraction, (size,))
        dropped = jax.random.bernoulli(key_drop, chosen.cond_dropout, (size,))
        known = None
        if settings.diffusion.input_cameras:
            shape = (size, settings.diffusion.max_inputs, 2)
            known = jax.random.bernoulli(key_known, chosen.known_cameras_fraction, shape)
        clean, condition = batch.prepare(model, frozen, estimated, dropped, known)
        time = common.training_steps(key_time, size, chosen.terminal_step_fraction)
        level = schedules.discrete_levels(time, settings.diffusion.zero_terminal_snr, settings.diffusion.shift)
        noise = jax.random.normal(key_noise, clean.shape)
        noisy = denoiser.add_noise(clean, noise, level)
        output = model(noisy, level.time, condition)
        error = (output - denoiser.target(prediction, clean, noise, level)) ** 2
        weight = denoiser.loss_weight(prediction, level, chosen.min_snr_gamma)
        per_object = error.mean((1, 2, 3, 4, 5))
        metrics = {f"loss_{domain}": error[:, d].mean() for d, domain in enumerate(conditions.DOMAINS)}
        for third, name in enumerate(("low_noise", "middle_noise", "high_noise")):
            within = time * 3 // schedules.NUM_TRAIN_STEPS == third
            metrics[f"loss_{name}"] = (per_object * within).sum() / jnp.maximum(within.sum(), 1)
        loss = (weight * per_object).mean()
        if chosen.image_weight:
            found = denoiser.clean(prediction, output.astype(jnp.float32), noisy, level)
            index = jax.random.randint(key_view, (size,), 0, found.shape[2])
            metrics["loss_image"] = image_loss.image_loss(frozen["autoencoder"], found, batch.true_views(), index)
            loss = loss + chosen.image_weight * metrics["loss_image"]
        return loss, metrics

    def show(
        self, model: Any, frozen: base.Modules, batch: Batch, key: jax.Array, settings: Any, layout: Any
    ) -> tuple[Float[Array, "b v h w 3"], Float[Array, "b v h w 3"]]:
        """Return the anchors in both domains, true and sampled from the true condition."""
        del layout
        inputs = batch.true_inputs()
        known = jnp.ones((len(inputs), inputs.shape[2], 2), bool) if settings.diffusion.input_cameras else None
        sampled = sample(
            model,
            frozen["autoencoder"],
            inputs,
            batch.labels(known),
            key,
            count=_count(batch.count, inputs.shape[2]),
            diffusion=settings.diffusion,
            sampling=settings.sampling,
        )

        def row(views):
            views = images.over_white(views)
            return views.reshape(views.shape[0], -1, *views.shape[3:])

        return row(batch.true_views()), row(sampled)


# ----------------------------------------------------------------------------------------------------------- sampling


def sample(
    model: denoisers.AnchorDenoiser,
    autoencoder: Any,
    inputs: Float[Array, "b d n h w 4"],
    labels: Float[structs.ArrayLike, "b d views 12"],
    key: jax.Array,
    *,
    count: Int[Array, " b"] | None = None,
    diffusion: Diffusion,
    sampling: Sampling,
    progress: Callable[[int], object] = lambda steps: None,
) -> Float[Array, "b d v h w c"]:
    """Sample the anchors of objects, both domains together.

    Args:
      model: the stage's module.
      autoencoder: of both domains.
      inputs: input images and their normal maps in the frame of the first, framed
        (:func:`e3d_jax.images.object_box`); straight alpha.
      labels: of :func:`conditions.view_labels`.
      key: of the initial noise.
      count: how many inputs exist; all if None.
      diffusion: what the network was trained for.
      sampling: sampler and number of steps.
      progress: called with the number of steps after each group of steps.

    Returns:
      Color views and encoded normal maps: RGBA, or RGB over white from a three-channel autoencoder.
    """
    grid = schedules.ddim_grid(sampling.num_steps, diffusion.zero_terminal_snr, diffusion.shift)
    plan = samplers.plan(grid, samplers.ORDERS[sampling.sampler])
    condition = start(model, autoencoder, inputs, jnp.asarray(labels), count)
    guidance = None
    if sampling.guidance != 1:
        blank = jnp.broadcast_to(BLANK, inputs.shape)
        guidance = start(model, autoencoder, blank, jnp.asarray(labels), count), jnp.float32(sampling.guidance)
    batch, domains, number, *latent = condition.latents.shape
    noise = jax.random.normal(key, (batch, domains, labels.shape[2] - number, *latent))
    take = functools.partial(take_steps, model, condition, prediction=diffusion.prediction, guidance=guidance)
    state = samplers.advance_in_parts(take, samplers.begin(noise), plan, progress)
    return _decode(autoencoder, state.sample)


@jax.jit
def start(
    model: denoisers.AnchorDenoiser,
    autoencoder: Any,
    inputs: Float[Array, "b d n h w 4"],
    labels: Float[Array, "b d views 12"],
    count: Int[Array, " b"] | None = None,
) -> denoisers.AnchorCondition:
    """Make the condition of sampling; arguments as for :func:`sample`."""
    image = latents.network_image(inputs, autoencoder.in_channels)
    encoded = latents.encode_in_turns(autoencoder, image) * autoencoder.scaling_factor
    return conditions.anchor_condition(model, inputs, encoded, labels, count)


@functools.partial(jax.jit, static_argnames="prediction")
def take_steps(
    model: denoisers.AnchorDenoiser,
    condition: denoisers.AnchorCondition,
    state: samplers.Progress,
    plan: samplers.Plan,
    *,
    prediction: denoiser.Prediction,
    guidance: tuple[denoisers.AnchorCondition, Float[Array, ""]] | None = None,
) -> samplers.Progress:
    """Denoise the views of both domains, ``[b d v h w c]``, along a plan or a part of it; :func:`denoiser.guided`."""

    def predict(sample, level):
        output = denoiser.guided(model, sample, level, condition, guidance)
        return denoiser.clean(prediction, output.astype(jnp.float32), sample, level)

    return samplers.advance(predict, state, plan)


_decode = jax.jit(latents.decode)
