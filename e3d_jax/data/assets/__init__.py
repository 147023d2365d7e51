"""Meshes of users as training records or folders of views, drawn from the camera ring (Embree, on the CPU).

Every mesh is brought to the ball of radius 0.5 and drawn with textures, vertex colours and a soft light from above.
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
        values, alpha = surface.draw(ring[[view]], functools.partial(shade, forward), supersampling=SUPERSAMPLING)
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


def find_meshes(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Mesh files below a folder by name: the path without suffix, or with it where that is taken.

    Raises:
      FileNotFoundError: there are none.
    """
    folder = pathlib.Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in reading.SUFFIXES and path.is_file())
    if not paths:
        raise FileNotFoundError(f"no meshes ({', '.join(reading.SUFFIXES)}) below {str(folder)!r}")
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    taken = collections.Counter(stems)
    return {
        stem if taken[stem] == 1 else path.relative_to(folder).as_posix(): path
        for stem, path in zip(stems, paths, strict=True)
    }


def pack(name: str, file: str, drawn: Render) -> bytes:
    """A drawn asset as a record."""
    views = drawn.views
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
    """One mesh, by name, file and pose: its record, None if it was written to a folder, or why it cannot be read."""
    name, (path, pose) = job
    rng = np.random.default_rng(zlib.crc32(name.encode()))  # The pose is the same whatever else is drawn.
    rotation = spatial.transform.Rotation.from_quat(rng.normal(size=4)) if pose else None
    try:
        asset = reading.read_asset(path, y_up=settings.y_up, rotation=rotation)
    except (OSError, ValueError) as error:
        return str(error).replace("\n", " ")
    ring, anchors = cameras.ring(settings.size, settings.num_views), cameras.anchors_of(settings.num_views)
    drawn = render(asset, ring, anchors if settings.normals else anchors[:0])
    if settings.folder is None:
        return pack(name, path.name, drawn)
    views_io.write_views(settings.folder / name, drawn.views, drawn.depths)
    return None


def write(
    meshes: str | os.PathLike,
    out: str | os.PathLike,
    settings: Settings,
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
) -> tuple[int, int, int]:
    """Render meshes of a folder that are not in ``out`` yet, further poses as NAME@1, NAME@2, ...

    Args:
      meshes: the folder.
      out: where records or folders of views go.
      settings: what to make.
      workers: processes.
      share: (i, n): do the i-th of n parts of the meshes, into shards of its own.

    Returns:
      How many of them were rendered, were there already, and were skipped because they cannot be read.

    Raises:
      FileNotFoundError: there are no meshes.
      ValueError: records of other than the ring or its anchors.
      OSError: ``out`` cannot be written.
    """
    out, skipped = pathlib.Path(out), 0
    jobs = {
        f"{name}@{pose}" if pose else name: (path, pose)
        for name, path in itertools.islice(find_meshes(meshes).items(), share[0], None, share[1])
        for pose in range(settings.poses)
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
