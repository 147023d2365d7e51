"""How well the cameras of pictures are found, and how much of a picture the mesh keeps, with ground-truth views.

    python benchmarks/pictures.py --meshes=DIR --out=scores.json [--names=NAME,...] [--quality=fast] [--size=256]
        [--picture=512] [--rows=0,30,dim] [--finds=4] [--sheets=DIR]

Each mesh (.glb and others) is reconstructed from 32 views and 8 normal maps, as a trained system would draw them. Rows:

    found       pictures from random cameras (cameras.InputCameras) are only looked for: ``elevation_error`` and
                ``fov_error`` in degrees, ``agreement`` of the silhouettes, ``psnr`` of the mesh, seen from the camera
                that was found, against the picture
    elevation   the mesh is fitted and painted with the picture's pixels too
    dim         the same with a picture that is darker and warmer than the views, at elevation 30

``--rows`` chooses elevations and ``dim``. ``--sheets`` writes a sheet for each of these rows: the picture, then the
mesh from its camera and from 60 degrees to the left and right of it; below, the mesh without the picture's pixels.
Scores are added to ``--out`` one by one; those already there are not computed again.
"""

import dataclasses
import json
import math
import pathlib
import time

import jax
import numpy as np
from absl import app, flags

from e3d_jax import cameras, files, images, structs
from e3d_jax.data import assets
from e3d_jax.data.assets import reading
from e3d_jax.evaluation import report
from e3d_jax.mesh import preview
from e3d_jax.reconstruction import config, pipeline, registration

MESHES = flags.DEFINE_string("meshes", None, "Folder of meshes.", required=True)
OUT = flags.DEFINE_string("out", "pictures.json", "File of the scores.")
NAMES = flags.DEFINE_list("names", None, "Names of the meshes; all by default.")
QUALITY = flags.DEFINE_enum("quality", "fast", list(config.QUALITIES), "Speed against detail.")
SIZE = flags.DEFINE_integer("size", 256, "Width and height of the views in pixels.", lower_bound=32)
PICTURE = flags.DEFINE_integer("picture", 512, "Width and height of the pictures in pixels.", lower_bound=32)
ROWS = flags.DEFINE_list("rows", ["0", "30", "dim"], "Elevations of pictures in degrees, and dim.")
FINDS = flags.DEFINE_integer("finds", 4, "Pictures from random cameras.", lower_bound=0)
SHEETS = flags.DEFINE_string("sheets", None, "Folder of sheets to look at.")

FOV = 35.0  # degrees, of the pictures of known elevation
DIM, DIM_ELEVATION = np.array([0.85, 0.75, 0.65, 1.0], np.float32), 30.0


def take(asset: reading.Asset, camera: structs.Cameras) -> registration.Picture:
    """Draw an asset, and crop around it as ``e3d infer`` does."""
    whole = assets.render(asset, camera, np.arange(0)).views.rgba[0]
    return registration.cropped(whole, images.object_box(whole[..., 3]), 0.0)


def level_camera(elevation: float) -> structs.Cameras:
    """Return the camera of a picture from the front."""
    near = cameras.InputCameras(count=1, elevation=(elevation, elevation), fov=(FOV, FOV))
    return near.draw(np.random.default_rng(0), PICTURE.value)


def psnr(mesh: structs.Mesh, picture: registration.Picture, found: registration.Found) -> float:
    """Return the PSNR of a mesh, seen from a found camera, against the picture."""
    shown = preview.render_mesh(mesh, found.camera, supersampling=3)[0]
    return report.view_scores(shown, picture.rgba)["psnr"]


def sheet(picture: registration.Picture, found: registration.Found, meshes: list[structs.Mesh]) -> np.ndarray:
    """Return what ``--sheets`` writes, on gray."""
    poses = [np.asarray(found.camera.world_from_cam)[0]]
    for angle in np.radians([-60, 60]):
        turn = np.eye(4)
        turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        poses.append(turn @ poses[0])
    around = structs.Cameras(
        np.stack(poses),
        *(np.repeat(x, 3, 0) for x in (found.camera.focal, found.camera.center)),
        width=found.camera.width,
        height=found.camera.height,
    )
    rows = [np.concatenate([picture.rgba, *preview.render_mesh(mesh, around)], 1) for mesh in meshes]
    return np.asarray(images.composite(np.concatenate(rows), 0.6))


def main(_) -> None:
    """Score all meshes."""
    out, paths = pathlib.Path(OUT.value), assets.find_assets(MESHES.value)
    rows = json.loads(out.read_text()) if out.exists() else []
    done = {(row["mesh"], row["row"]) for row in rows}
    settings = config.QUALITIES[QUALITY.value]
    ring = cameras.RELEASED.cameras(SIZE.value)

    def keep(row: dict) -> None:
        rows.append(row)
        print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
        files.write_atomically(out, json.dumps(rows, indent=1).encode())

    for name in NAMES.value or list(paths):
        asset = reading.read_asset(paths[name])
        views = assets.render(asset, ring, cameras.RELEASED.anchors).views
        plain = None
        if (name, "found") not in done:
            rng = np.random.default_rng(sum(map(ord, name)))
            shots = [cameras.InputCameras(count=1).draw(rng, PICTURE.value) for _ in range(FINDS.value)]
            given = [take(asset, shot) for shot in shots]
            bare = dataclasses.replace(settings, input_pixels=False)
            plain, found = pipeline.reconstruct_with(views, given, bare, jax.random.key(0))
            for shot, picture, one in zip(shots, given, found, strict=True):
                true = math.degrees(cameras.elevation_of(shot.world_from_cam)[0])
                fov = math.degrees(cameras.fov_of(shot)[0])
                keep(
                    {
                        "mesh": name,
                        "row": "found",
                        "elevation": true,
                        "elevation_error": abs(one.elevation - true),
                        "fov_error": abs(one.fov - fov),
                        "agreement": one.agreement,
                        "psnr": psnr(plain, picture, one),
                    }
                )
        for kind in ROWS.value:
            if (name, kind) in done:
                continue
            elevation = DIM_ELEVATION if kind == "dim" else float(kind)
            picture = take(asset, level_camera(elevation))
            if kind == "dim":
                picture = dataclasses.replace(picture, rgba=picture.rgba * DIM)
            start = time.process_time()
            mesh, (one,) = pipeline.reconstruct_with(views, [picture], settings, jax.random.key(0))
            keep(
                {
                    "mesh": name,
                    "row": kind,
                    "elevation": elevation,
                    "elevation_error": abs(one.elevation - elevation),
                    "fov_error": abs(one.fov - FOV),
                    "agreement": one.agreement,
                    "psnr": psnr(mesh, picture, one),
                    "cpu_seconds": time.process_time() - start,
                }
            )
            if SHEETS.value:
                pathlib.Path(SHEETS.value).mkdir(parents=True, exist_ok=True)
                shown = sheet(picture, one, [mesh, plain] if plain else [mesh])
                images.write_png(pathlib.Path(SHEETS.value, f"{pathlib.Path(name).name}_{kind}.png"), shown)
    for kind in dict.fromkeys(row["row"] for row in rows):
        chosen = [row for row in rows if row["row"] == kind]
        errors = [row["elevation_error"] for row in chosen]
        print(
            f"{kind:8s} {len(chosen):4d} pictures, elevation off by {np.median(errors):.2f} (median) and "
            f"{np.percentile(errors, 90):.2f} (90 %), psnr {np.mean([row['psnr'] for row in chosen]):.2f} dB, lowest "
            f"{min(row['psnr'] for row in chosen):.2f}"
        )


if __name__ == "__main__":
    app.run(main)
