"""How good meshes made from ground-truth views are, and how much worse they get if the views contradict each other.

    python benchmarks/meshes.py --meshes=DIR --out=scores.json [--quality=standard] [--size=256] [--variants=...]
        [--ring=level|waving] [--names=NAME,...|hollow]

``--meshes`` is a folder of meshes (.glb and others), closed ones for volumes to mean something. Each is rendered from
the ring, reconstructed from 32 views and 8 normal maps, written as a GLB, read again and compared with the original:
all mesh metrics (e3d_jax/evaluation/metrics.py), the PSNR of the textured mesh at views halfway between the input
views, the mean difference of depths in the input views (``depth``), and the fraction of the object's pixels there at
which the mesh is not hit (``lost``). ``--names=hollow`` chooses vessels, shells, racks, chairs, and baskets, listed
below, from the 20 scans and the asset test set. Variants:

    normals         ground-truth views and normal maps
    filled          the same, but hollows of the hull stay filled (``fit.depth_width=0``)
    bare            ground-truth views without normal maps
    jitter          the color channels of each view scaled by up to 5 %
    shift           each view shifted by up to 2 pixels in either direction
    swap            one view shows a different object
    flip            10 % of the mask pixels along silhouettes are wrong
    contradictory   the last four at once, with normal maps
    anchors_only, all_views, coarse_to_fine    view schedules, on contradictory views

Scores are added to ``--out`` one by one; those already there are not computed again.
"""

import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags
from scipy import ndimage

from e3d_jax import cameras, files, structs
from e3d_jax.data import assets
from e3d_jax.data.assets import reading
from e3d_jax.evaluation import metrics, report
from e3d_jax.mesh import export, preview, texture
from e3d_jax.reconstruction import config, pipeline

MESHES = flags.DEFINE_string("meshes", None, "Folder of closed meshes.", required=True)
OUT = flags.DEFINE_string("out", "meshes.json", "File of the scores.")
QUALITY = flags.DEFINE_enum("quality", "standard", list(config.QUALITIES), "Speed against detail.")
SIZE = flags.DEFINE_integer("size", 256, "Width and height of the views in pixels.", lower_bound=32)
VARIANTS = flags.DEFINE_list("variants", ["normals", "bare", "contradictory"], "Variants, see above.")
NAMES = flags.DEFINE_list("names", None, "Names of the meshes; all by default.")
HELD_OUT = flags.DEFINE_integer("held_out", 8, "Novel views, between the others, that are compared.", lower_bound=1)
RING = flags.DEFINE_enum("ring", "level", ["level", "waving"], "Elevations: 0, or between -5 and 45 degrees.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of perturbations and fits.", lower_bound=0)

Views = structs.ViewSet
SCORES = (*metrics.MESH_METRICS, "psnr", "depth", "lost", "seconds", "cpu_seconds")
RINGS = {"level": cameras.RELEASED, "waving": cameras.ViewLayout(elevation=20.0, elevation_swing=25.0)}
HOLLOW = (
    "glazed_rim_porcelain_ramekin",
    "a_colored_wood_blocks",
    "can_opener",
    "Diamond_Visions_Scissors_Red",
    "kaykit_dungeonpack1/quiver_half_full",
    "kaykit_halloweenbits/bench",
    "kaykit_restaurantbits/pot_large",
    "kenney_food/friesEmpty",
    "kenney_food/plateSauerkraut",
    "kenney_food/wineRed",
    "kenney_furniture/loungeChair",
    "kenney_survival/structureCloth",
    "kenney_watercraft/watercraftPack_012",
    "mmmm_voxel/obj_fountain",
    "mmmm_voxel/obj_potty1",
    "polyhaven/wooden_table_02_1k",
    "quaternius/house_interior_pack_Chair_3",
    "quaternius/modular_dungeon_1_Bucket",
    "quaternius/rpg_items_pack_Ring1",
    "sh3d_blendswap-cc-0/plasticChair",
    "sh3d_blendswap-cc-0/urinal",
    "sh3d_blendswap-cc-by/bathroomRadiator",
    "sh3d_blendswap-cc-by/chairWithCushion",
    "sh3d_blendswap-cc-by/foldingChair",
    "sh3d_blendswap-cc-by/kitchenSink",
    "sh3d_blendswap-cc-by/largePan",
    "sh3d_katorlegaz/residential_trashcan",
    "sh3d_scopia/beach_chair",
    "sh3d_scopia/clothes_rack",
    "sh3d_scopia/woman_shoes",
)


def bare(views: Views, other: Views, rng: np.random.Generator) -> Views:
    """Remove the normal maps."""
    return dataclasses.replace(views, normal_views=views.normal_views[:0], normals=views.normals[:0])


def jitter(views: Views, other: Views, rng: np.random.Generator) -> Views:
    """Scale the colors of each view."""
    scale = np.append(rng.uniform(0.95, 1.05, (len(views.rgba), 3)), np.ones((len(views.rgba), 1)), -1)
    return dataclasses.replace(views, rgba=(views.rgba * scale[:, None, None]).clip(0, 1).astype(np.float32))


def shift(views: Views, other: Views, rng: np.random.Generator) -> Views:
    """Shift each view and its normal map."""
    offsets = rng.integers(-2, 3, (len(views.rgba), 2))

    def move(image, view):
        return np.roll(image, offsets[view], (0, 1))

    return dataclasses.replace(
        views,
        rgba=np.stack([move(image, view) for view, image in enumerate(views.rgba)]),
        normals=np.stack([move(image, view) for view, image in zip(views.normal_views, views.normals, strict=True)]),
    )


def swap(views: Views, other: Views, rng: np.random.Generator) -> Views:
    """Replace one view by that of another object."""
    rgba, view = views.rgba.copy(), rng.integers(len(views.rgba))
    rgba[view] = other.rgba[view]
    return dataclasses.replace(views, rgba=rgba)


def flip(views: Views, other: Views, rng: np.random.Generator) -> Views:
    """Invert some mask pixels along silhouettes."""
    inside = views.rgba[..., 3] > 0.5
    cross = ndimage.generate_binary_structure(2, 1)[None]
    edge = ndimage.binary_dilation(inside, cross) & ~ndimage.binary_erosion(inside, cross)
    wrong = edge & (rng.random(edge.shape) < 0.1)
    alpha = np.where(wrong, 1 - views.rgba[..., 3], views.rgba[..., 3])
    return dataclasses.replace(views, rgba=np.concatenate([views.rgba[..., :3], alpha[..., None]], -1))


def contradictory(views: Views, other: Views, rng: np.random.Generator) -> Views:
    """Apply all perturbations."""
    for perturb in (jitter, shift, swap, flip):
        views = perturb(views, other, rng)
    return views


def same(views: Views, other: Views, rng: np.random.Generator) -> Views:
    """Return the views unchanged."""
    return views


PERTURBATIONS: dict[str, Callable[[Views, Views, np.random.Generator], Views]] = {
    "normals": same,
    "filled": same,
    "bare": bare,
    "jitter": jitter,
    "shift": shift,
    "swap": swap,
    "flip": flip,
    "contradictory": contradictory,
    "anchors_only": contradictory,
    "all_views": contradictory,
    "coarse_to_fine": contradictory,
}


CHANGES: dict[str, dict] = {  # settings of the fit that differ
    "filled": {"depth_width": 0},
    **{name: {"all_views": schedule} for name, schedule in config.VIEW_SCHEDULES.items()},
}


def rebuild(views: Views, variant: str, path: pathlib.Path) -> dict[str, float]:
    """Reconstruct a GLB file from views, and return the seconds, and seconds of the processor, that it took."""
    settings = config.QUALITIES[QUALITY.value]
    settings = dataclasses.replace(settings, fit=dataclasses.replace(settings.fit, **CHANGES.get(variant, {})))
    start, start_cpu = time.perf_counter(), time.process_time()
    mesh = pipeline.reconstruct(views, settings, jax.random.key(SEED.value))
    export.write_glb(path, mesh)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}


def depth_scores(pred: structs.Mesh, gt: structs.Mesh, views: structs.Cameras) -> dict[str, float]:
    """Return the mean difference of depths where rays hit both meshes, and the fraction of rays to ``gt`` that miss."""
    found, expected = (texture.depth_maps(mesh, views) for mesh in (pred, gt))
    there, both = np.isfinite(expected), np.isfinite(expected) & np.isfinite(found)
    return {"depth": float(np.abs(found[both] - expected[both]).mean()), "lost": 1 - float(both.sum() / there.sum())}


def score(path: pathlib.Path, gt: structs.Mesh, asset: reading.Asset) -> dict[str, float]:
    """Score a mesh file."""
    mesh = export.read_mesh(path)
    between = cameras.ring(SIZE.value, HELD_OUT.value, offset=np.pi / cameras.RELEASED.num_views)
    shown = preview.render_mesh(mesh, between, supersampling=assets.SUPERSAMPLING)
    gt_views = assets.render(asset, between, np.arange(0)).views.rgba
    psnr = [report.view_scores(a, b)["psnr"] for a, b in zip(shown, gt_views, strict=True)]
    depth = depth_scores(mesh, gt, RINGS[RING.value].cameras(SIZE.value))
    return {**report.mesh_scores(mesh, gt), "psnr": float(np.mean(psnr)), **depth}


def chosen(paths: dict[str, pathlib.Path]) -> list[str]:
    """Return the names that are asked for.

    Raises:
      app.UsageError: meshes of the hollow set are missing.
    """
    if NAMES.value != ["hollow"]:
        return NAMES.value or list(paths)
    found = {end: [name for name in paths if f"/{name}".endswith(f"/{end}")] for end in HOLLOW}
    if missing := [end for end, names in found.items() if not names]:
        raise app.UsageError(f"--meshes={MESHES.value} lacks {', '.join(missing)}")
    return [names[0] for names in found.values()]


def table(rows: list[dict]) -> str:
    """Format the means over the meshes, one line per variant."""
    lines = [f"{'':16s}" + "".join(f"{name:>20s}" for name in (*SCORES, "meshes"))]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        chosen = [row for row in rows if row["variant"] == variant]
        means = "".join(f"{np.mean([row[name] for row in chosen]):20.4f}" for name in SCORES)
        lines.append(f"{variant:16s}{means}{len(chosen):20d}")
    return "\n".join(lines)


def main(_) -> None:
    """Score all meshes in all variants."""
    unknown = set(VARIANTS.value) - PERTURBATIONS.keys()
    if unknown:
        raise app.UsageError(f"unknown variants {', '.join(sorted(unknown))}; known: {', '.join(PERTURBATIONS)}")
    out, paths = pathlib.Path(OUT.value), assets.find_assets(MESHES.value)
    names = chosen(paths)
    read = {name: reading.read_asset(paths[name]) for name in names}
    ring, rows = RINGS[RING.value].cameras(SIZE.value), json.loads(out.read_text())["rows"] if out.exists() else []
    done = {(row["mesh"], row["variant"]) for row in rows}
    warm = True
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch, "mesh.glb")
        for number, name in enumerate(names):
            todo = [variant for variant in VARIANTS.value if (name, variant) not in done]
            if not todo:
                continue
            views = assets.render(read[name], ring, cameras.RELEASED.anchors).views
            other = assets.render(read[names[number - 1]], ring, cameras.RELEASED.anchors).views
            gt = structs.Mesh(read[name].vertices, read[name].faces, np.ones_like(read[name].vertices))
            for variant in todo:
                perturbed = PERTURBATIONS[variant](views, other, np.random.default_rng(SEED.value))
                if warm and jax.default_backend() != "cpu":
                    rebuild(perturbed, variant, path)  # Compiles the programs.
                times = rebuild(perturbed, variant, path)
                warm = variant in config.VIEW_SCHEDULES  # Each schedule needs its own program.
                row = {"mesh": name, "variant": variant, **score(path, gt, read[name]), **times}
                rows.append(row)
                print(
                    " ".join(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True
                )
                about = {
                    "quality": QUALITY.value,
                    "ring": RING.value,
                    "size": SIZE.value,
                    "device": jax.devices()[0].device_kind,
                }
                files.write_atomically(out, json.dumps({**about, "rows": rows}, indent=1).encode())
    print(table(rows))


if __name__ == "__main__":
    app.run(main)
