"""The whole cascade: images in, posed views and a mesh out."""

import dataclasses
import itertools
import math
import os
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from e3d_jax import cameras, cutout, distributed, events, images, settings, stages, structs
from e3d_jax import config as config_lib
from e3d_jax.models import latents
from e3d_jax.reconstruction import pipeline, registration
from e3d_jax.stages import anchor, conditions, interpolation
from e3d_jax.weights import folder

MAX_SEED = 2**32 - 1  # larger ones would wrap around
# Ranges of what can be said of an input camera, degrees.
ELEVATIONS = (-30.0, 80.0)
FOVS = (5.0, 100.0)
APART = 1.0  # Least difference of two azimuths.

Number = float | int
Image = str | os.PathLike | Float[np.ndarray, "h w 4"]


@dataclasses.dataclass(frozen=True)
class Input:
    """An input image as the models see it.

    Attributes:
      image: the square crop; RGBA, straight alpha.
      normal: its normal map; RGB = (n + 1) / 2 in the world frame, which the first input defines, and alpha.
      azimuth: of its camera in degrees, as seen from the first input.
      elevation: of its camera in degrees; None if unknown.
      fov: horizontal field of view of the whole image in degrees; None if unknown.
      crop_fov: that of the crop.
      found: how ``elevation`` and ``fov`` were found: "given", "fitted to the mesh", or before there is a mesh,
        "assumed" by the weights or "unknown to the model".
      picture: the crop in its own resolution, for the reconstruction.
      camera: of ``picture``, once it is found.
    """

    image: Float[np.ndarray, "h w 4"]
    normal: Float[np.ndarray, "h w 4"]
    azimuth: float = 0.0
    elevation: Number | None = None
    fov: Number | None = None
    crop_fov: float | None = None
    found: Mapping[str, str] = dataclasses.field(default_factory=dict)
    picture: registration.Picture | None = None
    camera: registration.Found | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What a system makes of the images of an object.

    Attributes:
      inputs: the images.
      views: the views and the anchors' normal maps.
      mesh: the textured mesh.
      seconds: of each stage.
      peak_memory: GB of the process (on an accelerator: of the device) at the end of each stage.
    """

    inputs: tuple[Input, ...]
    views: structs.ViewSet
    mesh: structs.Mesh
    seconds: dict[str, float]
    peak_memory: dict[str, float]


class System:
    """The trained components and the settings they are used with.

    ``system(image)`` runs the cascade, and ``system([front, right], azimuths=[0, 90])`` does so for two images;
    ``system.stream(image)`` yields what happens; the stages are methods of their own. A system may lack components:
    without ``normals`` the normal map must be given, without ``interpolation`` the anchors are the only views.
    """

    def __init__(self, config: config_lib.SystemConfig, modules: Mapping[str, nnx.Module]):
        self.config = config
        self.modules: dict[str, Any] = dict(modules)

    @property
    def size(self) -> int:
        """Width and height of the views in pixels."""
        return self.config.size

    @property
    def _trained_for(self) -> anchor.Diffusion:
        """What the anchor stage can be given."""
        return self.config["anchor"].diffusion if "anchor" in self.config else anchor.Diffusion()

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
        image: Image | Sequence[Image],
        *,
        azimuths: Sequence[Number | str] | None = None,
        elevation: Number | Sequence[Number | None] | None = None,
        fov: Number | Sequence[Number | None] | None = None,
        normal: Image | None = None,
        seed: int = 0,
        progress: bool | events.Listener = False,
    ) -> Result:
        """Run the cascade.

        Args:
          image: an image file, or RGBA in [0, 1] with straight alpha; or several of one object, the front first.
          azimuths: where several images were taken from, in degrees to the right of the first, whose own is 0, or as
            named in :data:`e3d_jax.cameras.DIRECTIONS`.
          elevation: of the cameras above the object's horizon in degrees, one for all images or one for each; None if
            unknown.
          fov: horizontal field of view of the images in degrees, likewise.
          normal: normal map of a single image in the world frame of the input view, of the same size as the image;
            estimated when not given.
          seed: of all randomness; the same seed gives the same result on the same backend.
          progress: show a bar for each stage; or what is to get the events of the run.

        Raises:
          FileNotFoundError, OSError, ValueError: see :func:`e3d_jax.images.read_image` and
            :func:`e3d_jax.images.matte`; an array is not such an image, the normal map is of another size, or the
            seed is not in [0, 2**32); there are more images than the weights take, or two from one azimuth; or an angle
            is out of range, or one that the weights cannot be given.
        """
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"{seed=} is out of range; choose one from 0 to {MAX_SEED}")
        given = list(image) if isinstance(image, list | tuple) else [image]
        angles = self._directions(len(given), azimuths)
        levels, fovs = (_one_each(name, x, len(given)) for name, x in (("elevation", elevation), ("fov", fov)))
        if normal is not None and len(given) > 1:
            raise ValueError(f"a normal map goes with one image, {len(given)} are given")
        listener = (events.Bars() if progress else events.ignore) if isinstance(progress, bool) else progress
        clock = events.Clock(listener)
        with clock.stage("input", 1) as stage:
            stage.value = inputs = tuple(
                self.prepare(one, normal, azimuth=azimuth, elevation=level, fov=span)
                for one, azimuth, level, span in zip(given, angles, levels, fovs, strict=True)
            )
        views = self.generate(inputs, seed, clock)
        mesh, inputs = self.reconstruct(views, inputs, seed, clock)
        return Result(inputs, views, mesh, clock.seconds, clock.peak_memory)

    def stream(self, image: Image | Sequence[Image], **options: Any) -> Generator[events.Event | Result]:
        """Run the cascade, and yield what happens as it happens.

        The values of :class:`e3d_jax.events.Done` are the inputs, the views of the anchors, all views, and the mesh;
        the last that is yielded is the result. Closing the generator ends the run after the steps that the device is
        at.

        Args:
          image: as in a call.
          options: arguments of a call other than ``progress``.

        Raises:
          FileNotFoundError, OSError, ValueError: as in a call.
        """
        return events.stream(lambda report: self(image, progress=report, **options))

    def _directions(self, count: int, azimuths: Sequence[Number | str] | None) -> list[float]:
        """Return the azimuths of images in degrees, checked."""
        most = self._trained_for.max_inputs
        if count > most:
            raise ValueError(
                f"{count} images are given, but these weights take {most} (anchor.diffusion.max_inputs); give "
                "fewer, or weights that were trained for more"
            )
        angles = [cameras.direction(each) for each in ([0.0] if azimuths is None and count == 1 else azimuths or [])]
        if len(angles) != count or angles[:1] != [0.0]:
            raise ValueError(f"azimuths is {azimuths} for {count} images; expected one for each, 0 for the first")
        for first, second in itertools.combinations(range(count), 2):
            away = (angles[second] - angles[first]) % 360
            if min(away, 360 - away) < APART:
                raise ValueError(
                    f"images {first + 1} and {second + 1} are both from azimuth {angles[second]:g}; give images from "
                    "different sides"
                )
        return angles

    def generate(self, inputs: Sequence[Input], seed: int, clock: events.Clock) -> structs.ViewSet:
        """Run both diffusion stages, from what :meth:`prepare` makes of the images to the views of the layout."""
        keys = jax.random.split(jax.random.key(seed))
        with clock.stage("anchors", self.config["anchor"].sampling.num_steps) as stage:
            color, maps = self.anchors([inputs], keys[0], stage.advance)[0]
            stage.value = views = self.assemble(color, maps)
        if "interpolation" not in self.modules:
            return views
        with clock.stage("interpolation", self.config["interpolation"].sampling.num_steps) as stage:
            between = self.interpolate(jnp.asarray(color)[None], keys[1], stage.advance)[0]
            stage.value = views = self.assemble(color, maps, between)
        return views

    def reconstruct(
        self, views: structs.ViewSet, inputs: Sequence[Input], seed: int, clock: events.Clock
    ) -> tuple[structs.Mesh, tuple[Input, ...]]:
        """Fit the mesh of views and inputs, see :func:`e3d_jax.reconstruction.pipeline.reconstruct_with`.

        Args:
          views: of the layout.
          inputs: what :meth:`prepare` makes of the images; none for the mesh of the views alone.
          seed: of the fit.
          clock: gets the time and the steps.

        Returns:
          The mesh, and the inputs with their cameras.
        """
        chosen = self.config.system.reconstruction
        pictures = [each.picture for each in inputs if each.picture is not None]
        with clock.stage("reconstruction", chosen.fit.steps) as stage:
            stage.value, found = pipeline.reconstruct_with(
                views, pictures, chosen, jax.random.key(seed), lambda *_: stage.advance(chosen.fit.steps_per_chunk)
            )
        cameras_of = iter(found)
        return stage.value, tuple(each if each.picture is None else _located(each, next(cameras_of)) for each in inputs)

    def prepare(
        self,
        image: Any,
        normal: Any = None,
        *,
        azimuth: float = 0.0,
        elevation: Number | None = None,
        fov: Number | None = None,
    ) -> Input:
        """Cut out and frame an image as in training, and find its normal map; arguments of a call, for one image."""
        found, angles = {}, [None if angle is None else float(angle) for angle in (elevation, fov)]
        elevation, found["elevation"] = self._angle("elevation", elevation, ELEVATIONS)
        fov, found["fov"] = self._angle("fov", fov, FOVS)
        whole = images.matte(_checked(image))
        if cutout.is_cut_off(whole[..., 3]):
            warnings.warn(
                f"the object in the image from azimuth {azimuth:g} seems to be cut off at the border, so its shape may "
                "come out wrong; give an image that shows all of it",
                stacklevel=2,
            )
        box = images.object_box(whole[..., 3])
        framed = images.crop(whole, box, self.size)
        alpha = framed[..., 3:]
        if normal is None and "normals" not in self.modules:
            raise ValueError("this system has no normal estimator; give a normal map of the image")
        if normal is None:
            estimate = np.asarray(_estimate(self.module("normals"), jnp.asarray(framed)[None])[0])
            rgb = np.where(alpha > 0, estimate / 2 + 0.5, 1)
        else:
            given = _checked(normal)
            if given.shape[:2] != whole.shape[:2]:
                raise ValueError(
                    f"the normal map is {given.shape[1]} x {given.shape[0]} px, the image "
                    f"{whole.shape[1]} x {whole.shape[0]}; give a map of the image's size"
                )
            rgb = images.crop(given, box, self.size)[..., :3]
        encoded = np.concatenate([rgb, alpha], -1).astype(np.float32)
        if azimuth:  # From its own frame to that of the first input.
            turn = jnp.full(1, np.radians(-azimuth), jnp.float32)
            encoded = np.asarray(latents.turn_normals(jnp.asarray(encoded)[None], turn)[0])
        # Lengths on the image plane go with tangents of half angles.
        part = box[2] / whole.shape[1]
        crop_fov = None if fov is None else math.degrees(2 * math.atan(part * math.tan(math.radians(fov) / 2)))
        picture = registration.cropped(whole, box, azimuth, elevation=angles[0], fov=angles[1])
        return Input(framed, encoded, azimuth, elevation, fov, crop_fov, found, picture)

    def _angle(self, name: str, given: Number | None, limits: tuple[float, float]) -> tuple[Number | None, str]:
        """Return the angle of an input camera that the models assume or are given, and how it was found."""
        layout, knows = self.config.layout, self._trained_for.input_cameras
        assumed = layout.elevation if name == "elevation" else math.degrees(2 * math.atan(0.5 / layout.focal))
        if given is None:
            return (None, "unknown to the model") if knows else (round(assumed, 2), "assumed")
        if not limits[0] <= given <= limits[1]:
            raise ValueError(f"{name} is {given:g}; expected degrees from {limits[0]:g} to {limits[1]:g}")
        if not knows and abs(given - assumed) > 0.5:
            raise ValueError(
                f"{name} is {given:g}, but these weights take it to be {assumed:.1f}; leave it out, or use weights "
                "that were trained with anchor.diffusion.input_cameras"
            )
        return given, "given"

    def anchors(
        self,
        objects: Sequence[Sequence[Input]],
        key: jax.Array,
        progress: Callable[[int], object] = lambda steps: None,
    ) -> Float[np.ndarray, "b d v h w 4"]:
        """Run stage 1 (:func:`e3d_jax.stages.anchor.sample`) with this system's settings.

        Args:
          objects: the inputs of each object, of the same number for all.
          key: of the noise.
          progress: called with the number of steps after each group of steps.
        """
        chosen = self.config["anchor"]
        pairs = np.array([[[each.image for each in one], [each.normal for each in one]] for one in objects])
        sampled = anchor.sample(
            self.module("anchor"),
            self.module("anchor", "autoencoder"),
            jnp.asarray(pairs),
            np.concatenate([self._labels(one) for one in objects]),
            key,
            diffusion=chosen.diffusion,
            sampling=chosen.sampling,
            progress=progress,
        )
        views = _with_alpha(sampled)
        if self._trained_for.input_cameras:
            # Such weights learn from images of any exposure, which they guess; people expect that of their image.
            for color, (front, *_) in zip(views[:, 0], objects, strict=True):
                color[...] = images.exposed_as(color, front.image)
        return views

    def _labels(self, inputs: Sequence[Input]) -> Float[np.ndarray, "1 d views 12"]:
        """Return the labels of :func:`e3d_jax.stages.conditions.view_labels`; the first input is at view 0."""
        layout = self.config.layout
        poses = np.asarray(layout.cameras(self.size).world_from_cam)[layout.anchors][None]
        knows = self._trained_for.input_cameras
        level = float(cameras.elevation_of(poses[0, 0]))
        levels = [math.radians(each.elevation or 0.0) if knows else level for each in inputs]
        rings = [
            cameras.ring(1, 1, offset=math.radians(each.azimuth), elevation=elevation)
            for each, elevation in zip(inputs, levels, strict=True)
        ]
        taken = np.concatenate([ring.world_from_cam for ring in rings])[None]
        if not knows:
            return conditions.view_labels(poses, taken)
        fov = np.radians([[each.crop_fov or 0.0 for each in inputs]]).astype(np.float32)
        known = np.array([[[each.crop_fov is not None, each.elevation is not None] for each in inputs]])
        return conditions.view_labels(poses, taken, fov, known)

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
        layout, ring = self.config.layout, self.config.layout.cameras(self.size)
        normals = np.asarray(images.decode_normal(normals), np.float32)
        if between is None:
            every = np.arange(len(color))
            return structs.ViewSet(color, ring[layout.anchors], every, normals, every)
        rgba = np.empty((layout.num_views, *color.shape[1:]), np.float32)
        rgba[layout.anchors], rgba[layout.between] = color, between
        return structs.ViewSet(rgba, ring, layout.anchors, normals, layout.anchors)


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


def _located(given: Input, camera: registration.Found) -> Input:
    """Return an input with its camera."""
    found = {name: how if how == "given" else "fitted to the mesh" for name, how in given.found.items()}
    return dataclasses.replace(given, elevation=camera.elevation, fov=camera.fov, found=found, camera=camera)


def _one_each(name: str, given: Any, count: int) -> list[Number | None]:
    """Return what is given for all images, or for each."""
    if not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise ValueError(f"{name} has {len(given)} values for {count} images; give one for all, or one for each")
    return list(given)


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
