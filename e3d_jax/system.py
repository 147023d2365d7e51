"""The whole cascade: one image in, posed views and a mesh out."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Array, Float

from e3d_jax import config as config_lib
from e3d_jax import distributed, images, reports, settings, stages, structs
from e3d_jax.models import latents
from e3d_jax.reconstruction import pipeline
from e3d_jax.stages import anchor, conditions, interpolation
from e3d_jax.weights import folder

MAX_SEED = 2**32 - 1  # larger ones would wrap around


@dataclasses.dataclass(frozen=True)
class Result:
    """What a system makes of one image.

    Attributes:
      input: the square crop that the models saw; RGBA, straight alpha.
      input_normal: its normal map; RGB = (n + 1) / 2 in the world frame, and alpha.
      views: the views and the anchors' normal maps.
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

    ``system(image)`` runs the cascade; the stages are methods of their own. A system may lack components: without
    ``normals`` the normal map must be given, without ``interpolation`` the anchors are the only views.
    """

    def __init__(self, config: config_lib.SystemConfig, modules: Mapping[str, nnx.Module]):
        self.config = config
        self.modules: dict[str, Any] = dict(modules)

    @property
    def size(self) -> int:
        """Width and height of the views in pixels."""
        return self.config.size

    def module(self, stage: str, role: str | None = None) -> Any:
        """Return the module of a stage, or of the component that plays a role for it.

        Raises:
          ValueError: the system lacks it.
        """
        name = self.config.provider(stage, role) if role else stage
        if name not in self.modules:
            raise ValueError(f"this system has no {name}; it has {', '.join(self.modules)}")
        return self.modules[name]

    def __call__(
        self,
        image: str | os.PathLike | Float[np.ndarray, "h w 4"],
        *,
        normal: str | os.PathLike | Float[np.ndarray, "h w 4"] | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Result:
        """Run the cascade.

        Args:
          image: an image file, or RGBA in [0, 1] with straight alpha.
          normal: the image's normal map in the world frame of the input view, of the same size as the image; estimated
            when not given.
          seed: of all randomness; the same seed gives the same result on the same backend.
          progress: show a bar for each stage.

        Raises:
          FileNotFoundError, OSError, ValueError: see :func:`e3d_jax.images.read_image` and
            :func:`e3d_jax.images.matte`; or an array is not such an image, the normal map is of another size, or the
            seed is not in [0, 2**32).
        """
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"{seed=} is out of range; choose one from 0 to {MAX_SEED}")
        clock = Clock(progress)
        with clock.stage("input", 1):
            framed, encoded = self.prepare(image, normal)
        views = self.generate(framed, encoded, seed, clock)
        mesh = self.reconstruct(views, seed, clock)
        return Result(framed, encoded, views, mesh, clock.seconds, clock.peak_memory)

    def generate(
        self, image: Float[np.ndarray, "h w 4"], encoded: Float[np.ndarray, "h w 4"], seed: int, clock: "Clock"
    ) -> structs.ViewSet:
        """Run both diffusion stages, from what :meth:`prepare` returns to the views of the layout."""
        keys = jax.random.split(jax.random.key(seed))
        with clock.stage("anchors", self.config["anchor"].sampling.num_steps) as advance:
            pair = jnp.asarray(np.stack([image, encoded]))[None]
            color, maps = self.anchors(pair, keys[0], advance)[0]
        if "interpolation" not in self.modules:
            return self.assemble(color, maps)
        with clock.stage("interpolation", self.config["interpolation"].sampling.num_steps) as advance:
            between = self.interpolate(jnp.asarray(color)[None], keys[1], advance)[0]
        return self.assemble(color, maps, between)

    def reconstruct(self, views: structs.ViewSet, seed: int, clock: "Clock") -> structs.Mesh:
        """Fit the mesh of views, see :func:`e3d_jax.reconstruction.pipeline.reconstruct`."""
        chosen = self.config.system.reconstruction
        with clock.stage("reconstruction", chosen.fit.steps) as advance:
            return pipeline.reconstruct(
                views, chosen, jax.random.key(seed), lambda *_: advance(chosen.fit.steps_per_chunk)
            )

    def prepare(self, image: Any, normal: Any = None) -> tuple[Float[np.ndarray, "h w 4"], Float[np.ndarray, "h w 4"]]:
        """Return the image, cut out and framed as in training, and its encoded normal map; arguments of a call."""
        whole = images.matte(_checked(image))
        box = images.object_box(whole[..., 3])
        framed = images.crop(whole, box, self.size)
        alpha = framed[..., 3:]
        if normal is None and "normals" not in self.modules:
            raise ValueError("this system has no normal estimator; give a normal map of the image")
        if normal is None:
            found = np.asarray(_estimate(self.module("normals"), jnp.asarray(framed)[None])[0])
            rgb = np.where(alpha > 0, found / 2 + 0.5, 1)
        else:
            given = _checked(normal)
            if given.shape[:2] != whole.shape[:2]:
                raise ValueError(
                    f"the normal map is {given.shape[1]} x {given.shape[0]} px, the image "
                    f"{whole.shape[1]} x {whole.shape[0]}; give a map of the image's size"
                )
            rgb = images.crop(given, box, self.size)[..., :3]
        return framed, np.concatenate([rgb, alpha], -1).astype(np.float32)

    def anchors(
        self, pair: Float[Array, "b d h w 4"], key: jax.Array, progress: Callable[[int], object] = lambda steps: None
    ) -> Float[np.ndarray, "b d v h w 4"]:
        """Run stage 1 (:func:`e3d_jax.stages.anchor.sample`) with this system's settings."""
        chosen, layout = self.config["anchor"], self.config.layout
        poses = np.asarray(layout.cameras(self.size).world_from_cam)[layout.anchors][None]
        # The input is the first view of the layout.
        labels = np.repeat(conditions.view_labels(poses, poses[:, :1]), len(pair), 0)
        sampled = anchor.sample(
            self.module("anchor"),
            self.module("anchor", "autoencoder"),
            pair,
            labels,
            key,
            diffusion=chosen.diffusion,
            sampling=chosen.sampling,
            progress=progress,
        )
        return _with_alpha(sampled)

    def interpolate(
        self, anchors: Float[Array, "b v h w 4"], key: jax.Array, progress: Callable[[int], object] = lambda steps: None
    ) -> Float[np.ndarray, "b n h w 4"]:
        """Run stage 2 (:func:`e3d_jax.stages.interpolation.sample`) with this system's settings."""
        sampled = interpolation.sample(
            self.module("interpolation"),
            self.module("interpolation", "autoencoder"),
            anchors,
            key,
            layout=self.config.layout,
            sampling=self.config["interpolation"].sampling,
            progress=progress,
        )
        return _with_alpha(sampled)

    def assemble(
        self,
        color: Float[np.ndarray, "v h w 4"],
        normals: Float[np.ndarray, "v h w 4"],
        between: Float[np.ndarray, "n h w 4"] | None = None,
    ) -> structs.ViewSet:
        """Return the views of the layout, from the anchors of both domains and the views between them, if any."""
        layout, cameras = self.config.layout, self.config.layout.cameras(self.size)
        normals = np.asarray(images.decode_normal(normals), np.float32)
        if between is None:
            every = np.arange(len(color))
            return structs.ViewSet(color, cameras[layout.anchors], every, normals, every)
        rgba = np.empty((layout.num_views, *color.shape[1:]), np.float32)
        rgba[layout.anchors], rgba[layout.between] = color, between
        return structs.ViewSet(rgba, cameras, layout.anchors, normals, layout.anchors)


def load(
    name_or_folder: str | os.PathLike, config: config_lib.SystemConfig | Mapping[str, Any] | None = None
) -> System:
    """Load a system from bundled weights ("mini") or from a weights folder.

    Args:
      name_or_folder: "mini", or a folder such as ``WORKDIR/weights`` of training.
      config: replaces the settings that the weights came with; its models must be theirs.

    Raises:
      FileNotFoundError: there are no such weights.
      ValueError: the weights are damaged or belong to models other than the config's, or a setting is out of range.
    """
    if config is not None and not isinstance(config, config_lib.SystemConfig):
        config = stages.parse_config(config)  # Before the weights are looked for.
    path = folder.resolve(name_or_folder)
    stored = folder.read_config(path)
    if config is None:
        config = stored
    unused = tuple(f"{name}." for name in stored.components if name not in config)
    needed = {name: value for name, value in stored.identity().items() if not name.startswith(unused)}
    if different := settings.differences(needed, config.identity()):
        more = f" (and {len(different) - 1} more settings)" if len(different) > 1 else ""
        raise ValueError(
            f"the weights in {path} belong to another config: {different[0]}{more}; choose the weights or the config "
            "to match"
        )
    dtype = distributed.compute_dtype()
    types = {"dtype": dtype, "param_dtype": dtype}
    return System(config, {name: folder.restore(path, name, config, **types) for name in config.components})


def _checked(source) -> Float[np.ndarray, "h w 4"]:
    """Read an image file, or check an array."""
    if isinstance(source, str | os.PathLike):
        return images.read_image(source)
    array = np.asarray(source)
    if array.ndim != 3 or array.shape[-1] != 4 or min(array.shape[:2]) < images.MIN_SIDE:
        raise ValueError(f"the image has shape {array.shape}; expected (h, w, 4), at least {images.MIN_SIDE} px a side")
    # Bytes are refused too, as 255 times too bright.
    if not np.issubdtype(array.dtype, np.floating) or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"the image's values are not floats in [0, 1] but {array.dtype}; divide bytes by 255")
    return array.astype(np.float32)


def _with_alpha(views) -> np.ndarray:
    """Return RGBA views; those over white from a three-channel autoencoder are cut out of their plain background."""
    views = np.array(views, np.float32)
    if views.shape[-1] == 4:
        return views
    opaque = np.concatenate([views, np.ones_like(views[..., :1])], -1)
    try:
        flat = [images.matte(view) for view in opaque.reshape(-1, *opaque.shape[-3:])]
    except ValueError as error:  # It would blame the user's image.
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
        """Time a stage of ``total`` steps; yield the function that advances its bar."""
        start = time.perf_counter()
        with tqdm.tqdm(total=total, desc=f"{name:14s}", unit="step", disable=not self._progress) as bar:
            yield bar.update
            bar.update(total - bar.n)
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.peak_memory[name] = reports.peak_memory_gb()
