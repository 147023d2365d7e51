"""The whole cascade: one picture in, 32 views and a mesh out."""

import contextlib
import dataclasses
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Array, Float

from e3d_jax import cameras, images, settings, structs
from e3d_jax.models import build, latents
from e3d_jax.reconstruction import pipeline
from e3d_jax.sampling import anchors as anchor_sampling
from e3d_jax.sampling import interpolation as interpolation_sampling
from e3d_jax.weights import folder

MAX_SEED = 2**32 - 1  # larger ones would wrap around


@dataclasses.dataclass(frozen=True)
class Result:
    """What a system makes of one picture.

    Attributes:
      input: the square crop that the models saw; RGBA, straight alpha.
      input_normal: its normal map; RGB = (n + 1) / 2 in the world frame, and alpha.
      views: the 32 views and the anchors' normal maps.
      mesh: the textured mesh.
      seconds: of each stage.
      peak_memory: GB of the process (on an accelerator: of the device) at the end of each stage.
    """

    input: Float[np.ndarray, "h w 4"]
    input_normal: Float[np.ndarray, "h w 4"]
    views: structs.ViewSet
    mesh: structs.Mesh
    seconds: dict[str, float]
    peak_memory: dict[str, float]


class System:
    """The trained components and the settings they are used with.

    ``system(image)`` runs the cascade; the stages are methods of their own.
    """

    def __init__(self, config: Mapping[str, Any], modules: Mapping[str, nnx.Module]):
        self.config = config
        self.autoencoder: Any = modules["autoencoder"]
        self.estimator: Any = modules["normals"]
        self.anchor_stage: Any = modules["anchor"]
        self.interpolation_stage: Any = modules["interpolation"]
        self.interpolation_autoencoder: Any = modules.get("interpolation_autoencoder", modules["autoencoder"])

    @property
    def size(self) -> int:
        """Width and height of the views in pixels."""
        return self.config["size"]

    def __call__(
        self,
        image: str | os.PathLike | Float[np.ndarray, "h w 4"],
        *,
        normal: str | os.PathLike | Float[np.ndarray, "h w 4"] | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Result:
        """The cascade.

        Args:
          image: a picture file, or RGBA in [0, 1] with straight alpha.
          normal: the picture's normal map in the world frame of the input view, of the same size as the picture;
            estimated when not given.
          seed: of all randomness; the same seed gives the same result on the same backend.
          progress: show a bar for each stage.

        Raises:
          FileNotFoundError, OSError, ValueError: see :func:`e3d_jax.images.read_image` and
            :func:`e3d_jax.images.matte`; or an array is no such picture, the normal map is of another size, or the
            seed is not in [0, 2**32).
        """
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"{seed=} is out of range; choose one from 0 to {MAX_SEED}")
        clock = Clock(progress)
        with clock.stage("input", 1):
            picture, encoded = self.prepare(image, normal)
        views = self.generate(picture, encoded, seed, clock)
        mesh = self.reconstruct(views, seed, clock)
        return Result(picture, encoded, views, mesh, clock.seconds, clock.peak_memory)

    def generate(
        self, picture: Float[np.ndarray, "h w 4"], encoded: Float[np.ndarray, "h w 4"], seed: int, clock: "Clock"
    ) -> structs.ViewSet:
        """Both diffusion stages: from what :meth:`prepare` returns to the ring of views."""
        keys = jax.random.split(jax.random.key(seed))
        with clock.stage("anchors", self.config["anchor"]["sampling"]["num_steps"]) as advance:
            pair = jnp.asarray(np.stack([picture, encoded]))[None]
            color, maps = self.anchors(pair, keys[0], advance)[0]
        with clock.stage("interpolation", self.config["interpolation"]["sampling"]["num_steps"]) as advance:
            between = self.interpolate(jnp.asarray(color)[None], keys[1], advance)[0]
        return self.assemble(color, maps, between)

    def reconstruct(self, views: structs.ViewSet, seed: int, clock: "Clock") -> structs.Mesh:
        """The third stage: the mesh of views, see :func:`e3d_jax.reconstruction.pipeline.reconstruct`."""
        fit_config = settings.fit_config(self.config)
        with clock.stage("reconstruction", fit_config.steps) as advance:
            return pipeline.reconstruct(
                views,
                fit_config,
                jax.random.key(seed),
                lambda *_: advance(fit_config.steps_per_chunk),
                surface=settings.surface_config(self.config),
            )

    def prepare(self, image: Any, normal: Any = None) -> tuple[Float[np.ndarray, "h w 4"], Float[np.ndarray, "h w 4"]]:
        """The picture, cut out and framed as in training, and its encoded normal map; arguments of a call."""
        picture = images.matte(_picture(image))
        box = images.object_box(picture[..., 3])
        cropped = images.crop(picture, box, self.size)
        alpha = cropped[..., 3:]
        if normal is None:
            found = np.asarray(_estimate(self.estimator, jnp.asarray(cropped)[None])[0])
            rgb = np.where(alpha > 0, found / 2 + 0.5, 1)
        else:
            given = _picture(normal)
            if given.shape[:2] != picture.shape[:2]:
                raise ValueError(
                    f"the normal map is {given.shape[1]} x {given.shape[0]} px, the picture "
                    f"{picture.shape[1]} x {picture.shape[0]}; give a map of the picture's size"
                )
            rgb = images.crop(given, box, self.size)[..., :3]
        return cropped, np.concatenate([rgb, alpha], -1).astype(np.float32)

    def anchors(
        self, pair: Float[Array, "b 2 h w 4"], key: jax.Array, progress: Callable[[int], object] = lambda steps: None
    ) -> Float[np.ndarray, "b 2 8 h w 4"]:
        """Stage 1 (:func:`e3d_jax.sampling.anchors.sample`) with this system's settings."""
        sampling = self.config["anchor"]["sampling"]
        trained = {name: self.config["anchor"]["loss"][name] for name in anchor_sampling.TRAINED}
        sampled = anchor_sampling.sample(
            self.anchor_stage, self.autoencoder, pair, key, progress=progress, **trained, **sampling
        )
        return _with_alpha(sampled)

    def interpolate(
        self, anchors: Float[Array, "b 8 h w 4"], key: jax.Array, progress: Callable[[int], object] = lambda steps: None
    ) -> Float[np.ndarray, "b 24 h w 4"]:
        """Stage 2 (:func:`e3d_jax.sampling.interpolation.sample`) with this system's settings."""
        sampling = self.config["interpolation"]["sampling"]
        sampled = interpolation_sampling.sample(
            self.interpolation_stage, self.interpolation_autoencoder, anchors, key, progress=progress, **sampling
        )
        return _with_alpha(sampled)

    def assemble(
        self,
        color: Float[np.ndarray, "8 h w 4"],
        normals: Float[np.ndarray, "8 h w 4"],
        between: Float[np.ndarray, "24 h w 4"],
    ) -> structs.ViewSet:
        """The ring of views from the anchors of both domains and the views between them."""
        rgba = np.empty((cameras.NUM_VIEWS, *color.shape[1:]), np.float32)
        rgba[cameras.ANCHORS] = color
        rgba[np.setdiff1d(np.arange(cameras.NUM_VIEWS), cameras.ANCHORS)] = between
        decoded = np.asarray(images.decode_normal(normals[..., :3])) * (normals[..., 3:] > 0.5)
        return structs.ViewSet(
            rgba=rgba,
            cameras=cameras.ring(self.size, radius=self.config["reconstruction"].get("radius", cameras.RADIUS)),
            normal_views=cameras.ANCHORS,
            normals=decoded.astype(np.float32),
            anchors=cameras.ANCHORS,
        )


def load(name_or_folder: str | os.PathLike, config: Mapping[str, Any] | None = None) -> System:
    """A system from bundled weights ("mini") or from a weights folder.

    Args:
      name_or_folder: "mini", or a folder such as ``WORKDIR/weights`` of train.py.
      config: replaces the settings that the weights came with; its models must be theirs.

    Raises:
      FileNotFoundError: no such weights.
      ValueError: the weights are damaged or belong to models other than the config's, or a setting is out of range.
    """
    if config is not None:
        settings.check(config)  # Before the weights are looked for.
    path = folder.resolve(name_or_folder)
    stored = folder.read_config(path)
    if config is None:
        settings.check(config := stored)
    different = settings.differences(stored, config)
    if different:
        more = f" (and {len(different) - 1} more settings)" if len(different) > 1 else ""
        raise ValueError(
            f"the weights in {path} belong to another config: {different[0]}{more}; choose the weights or the config "
            "to match"
        )
    dtype = jnp.bfloat16 if jax.default_backend() in ("gpu", "tpu") else jnp.float32
    types = {"dtype": dtype, "param_dtype": dtype}
    return System(config, {name: folder.restore(path, name, config, **types) for name in build.components_of(config)})


def _picture(source) -> Float[np.ndarray, "h w 4"]:
    """A picture file, or an array, checked."""
    if isinstance(source, str | os.PathLike):
        return images.read_image(source)
    array = np.asarray(source)
    if array.ndim != 3 or array.shape[-1] != 4 or min(array.shape[:2]) < images.MIN_SIDE:
        raise ValueError(
            f"the picture has shape {array.shape}; expected (h, w, 4), at least {images.MIN_SIDE} px a side"
        )
    # Bytes are refused too, as 255 times too bright.
    if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"the picture's values are not floats in [0, 1] but {array.dtype}; divide bytes by 255")
    return array.astype(np.float32)


def _with_alpha(pictures) -> np.ndarray:
    """RGBA pictures; views over white from a three-channel autoencoder are cut out like a user's picture."""
    pictures = np.array(pictures, np.float32)
    if pictures.shape[-1] == 4:
        return pictures
    opaque = np.concatenate([pictures, np.ones_like(pictures[..., :1])], -1)
    try:
        flat = [images.matte(view) for view in opaque.reshape(-1, *opaque.shape[-3:])]
    except ValueError as error:  # It would blame the user's picture.
        raise ValueError("the models drew a view without an object on a plain background; try another seed") from error
    return np.stack(flat).reshape(opaque.shape)


@nnx.jit
def _estimate(estimator, rgba):
    return estimator(latents.network_image(rgba, 4))


class Clock:
    """Seconds and peak memory of each stage, with a bar for it."""

    def __init__(self, progress: bool):
        self._progress = progress
        self.seconds: dict[str, float] = {}
        self.peak_memory: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        """Times a stage of ``total`` steps; gives the function that advances its bar."""
        start = time.perf_counter()
        with tqdm.tqdm(total=total, desc=f"{name:14s}", unit="step", disable=not self._progress) as bar:
            yield bar.update
            bar.update(total - bar.n)
        self.seconds[name] = round(time.perf_counter() - start, 3)
        stats = jax.local_devices()[0].memory_stats()
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = stats["peak_bytes_in_use"] / 1e9 if stats else kilobytes * 1024 / 1e9
        self.peak_memory[name] = round(peak, 3)
