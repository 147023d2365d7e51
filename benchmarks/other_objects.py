"""Whether pictures of other objects are noticed, and pictures of the object are not.

    python benchmarks/other_objects.py --meshes=DIR --out=scores.json [--sheet=sheet.png]

Each mesh of the folder stands for the one that was made of the first picture, and is compared with photographs (lit,
exposed, and cropped otherwise, from any side). Rows:

    exact     a photograph of the object
    inexact   the same, but the mesh is 16 % too deep or too flat, bent, blurred, and tinted
    beside    the inexact mesh, and a photograph that also shows half of another object of the folder beside the object
    other     the inexact mesh, and photographs of three other objects

Scores are added to ``--out`` one by one; those already there are not computed again. ``--sheet`` shows the pictures
where this is wrong, and below each the mesh from the camera that was found.
"""

import json
import math
import pathlib
import zlib

import numpy as np
import trimesh
from absl import app, flags
from scipy import sparse

from e3d_jax import cameras, files, images, raycast, structs
from e3d_jax.data import assets, lighting, photographs
from e3d_jax.data.assets import reading, rendering
from e3d_jax.mesh import preview
from e3d_jax.reconstruction import registration

MESHES = flags.DEFINE_string("meshes", None, "Folder of meshes.", required=True)
OUT = flags.DEFINE_string("out", "other_objects.json", "File of the scores.")
SHEET = flags.DEFINE_string("sheet", None, "Image of the pictures where this is wrong.")

SIZE = 192  # of the photographs in pixels
OTHERS = 3
PHOTOGRAPHER = cameras.InputCameras(count=2)  # The second is from any side.
DEPTH, BEND, WAVES, TINT = 0.15, 0.012, 6, 0.08


def colored(asset: reading.Asset) -> structs.Mesh:
    """Return the mesh of an asset with the colors of its views at dense vertices, as a fitted mesh has them."""
    vertices, faces, origin = trimesh.remesh.subdivide_to_size(asset.vertices, asset.faces, 0.03, return_index=True)
    total, count = np.zeros((len(vertices), 3)), np.zeros((len(vertices), 1))
    for corner in faces.T:
        at = trimesh.triangles.points_to_barycentric(asset.vertices[asset.faces[origin]], vertices[corner])
        none = np.zeros(len(faces), np.float32)
        hits = raycast.Hits(origin, np.nan_to_num(at, nan=1 / 3), np.zeros((len(faces), 3), np.float32), none)
        np.add.at(total, corner, asset.color(hits, lighting.brightness(asset.normals(hits))))
        np.add.at(count, corner, 1)
    colors = (total / np.maximum(count, 1)).clip(0, 1)
    return structs.Mesh(vertices.astype(np.float32), faces.astype(np.int32), colors.astype(np.float32))


def inexact(mesh: structs.Mesh, rng: np.random.Generator) -> structs.Mesh:
    """Return a mesh as one picture leaves it: of another depth, bent, with blurred and tinted colors."""
    vertices = mesh.vertices.astype(np.float64)
    vertices[:, 0] *= math.exp(DEPTH * rng.choice([-1, 1]))
    for _ in range(WAVES):
        phase = vertices @ rng.normal(0, WAVES, 3) + rng.uniform(0, 2 * np.pi)
        vertices += BEND * rng.normal(size=3) * np.sin(phase)[:, None]
    edges = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).edges_unique.T
    count = len(vertices)
    near = sparse.coo_array((np.ones(len(edges[0])), edges), (count, count))
    near = near + near.T + sparse.eye_array(count)
    colors = mesh.colors.astype(np.float64)
    for _ in range(15):
        colors = (near @ colors) / near.sum(1)[:, None]
    colors += TINT * np.sin(mesh.vertices @ rng.normal(0, WAVES, (3, 3)) + rng.uniform(0, 2 * np.pi, 3))
    return structs.Mesh(vertices.astype(np.float32), mesh.faces, colors.clip(0, 1).astype(np.float32))


def photograph(asset: reading.Asset, name: str) -> tuple[np.ndarray, float]:
    """Return a photograph, RGBA, and the azimuth of its camera in degrees; a name gives the same everywhere."""
    shots = photographs.plan(PHOTOGRAPHER, name, SIZE)
    taken = rendering.photograph(asset, shots, PHOTOGRAPHER.effects, normals=False)
    x, y, _ = np.asarray(taken.cameras.world_from_cam)[1, :3, 3]
    return taken.rgba[1], math.degrees(math.atan2(y, x)) % 360


def beside(rgba: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return a photograph with the left half of another object, as high as the first, to the right of it."""
    (left, top, right, bottom), box = _bounds(rgba), _bounds(other)
    height = bottom - top
    scale = (box[3] - box[1]) / height
    scaled = images.crop(other, (float(box[0]), float(box[1]), height * scale), height)
    half = scaled[:, : max(min(round((box[2] - box[0]) / scale / 2), height), 1)]
    out = np.ones((len(rgba), right + half.shape[1] + left, 4), np.float32)
    out[..., 3] = 0
    out[:, :right] = rgba[:, :right]
    out[top:bottom, right : right + half.shape[1]] = half
    return out


def _bounds(rgba: np.ndarray) -> tuple[int, int, int, int]:
    row, column = np.nonzero(rgba[..., 3] > 0.5)
    return column.min(), row.min(), column.max() + 1, row.max() + 1


def shown(mesh: structs.Mesh, picture: registration.Picture, found: registration.Found) -> np.ndarray:
    """Return a picture above the mesh from the camera that was found."""
    side = float(len(picture.rgba))
    small = cameras.cropped(found.camera, np.zeros((1, 2), np.float32), np.float32([side]), 128)
    given = images.crop(picture.rgba, (0.0, 0.0, side), 128)
    return np.asarray(images.composite(np.concatenate([given, preview.render_mesh(mesh, small)[0]])))


def main(_) -> None:
    """Compare all pairs that have no scores yet, and print the rates."""
    out, paths = pathlib.Path(OUT.value), assets.find_assets(MESHES.value)
    rows = json.loads(out.read_text()) if out.exists() else []
    done = {(row["mesh"], row["picture"], row["row"]) for row in rows}
    wrong, names = [], list(paths)

    def score(name: str, kind: str, picture: str, mesh: structs.Mesh, rgba: np.ndarray, azimuth: float) -> None:
        if (name, picture, kind) in done:
            return
        given = registration.cropped(rgba, images.object_box(rgba[..., 3]), azimuth)
        found = registration.find(mesh, given)
        row = {"mesh": name, "picture": picture, "row": kind}
        rows.append(row | {"agreement": found.agreement, "difference": found.difference})
        files.write_atomically(out, json.dumps(rows, indent=1).encode())
        if (found.difference > registration.MOST_DIFFERENT) != (kind in ("beside", "other")):
            wrong.append(shown(mesh, given, found))
            print(rows[-1], flush=True)

    for name in names:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        others = [str(other) for other in rng.choice([each for each in names if each != name], OTHERS, replace=False)]
        if (name, others[-1], "other") in done:
            continue
        asset = reading.read_asset(paths[name])
        exact = colored(asset)
        rough = inexact(exact, rng)
        rgba, azimuth = photograph(asset, name)
        score(name, "exact", name, exact, rgba, azimuth)
        score(name, "inexact", name, rough, rgba, azimuth)
        for number, other in enumerate(others):
            strange, _ = photograph(reading.read_asset(paths[other]), f"{other} for {name}")
            if number == 0:
                score(name, "beside", other, rough, beside(rgba, strange), azimuth)
            score(name, "other", other, rough, strange, azimuth)
    for kind in dict.fromkeys(row["row"] for row in rows):
        chosen = [row for row in rows if row["row"] == kind]
        noticed = np.mean([row["difference"] > registration.MOST_DIFFERENT for row in chosen])
        low = np.mean([row["agreement"] < 0.7 for row in chosen])
        print(f"{kind:8s} {len(chosen):4d} pictures, {noticed:6.1%} noticed; {low:6.1%} agree by less than 70 %")
    if SHEET.value and wrong:
        images.write_png(pathlib.Path(SHEET.value), np.concatenate(wrong, 1))


if __name__ == "__main__":
    app.run(main)
