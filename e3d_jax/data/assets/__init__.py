"""Meshes of users, or their renders, as training records or folders of views.

Every mesh is brought to the ball of radius 0.5 and drawn from the camera ring (Embree, on the CPU) with textures,
vertex colours and a soft light from above. Folders of views that others rendered must be of the same ring.
"""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
import sys
import zlib
from collections.abc import Iterator

import numpy as np
import tqdm
from array_record.python import array_record_module
from jaxtyping import Float, Int
from scipy import spatial

from e3d_jax import cameras, images, raycast, structs, views_io
from e3d_jax.data import parallel, records
from e3d_jax.data.assets import reading
from e3d_jax.data.synthetic import materials

SUPERSAMPLING = 3
SHARD = 64


@dataclasses.dataclass(frozen=True)
class Render:
    """An asset from every side.

    Attributes:
      views: pictures, and normal maps of ``views.normal_views``.
      depths: distance of the surface along each camera's optical axis, object units; 0 where nothing is seen.
    """

    views: structs.ViewSet
    depths: Float[np.ndarray, "v h w"]


def render(asset: reading.Asset, ring: structs.Cameras, normal_views: Int[np.ndarray, " a"]) -> Render:
    """Draw an asset, lit as most synthetic objects are: brightness from 0.55 (facing away from the light) to 1."""
    surface = raycast.Surface(asset.vertices, asset.faces)

    def shade(forward, hits):
        normals = asset.normals(hits)
        light = 0.55 + 0.45 * (0.5 + 0.5 * normals @ materials.KEY_LIGHT)
        depth = hits.depth * (hits.directions @ forward)
        return np.concatenate([asset.albedo(hits) * light[:, None], normals, depth[:, None]], -1)

    rgba, normals, depths = [], [], []
    for view in range(len(ring)):
        forward = np.asarray(ring.world_from_cam)[view, :3, 2]
        values, alpha = surface.render(ring[[view]], functools.partial(shade, forward), supersampling=SUPERSAMPLING)
        rgb, normal, depth = np.split(values, [3, 6], -1)
        known = alpha[..., None] > 0
        rgba.append(np.concatenate([np.where(known, rgb, 1.0), alpha[..., None]], -1).clip(0, 1))
        normals.append(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9))
        depths.append(depth[..., 0])
    views = structs.ViewSet(
        rgba=np.stack(rgba),
        cameras=ring,
        normal_views=normal_views,
        normals=np.stack(normals)[normal_views],
        anchors=cameras.anchors_of(len(ring)),
    )
    return Render(views, np.stack(depths))


def find_assets(folder: str | os.PathLike, *, rendered: bool = False) -> dict[str, pathlib.Path]:
    """Mesh files, and if ``rendered`` also the ``transforms.json`` of folders of views, below a folder by name.

    The name is the path of the mesh without suffix, or of the folder of views; with suffix or file where that is taken.

    Raises:
      FileNotFoundError: there are none.
    """
    folder = pathlib.Path(folder)
    names = {views_io.TRANSFORMS} if rendered else set()
    wanted = lambda path: path.suffix.lower() in reading.SUFFIXES or path.name in names  # noqa: E731
    paths = sorted(path for path in folder.rglob("*") if wanted(path) and path.is_file())
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


def read_rendered(folder: pathlib.Path, ring: structs.Cameras, normal_views: Int[np.ndarray, " a"]) -> structs.ViewSet:
    """Views that were rendered elsewhere (:mod:`e3d_jax.views_io`), with the normal maps of ``normal_views`` alone.

    Raises:
      OSError, ValueError: the folder cannot be read, its cameras are not the ring's in the ring's order, or a normal
        map is missing.
    """
    views = views_io.read_views(folder)
    if views.cameras.width != ring.width or len(views.cameras) != len(ring):
        raise ValueError(
            f"{folder} holds {len(views.cameras)} views of {views.cameras.width} px; wanted are {len(ring)} of "
            f"{ring.width} px (--views, --size)"
        )
    # As files with a few digits have them: thousandths of object units, tenths of pixels.
    for name, tolerance in (("world_from_cam", 2e-3), ("focal", 0.2), ("center", 0.2)):
        there, here = (np.asarray(getattr(cams, name)) for cams in (views.cameras, ring))
        wrong = np.abs(there - here).reshape(len(ring), -1).max(1) > tolerance
        if wrong.any():
            raise ValueError(
                f"{folder}: {name} of view {wrong.argmax()} is not that of the ring; render from the cameras "
                "of e3d_jax/cameras.py"
            )
    if missing := sorted(set(normal_views.tolist()) - set(views.normal_views.tolist())):
        raise ValueError(f"{folder} has no normal map of view {missing[0]}; give those of the anchors, or --nonormals")
    chosen = [views.normal_views.tolist().index(view) for view in normal_views.tolist()]
    return dataclasses.replace(views, normal_views=normal_views, normals=views.normals[chosen])


def pack(name: str, file: str, views: structs.ViewSet) -> bytes:
    """The views of an asset as a record."""
    alpha = views.rgba[views.normal_views][..., 3:]
    maps = np.concatenate([np.where(alpha > 0, (views.normals + 1) / 2, 1.0), alpha], -1)
    record = records.Record(
        id=name,
        provenance={"generator": "e3d_jax.data.assets", "file": file},
        size=views.cameras.width,
        views=[records.encode_png(images.to_uint8(view)) for view in views.rgba],
        normal_views=views.normal_views.tolist(),
        normals=[records.encode_png(images.to_uint8(view)) for view in maps],
        cameras=views.cameras,
    )
    return records.pack(record)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to make of every mesh.

    Attributes:
      num_views: cameras on the ring.
      size: width and height of the pictures in pixels.
      normals: whether the anchors get normal maps.
      y_up: see :func:`reading.read_asset`.
      poses: of every mesh: the first as in its file, the others turned at random, uniformly over all rotations.
      folder: where folders of views go; records are made instead if there is none.
    """

    num_views: int = cameras.NUM_VIEWS
    size: int = 256
    normals: bool = True
    y_up: bool = False
    poses: int = 1
    folder: pathlib.Path | None = None


def process(settings: Settings, job: tuple[str, tuple[pathlib.Path, int]]) -> bytes | str | None:
    """One asset, by name, file and pose: its record, None if it was written to a folder, or why it cannot be read."""
    name, (path, pose) = job
    ring, anchors = cameras.ring(settings.size, settings.num_views), cameras.anchors_of(settings.num_views)
    with_normals = anchors if settings.normals else anchors[:0]
    rng = np.random.default_rng(zlib.crc32(name.encode()))  # The pose is the same whatever else is drawn.
    rotation = spatial.transform.Rotation.from_quat(rng.normal(size=4)) if pose else None
    try:
        if path.name == views_io.TRANSFORMS:
            views, depths = read_rendered(path.parent, ring, with_normals), None
        else:
            drawn = render(reading.read_asset(path, y_up=settings.y_up, rotation=rotation), ring, with_normals)
            views, depths = drawn.views, drawn.depths
    except (OSError, ValueError) as error:
        return str(error).replace("\n", " ")
    if settings.folder is None:
        return pack(name, path.name, views)
    views_io.write_views(settings.folder / name, views, depths)
    return None


def write(
    meshes: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings,
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
) -> tuple[int, int, int]:
    """Make records or views of the assets of a folder that are not in ``out`` yet.

    Args:
      meshes: the folder, see :func:`find_assets`.
      out: where records or folders of views go; further poses of meshes are named NAME@1, NAME@2, ...
      settings: what to make.
      workers: processes.
      share: (i, n): do the i-th of n parts of the assets, into shards of its own.

    Returns:
      How many of them were rendered, were there already, and were skipped because they cannot be read.

    Raises:
      FileNotFoundError: there are no assets.
      ValueError: records of other than the ring or its anchors.
      OSError: ``out`` cannot be written.
    """
    out, skipped = pathlib.Path(out), 0
    assets = find_assets(meshes, rendered=settings.folder is None)
    jobs = {
        f"{name}@{pose}" if pose else name: (path, pose)
        for name, path in itertools.islice(assets.items(), share[0], None, share[1])
        for pose in range(1 if path.name == views_io.TRANSFORMS else settings.poses)
    }
    if settings.folder is None and settings.num_views not in records.NUM_VIEWS:
        raise ValueError(
            f"records hold the ring of {cameras.NUM_VIEWS} views or its {cameras.NUM_ANCHORS} anchors, not "
            f"{settings.num_views} views; use --format=folder for others"
        )
    out.mkdir(parents=True, exist_ok=True)
    found = len(jobs)
    done = _recorded(out) if settings.folder is None else {n for n in jobs if (out / n / views_io.TRANSFORMS).is_file()}
    jobs = {name: job for name, job in jobs.items() if name not in done}

    def records_of(results) -> Iterator[bytes]:
        nonlocal skipped
        bar = tqdm.tqdm(results, total=len(jobs), unit="object", mininterval=2, disable=None)
        for result in bar:
            if isinstance(result, str):
                skipped += 1
                tqdm.tqdm.write(f"skipped: {result}", sys.stderr)
            elif result is not None:
                yield result

    work = functools.partial(process, settings)
    if workers == 1 or len(jobs) < 2:
        _write_shards(out, share[0], records_of(map(work, jobs.items())))
    else:
        with parallel.host_processes(min(workers, len(jobs))) as pool:
            _write_shards(out, share[0], records_of(parallel.in_order(pool, work, jobs.items())))
    return len(jobs) - skipped, found - len(jobs), skipped


def _recorded(folder: pathlib.Path) -> set[str]:
    """Names of the assets in a folder's shards."""
    names: set[str] = set()
    for shard in records.find_shards(folder) if any(folder.glob("*.array_record")) else []:
        reader = array_record_module.ArrayRecordReader(shard)
        names |= {records.unpack(data).id for data in reader.read_all()}
        reader.close()
    return names


def _write_shards(folder: pathlib.Path, share: int, results: Iterator[bytes]) -> None:
    """Records in shards of :data:`SHARD`, numbered after those there are of the same share."""
    number = 0
    for record in results:
        while (path := folder / f"assets-{share:04d}-{number:06d}.array_record").exists():
            number += 1
        with records.Writer(path) as writer:
            writer.write(record)
            for more in itertools.islice(results, SHARD - 1):
                writer.write(more)
