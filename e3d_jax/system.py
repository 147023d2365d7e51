"""The whole cascade: one picture in, 32 views and a mesh out."""

import contextlib
import dataclasses
import os
import pathlib
import resource
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Float

from e3d_jax import cameras, images, structs
from e3d_jax.models import build, latents
from e3d_jax.reconstruction import fit, pipeline
from e3d_jax.sampling import anchors as anchor_sampling
from e3d_jax.sampling import interpolation as interpolation_sampling
from e3d_jax.weights import folder


@dataclasses.dataclass(frozen=True)
class Result:
    """What a system makes of one picture.

    Attributes:
      input: the square crop that the models saw; RGBA, straight alpha.
      input_normal: its normal map; RGB = (n + 1) / 2 in the world frame, and alpha.
      views: the 32 views and the anchors' normal maps.
      mesh: the coloured mesh.
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
    """The four trained components and the settings they are used with.

    ``system(image)`` runs the cascade; the stages are methods of their own.
    """

    def __init__(self, config: Mapping[str, Any], modules: Mapping[str, nnx.Module]):
        self.config = config
        self.autoencoder: Any = modules["autoencoder"]
        self.estimator: Any = modules["normals"]
        self.anchor_stage: Any = modules["anchor"]
        self.interpolation_stage: Any = modules["interpolation"]

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
            :func:`e3d_jax.images.matte`; or the normal map is of another size.
        """
        clock = _Clock(progress)
        keys = jax.random.split(jax.random.key(seed), 3)
        with clock.stage("input", 1):
            picture, encoded = self.prepare(image, normal)
        with clock.stage("anchors", self.config["anchor"]["sampling"]["num_steps"]) as advance:
            pair = jnp.asarray(np.stack([picture, encoded]))[None]
            color, maps = self.anchors(pair, keys[0], advance)[0]
        with clock.stage("interpolation", self.config["interpolation"]["sampling"]["num_steps"]) as advance:
            between = self.interpolate(jnp.asarray(color)[None], keys[1], advance)[0]
            views = self.assemble(color, maps, between)
        settings = fit.FitConfig(**self.config["reconstruction"]["fit"])
        with clock.stage("reconstruction", settings.steps) as advance:
            mesh = pipeline.reconstruct(
                views,
                settings,
                keys[2],
                lambda steps, losses: advance(settings.steps_per_chunk),
                resolution=self.config["reconstruction"]["resolution"],
            )
        return Result(picture, encoded, views, mesh, clock.seconds, clock.peak_memory)

    def prepare(self, image, normal=None) -> tuple[Float[np.ndarray, "h w 4"], Float[np.ndarray, "h w 4"]]:
        """The picture, cut out and framed as in training, and its encoded normal map."""
        read = lambda x: images.read_image(x) if isinstance(x, str | os.PathLike) else np.asarray(x, np.float32)  # noqa: E731
        picture = images.matte(read(image))
        box = images.object_box(picture[..., 3])
        cropped = images.crop(picture, box, self.size)
        alpha = cropped[..., 3:]
        if normal is None:
            found = np.asarray(_estimate(self.estimator, jnp.asarray(cropped)[None])[0])
            rgb = np.where(alpha > 0, found / 2 + 0.5, 1)
        else:
            given = read(normal)
            if given.shape[:2] != picture.shape[:2]:
                raise ValueError(
                    f"the normal map is {given.shape[1]} x {given.shape[0]} px, the picture "
                    f"{picture.shape[1]} x {picture.shape[0]}; give a map of the picture's size"
                )
            rgb = images.crop(given, box, self.size)[..., :3]
        return cropped, np.concatenate([rgb, alpha], -1).astype(np.float32)

    def anchors(self, pair, key: jax.Array, progress=lambda steps: None) -> Float[np.ndarray, "b 2 8 h w 4"]:
        """Stage 1 (:func:`e3d_jax.sampling.anchors.sample`) with this system's settings."""
        sampling = self.config["anchor"]["sampling"]
        prediction = self.config["anchor"]["loss"]["prediction"]
        sampled = anchor_sampling.sample(
            self.anchor_stage, self.autoencoder, pair, key, prediction=prediction, progress=progress, **sampling
        )
        return _with_alpha(sampled)

    def interpolate(self, anchors, key: jax.Array, progress=lambda steps: None) -> Float[np.ndarray, "b 24 h w 4"]:
        """Stage 2 (:func:`e3d_jax.sampling.interpolation.sample`) with this system's settings."""
        sampling = self.config["interpolation"]["sampling"]
        sampled = interpolation_sampling.sample(
            self.interpolation_stage, self.autoencoder, anchors, key, progress=progress, **sampling
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
        decoded = images.decode_normal(normals[..., :3]) * (normals[..., 3:] > 0.5)
        return structs.ViewSet(
            rgba=rgba,
            cameras=cameras.ring(self.size),
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
      ValueError: the weights are damaged, or belong to models other than the config's.
    """
    path = folder.resolve(name_or_folder)
    stored = folder.read_config(path)
    config = stored if config is None else dict(config)
    for component in build.COMPONENTS:
        given, expected = config[component]["model"], stored.get(component, {}).get("model")
        if _plain(given) != _plain(expected):
            raise ValueError(
                f"the weights in {path} belong to another config: their {component} is {expected}, the config says "
                f"{_plain(given)}; choose the weights or the config to match"
            )
    dtype = jnp.bfloat16 if jax.default_backend() in ("gpu", "tpu") else jnp.float32
    return System(config, {name: _load_component(path, name, config, dtype) for name in build.COMPONENTS})


def _load_component(path: pathlib.Path, name: build.Component, config, dtype) -> nnx.Module:
    # Shapes only: initial values would be computed just to be thrown away.
    module = nnx.eval_shape(lambda: build.build(name, config[name]["model"], dtype=dtype, rngs=nnx.Rngs(0)))
    folder.load(path, name, module)
    return module


def _plain(value):
    """Tuples as lists all the way down, as JSON has them."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _with_alpha(pictures) -> np.ndarray:
    """RGBA pictures; views over white from a three-channel autoencoder are cut out like a user's picture."""
    pictures = np.array(pictures, np.float32)
    if pictures.shape[-1] == 4:
        return pictures
    opaque = np.concatenate([pictures, np.ones_like(pictures[..., :1])], -1)
    flat = [images.matte(view) for view in opaque.reshape(-1, *opaque.shape[-3:])]
    return np.stack(flat).reshape(opaque.shape)


@nnx.jit
def _estimate(estimator, rgba):
    return estimator(latents.network_image(rgba, 4))


class _Clock:
    """Seconds and peak memory of each stage, with a bar for it."""

    def __init__(self, progress: bool):
        self._progress = progress
        self.seconds: dict[str, float] = {}
        self.peak_memory: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        start = time.perf_counter()
        with tqdm.tqdm(total=total, desc=f"{name:14s}", unit="step", disable=not self._progress) as bar:
            yield bar.update
            bar.update(total - bar.n)
        self.seconds[name] = round(time.perf_counter() - start, 3)
        stats = jax.local_devices()[0].memory_stats()
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = stats["peak_bytes_in_use"] / 1e9 if stats else kilobytes * 1024 / 1e9
        self.peak_memory[name] = round(peak, 3)
