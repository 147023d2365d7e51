"""Folders of meshes, or of their renders, as shards of records or as folders of views."""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
import zlib

import jax
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int
from scipy import spatial

from e3d_jax import cameras as cameras_lib
from e3d_jax import files, images, stores, structs, views_io
from e3d_jax.data import engine, manifest, photographs, records
from e3d_jax.data.assets import reading, rendering

OBJECTS_PER_SHARD = 64
# Folder of input images, in a folder of views.
INPUTS = "inputs"
# By how many degrees the first input image may miss the direction of view 0.
ASIDE = 1.0


@dataclasses.dataclass(frozen=True)
class RenderSettings:
    """How every mesh is drawn.

    Attributes:
      rig: cameras to draw from, and those that renders made elsewhere must have been drawn from.
      y_up: see :func:`reading.read_asset`.
      poses: number of poses of each mesh: the first as in its file, the others random, uniform over all rotations.
      inputs: input images to draw beside the rig's views; of renders made elsewhere, how many to take at most.
    """

    rig: records.Rig
    y_up: bool = False
    poses: int = 1
    inputs: cameras_lib.InputCameras = dataclasses.field(default_factory=cameras_lib.InputCameras)


@dataclasses.dataclass(frozen=True)
class Job:
    """One object to make.

    Attributes:
      name: of the object; unique within its dataset, and the seed of its pose.
      path: of the mesh, or the ``transforms.json`` of a folder of views.
      pose: 0 as in the file; otherwise a random rotation.
    """

    name: str
    path: pathlib.Path
    pose: int

    def __str__(self) -> str:
        return self.name


def find_assets(folder: str | os.PathLike, *, rendered: bool = False) -> dict[str, pathlib.Path]:
    """Return the mesh files below a folder, and if ``rendered`` the ``transforms.json`` of folders of views, by name.

    The name is the path of the mesh without suffix, or of the folder of views; with suffix or file where that is taken.

    Raises:
      FileNotFoundError: there are none.
    """
    folder = pathlib.Path(folder)
    names = {views_io.TRANSFORMS} if rendered else set()
    paths = sorted(
        path
        for path in folder.rglob("*")
        if (path.suffix.lower() in reading.SUFFIXES or path.name in names) and path.is_file() and not _is_inputs(path)
    )
    if not paths:
        kinds = ", ".join(reading.SUFFIXES)
        more = " and no folders of views" if rendered else ""
        raise FileNotFoundError(f"no meshes ({kinds}){more} below {str(folder)!r}")
    named = [path.parent if path.name == views_io.TRANSFORMS else path.with_suffix("") for path in paths]
    stems = [path.relative_to(folder).as_posix() for path in named]
    taken = collections.Counter(stems)
    return {
        stem if taken[stem] == 1 else path.relative_to(folder).as_posix(): path
        for stem, path in zip(stems, paths, strict=True)
    }


def _is_inputs(path: pathlib.Path) -> bool:
    """Return whether a ``transforms.json`` is that of the input images of a folder of views."""
    return path.parent.name == INPUTS and (path.parent.parent / path.name).is_file()


def read_rendered(
    folder: pathlib.Path, cameras: structs.Cameras, normal_views: Int[np.ndarray, " a"]
) -> structs.ViewSet:
    """Read views that were rendered elsewhere (:mod:`e3d_jax.views_io`), keeping only the normal maps asked for.

    Args:
      folder: of the views.
      cameras: that they must have been rendered from, in this order.
      normal_views: indices of the views whose normal maps are needed.

    Raises:
      OSError, ValueError: the folder cannot be read, its cameras are others, or a normal map is missing.
    """
    views = views_io.read_views(folder)
    if views.cameras.width != cameras.width or len(views.cameras) != len(cameras):
        raise ValueError(
            f"{folder} holds {len(views.cameras)} views of {views.cameras.width} px; expected {len(cameras)} of "
            f"{cameras.width} px (--views, --size)"
        )
    # As precise as files with a few digits: thousandths of object units, tenths of pixels.
    for name, tolerance in (("world_from_cam", 2e-3), ("focal", 0.2), ("center", 0.2)):
        found, expected = (np.asarray(getattr(each, name)) for each in (views.cameras, cameras))
        wrong = np.abs(found - expected).reshape(len(cameras), -1).max(1) > tolerance
        if wrong.any():
            raise ValueError(
                f"{folder}: {name} of view {wrong.argmax()} differs from the expected camera; render from the cameras "
                "of e3d_jax/cameras.py"
            )
    if missing := sorted(set(normal_views.tolist()) - set(views.normal_views.tolist())):
        raise ValueError(f"{folder} has no normal map of view {missing[0]}; provide it, or pass --nonormals")
    chosen = [views.normal_views.tolist().index(view) for view in normal_views.tolist()]
    return dataclasses.replace(views, normal_views=normal_views, normals=views.normals[chosen])


def read_inputs(folder: pathlib.Path, settings: RenderSettings) -> structs.ViewSet | None:
    """Read the input images of a folder of views, from any cameras and of any size, and frame them.

    Raises:
      OSError, ValueError: there are none, they cannot be read, the first is not in the direction of view 0, or a normal
        map is missing.
    """
    if not settings.inputs.count:
        return None
    if not (folder / INPUTS / views_io.TRANSFORMS).is_file():
        raise ValueError(f"{folder} has no input images; put them into {folder / INPUTS}, or pass --inputs=0")
    rig, views = settings.rig, views_io.read_views(folder / INPUTS)
    chosen = np.arange(min(settings.inputs.count, len(views.cameras)))
    front = np.asarray(rig.cameras.world_from_cam)[None, rig.anchors[:1]]
    aside = np.degrees(cameras_lib.relative_azimuth(np.asarray(views.cameras.world_from_cam)[None, :1], front))[0, 0]
    if min(aside, 360 - aside) > ASIDE:
        raise ValueError(
            f"the first image in {folder / INPUTS} is {aside:.1f} degrees of azimuth from view 0; first put one that "
            "is in its direction"
        )
    normals = bool(rig.normal_views)
    if normals and (missing := sorted(set(chosen.tolist()) - set(views.normal_views.tolist()))):
        raise ValueError(f"{folder / INPUTS} has no normal map of view {missing[0]}; provide it, or pass --nonormals")
    size = rig.cameras.width
    framed = [_frame(views, view, size, normals) for view in chosen.tolist()]
    return structs.ViewSet(
        rgba=np.stack([rgba for rgba, _, _ in framed]),
        cameras=jax.tree.map(lambda *parts: np.concatenate(parts), *(camera for _, _, camera in framed)),
        normal_views=chosen if normals else chosen[:0],
        normals=np.array([normal for _, normal, _ in framed if normal is not None]).reshape(-1, size, size, 3),
        anchors=chosen[:0],
    )


def _frame(views: structs.ViewSet, view: int, size: int, with_normals: bool):
    """Return an image as :func:`images.object_box` frames it, its normals if wanted, and the crop's camera."""
    rgba, normals = views.rgba[view], None
    left, top, side = box = images.object_box(rgba[..., 3])
    corner, width = np.array([[left, top]], np.float32), np.array([side], np.float32)
    camera = cameras_lib.cropped(views.cameras[[view]], corner, width, size)
    if with_normals:
        given = views.normals[views.normal_views.tolist().index(view)]
        encoded = images.crop(images.encode_normal(given, rgba[..., 3] * given.any(-1)), box, size)
        normals = 2 * encoded[..., :3] - 1
        length = np.linalg.norm(normals, axis=-1, keepdims=True)
        normals = np.where(encoded[..., 3:] > 0, normals / np.maximum(length, 1e-6), 0)
    return images.crop(rgba, box, size), normals, camera


def pack(
    name: str, file: str, rig: records.Rig, views: structs.ViewSet, inputs: structs.ViewSet | None = None
) -> bytes:
    """Return the views of an asset, and the framed input images if there are some, as a record."""
    parts = [views]
    if inputs is not None:
        parts, rig = [views, inputs], rig.with_inputs(inputs.cameras)
    colors = [images.to_uint8(rgba) for part in parts for rgba in part.rgba]
    encoded = [images.encode_normal(part.normals, part.rgba[part.normal_views][..., 3]) for part in parts]
    normals = [images.to_uint8(normal) for part in encoded for normal in part]
    maps = {"color": dict(enumerate(colors)), "normal": dict(zip(rig.normal_views, normals, strict=True))}
    provenance = {"generator": "e3d_jax.data.assets", "file": file}
    return records.pack(records.encode(name, provenance, rig, maps))


def draw(settings: RenderSettings, job: Job) -> tuple[rendering.Render, structs.ViewSet | None, tuple[str, ...]]:
    """Read a mesh, turn it to its pose, and draw it.

    Returns:
      The render, the framed input images if there are some, and a line for each texture that could not be loaded.

    Raises:
      OSError, ValueError: see :func:`reading.read_asset`; or nothing of the mesh is visible.
    """
    rng = np.random.default_rng(zlib.crc32(job.name.encode()))  # The pose does not depend on what else is drawn.
    rotation = spatial.transform.Rotation.from_quat(rng.normal(size=4)) if job.pose else None
    asset = reading.read_asset(job.path, y_up=settings.y_up, rotation=rotation)
    rig = settings.rig
    drawn = rendering.render(asset, rig.cameras, np.asarray(rig.normal_views, int), np.asarray(rig.anchors, int))
    if not drawn.views.rgba[..., 3].any():
        raise ValueError(f"{job.path} shows nothing: all light passes through its materials")
    inputs = None
    if settings.inputs.count:
        shots = photographs.plan(settings.inputs, job.name, rig.cameras.width)
        inputs = rendering.photograph(asset, shots, settings.inputs.effects, normals=bool(rig.normal_views))
    return drawn, inputs, asset.warnings


def _with_warnings(value, warnings: tuple[str, ...]):
    return engine.Flawed(value, warnings) if warnings else value


def make_record(settings: RenderSettings, job: Job) -> bytes | engine.Flawed | engine.Skipped:
    """Return the record of a mesh or of a folder of views, or why it cannot be read."""
    warnings: tuple[str, ...] = ()
    try:
        if job.path.name == views_io.TRANSFORMS:
            views = read_rendered(job.path.parent, settings.rig.cameras, np.asarray(settings.rig.normal_views, int))
            inputs = read_inputs(job.path.parent, settings)
        else:
            drawn, inputs, warnings = draw(settings, job)
            views = drawn.views
    except (OSError, ValueError) as error:
        return engine.Skipped(str(error))
    return _with_warnings(pack(job.name, job.path.name, settings.rig, views, inputs), warnings)


def make_folder(settings: RenderSettings, out: pathlib.Path, job: Job) -> pathlib.Path | engine.Flawed | engine.Skipped:
    """Write the folder of views of a mesh and return its path, or why the mesh cannot be read.

    Raises:
      OSError: the folder cannot be written.
    """
    try:
        drawn, inputs, warnings = draw(settings, job)
    except (OSError, ValueError) as error:
        return engine.Skipped(str(error))
    if inputs is not None:
        views_io.write_views(out / job.name / INPUTS, inputs)
    views_io.write_views(out / job.name, drawn.views, drawn.depths)
    return _with_warnings(out / job.name, warnings)


def plan(assets: dict[str, pathlib.Path], poses: int = 1, shard: tuple[int, int] = (0, 1)) -> list[Job]:
    """Return the objects to make of assets; poses after the first are named NAME@1, NAME@2, ...

    Args:
      assets: by name, from :func:`find_assets`.
      poses: of each mesh; folders of views have one.
      shard: (i, n): only every n-th asset, from the i-th on.
    """
    return [
        Job(f"{name}@{pose}" if pose else name, path, pose)
        for name, path in itertools.islice(assets.items(), shard[0], None, shard[1])
        for pose in range(1 if path.name == views_io.TRANSFORMS else poses)
    ]


def write_records(
    meshes: str | os.PathLike,
    out: str | os.PathLike,
    settings: RenderSettings,
    *,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    runner: engine.Runner = engine.write_shards,
) -> engine.Counts:
    """Make records of the meshes and folders of views below a folder that a dataset lacks.

    Args:
      meshes: the folder, see :func:`find_assets`.
      out: folder of the dataset.
      settings: how to draw.
      workers: processes; one per core by default, 0 for none but this one.
      shard: (i, n): do the i-th of n parts of the assets, into shards of its own.
      runner: does the job.

    Returns:
      How many objects were made, were there already, were skipped because they cannot be read, and were made without a
      texture of theirs.

    Raises:
      FileNotFoundError: there are no assets.
      OSError: ``out`` cannot be written.
    """
    jobs = plan(find_assets(meshes, rendered=True), settings.poses, shard)
    there = recorded(out)
    missing = [job for job in jobs if job.name not in there]
    taken = {pathlib.PurePath(path).name for path in files.glob(out, f"*{records.SUFFIX}")}
    names = (f"assets-{shard[0]:04d}-{number:06d}" for number in itertools.count())
    free = (name for name in names if name + records.SUFFIX not in taken)
    parts = [missing[first : first + OBJECTS_PER_SHARD] for first in range(0, len(missing), OBJECTS_PER_SHARD)]
    shards = [engine.Shard(name, part, list(map(str, part))) for part, name in zip(parts, free, strict=False)]
    work = functools.partial(engine.Work, prepare=functools.partial(make_record, settings))
    counts = runner(engine.Job(out, shards, work), workers=workers)
    return counts._replace(already=len(jobs) - len(missing))


def write_folders(
    meshes: str | os.PathLike,
    out: str | os.PathLike,
    settings: RenderSettings,
    *,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> engine.Counts:
    """Make a folder of views, with depths, of each mesh below a folder that has none yet.

    Arguments, result and errors are those of :func:`write_records`; any number of views will do.
    """
    out = pathlib.Path(out)
    jobs = plan(find_assets(meshes), settings.poses, shard)
    missing = [job for job in jobs if not (out / job.name / views_io.TRANSFORMS).is_file()]
    work = engine.Work(prepare=functools.partial(make_folder, settings, out))
    return engine.run(missing, work, already=len(jobs) - len(missing), workers=workers)


def recorded(folder: str | os.PathLike) -> set[str]:
    """Return the names of the objects in a dataset: those in the receipts of its shards, or else in the shards.

    Raises:
      ValueError: a shard or a receipt is damaged, or a shard holds other records.
    """
    names: set[str] = set()
    receipts = {receipt.shard: receipt for receipt in manifest.read_receipts(folder)}
    for path in files.glob(folder, f"*{records.SUFFIX}"):
        if receipt := receipts.get(pathlib.PurePath(path).name):
            names |= set(receipt.items) - set(receipt.quarantine)
            continue
        local = stores.local(path)
        records.check_shards([local])
        reader = array_record_module.ArrayRecordReader(local)
        names |= {records.unpack(data).id for data in reader.read_all()}
        reader.close()
    return names
