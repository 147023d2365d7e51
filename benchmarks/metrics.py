"""Whether the figures of `e3d eval` catch what people see: true views, spoiled in known ways, scored against the truth.

    python benchmarks/metrics.py --meshes=DIR --out=metrics.json [--size=128] [--names=a,b,...]

``--meshes`` is a folder of meshes (.glb and others). Each is drawn from the eight anchors of the ring, and the seven
novel ones are scored. Spoilings:

    truth                   nothing
    blur_1, blur_2, blur_4  Gaussian blur of that standard deviation, in pixels, of color and alpha
    noise                   Gaussian noise of standard deviation 0.05 on the colors
    jpeg                    JPEG of quality 25 over white
    shift                   all views moved by 2 px
    one_other               one view shows another object
    order                   views in the wrong order
    mean                    the mean of two plausible objects: the true one, and it wider by a quarter
    sample                  the second of these: a sharp guess that is as wrong
    hue                     colors turned by 40 degrees
    eroded                  silhouettes eroded by 2 px
    opened                  silhouettes opened by 2 px, which removes thin parts
    no_back                 the mesh without its back half (mesh figures only)

After the table, every expectation that does not hold is printed, and the script fails:

  * every spoiling is caught by a headline figure: one is worse than that of the truth by more than its margin;
  * the truth has the best value of every figure;
  * neither blur nor the mean of two objects is better than the sharp sample in ST-LPIPS or sharpness.
"""

import dataclasses
import io
import json
import pathlib
import sys
from collections.abc import Callable

import numpy as np
from absl import app, flags
from PIL import Image
from scipy import ndimage

from e3d_jax import cameras, files, images, structs
from e3d_jax.data import assets
from e3d_jax.data.assets import reading
from e3d_jax.evaluation import evaluate, metrics, report, statistics
from e3d_jax.mesh import export

MESHES = flags.DEFINE_string("meshes", None, "Folder of meshes.", required=True)
OUT = flags.DEFINE_string("out", "metrics.json", "File of the scores.")
SIZE = flags.DEFINE_integer("size", 128, "Width and height of the views in pixels.", lower_bound=32)
NAMES = flags.DEFINE_list("names", None, "Names of the meshes; all by default.")
TRUE_MESHES = flags.DEFINE_bool("mesh", True, "Also score a mesh without its back.")

WIDER = 1.25
# How much worse than the truth a headline figure has to be to catch a spoiling (see statistics.loss).
MARGINS = {"st_lpips": 0.005, "sharpness": 0.05, "volume_iou": 0.02, "chamfer": 0.005}
Views = np.ndarray  # [v, h, w, 4]


def blur(sigma: float) -> Callable[[Views, Views, Views], Views]:
    """Return a spoiling that blurs premultiplied colors and alpha."""

    def spoil(views: Views, other: Views, guess: Views) -> Views:
        return from_premultiplied(ndimage.gaussian_filter(premultiplied(views), (0, sigma, sigma, 0)))

    return spoil


def premultiplied(views: Views) -> Views:
    """Multiply colors by alpha."""
    return np.concatenate([views[..., :3] * views[..., 3:], views[..., 3:]], -1)


def from_premultiplied(values: Views) -> Views:
    """Divide colors by alpha; white where it is 0."""
    alpha = values[..., 3:]
    return np.concatenate([np.where(alpha > 1e-4, values[..., :3] / np.maximum(alpha, 1e-4), 1), alpha], -1).clip(0, 1)


def noise(views: Views, other: Views, guess: Views) -> Views:
    """Add noise to the colors."""
    values = np.random.default_rng(0).normal(0, 0.05, views[..., :3].shape).astype(np.float32)
    return np.concatenate([(views[..., :3] + values).clip(0, 1), views[..., 3:]], -1)


def jpeg(views: Views, other: Views, guess: Views) -> Views:
    """Compress the colors over white."""
    out = views.copy()
    for view in out:
        buffer = io.BytesIO()
        Image.fromarray(images.to_uint8(images.composite(view))).save(buffer, "JPEG", quality=25)
        decoded = np.asarray(Image.open(buffer), np.float32) / 255
        shown = view[..., 3:] > 0.5
        view[..., :3] = np.where(shown, decoded, view[..., :3])
    return out


def one_other(views: Views, other: Views, guess: Views) -> Views:
    """Replace one view by that of another object."""
    return np.concatenate([other[:1], views[1:]])


def mean(views: Views, other: Views, guess: Views) -> Views:
    """Average two plausible objects."""
    return from_premultiplied((premultiplied(views) + premultiplied(guess)) / 2)


def hue(views: Views, other: Views, guess: Views) -> Views:
    """Turn the colors about the gray axis."""
    angle, axis = np.radians(40), np.ones(3) / np.sqrt(3)
    cross = np.cross(np.eye(3), axis)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)
    return np.concatenate([(views[..., :3] @ turn.astype(np.float32)).clip(0, 1), views[..., 3:]], -1)


def eroded(views: Views, other: Views, guess: Views) -> Views:
    """Remove 2 px all around."""
    alpha = np.stack([ndimage.minimum_filter(view[..., 3], 5) for view in views])
    return np.concatenate([views[..., :3], alpha[..., None]], -1)


def opened(views: Views, other: Views, guess: Views) -> Views:
    """Remove what is narrower than 4 px."""
    alpha = np.stack([ndimage.maximum_filter(ndimage.minimum_filter(view[..., 3], 5), 5) for view in views])
    return np.concatenate([views[..., :3], np.minimum(alpha, views[..., 3])[..., None]], -1)


SPOILINGS: dict[str, Callable[[Views, Views, Views], Views]] = {
    "truth": lambda views, other, guess: views,
    "blur_1": blur(1),
    "blur_2": blur(2),
    "blur_4": blur(4),
    "noise": noise,
    "jpeg": jpeg,
    "shift": lambda views, other, guess: np.roll(views, 2, axis=2),
    "one_other": one_other,
    "order": lambda views, other, guess: views[np.roll(np.arange(len(views)), 3)],
    "mean": mean,
    "sample": lambda views, other, guess: guess,
    "hue": hue,
    "eroded": eroded,
    "opened": opened,
}


def draw(asset: reading.Asset, scale: float, size: int) -> Views:
    """Draw the novel anchors of an asset whose depth is stretched, which the front view does not show."""
    asset = dataclasses.replace(asset, vertices=asset.vertices * np.array([scale, 1, 1]))
    layout = cameras.RELEASED
    return assets.render(asset, layout.cameras(size)[layout.anchors[1:]], np.zeros(0, int)).views.rgba


def score(pred: Views, gt: Views) -> dict[str, float]:
    """Score views against the true ones."""
    return report.score_views(dict(enumerate(pred)), dict(enumerate(gt)))[0]


def without_back(mesh: structs.Mesh) -> structs.Mesh:
    """Remove the faces behind the middle of a mesh."""
    middle = mesh.vertices[mesh.faces].mean(1)[:, 0]
    return dataclasses.replace(mesh, faces=mesh.faces[middle > np.median(mesh.vertices[:, 0])], texture=None)


def broken_expectations(means: dict[str, dict[str, float]]) -> list[str]:
    """Return a sentence for each expectation that does not hold."""
    problems, truth = [], means["truth"]
    for spoiling, scores in means.items():
        losses = {n: statistics.loss(scores[n], evaluate.BEST[n]) for n in scores if n in evaluate.BEST}
        best = {n: statistics.loss(truth[n], evaluate.BEST[n]) for n in losses if n in truth}
        if any(losses[name] < best[name] - 1e-9 for name in best):
            problems.append(f"{spoiling} beats the truth in a figure")
        if spoiling != "truth" and not any(
            losses[name] > best[name] + margin for name, margin in MARGINS.items() if name in best
        ):
            problems.append(f"no headline figure catches {spoiling}")
    for spoiling in ("blur_2", "blur_4", "mean"):
        for name in ("st_lpips", "sharpness"):
            ours, sharp = (statistics.loss(means[key][name], evaluate.BEST[name]) for key in (spoiling, "sample"))
            if ours < sharp:
                problems.append(f"{spoiling} beats a sharp sample in {name}")
    return problems


def main(argv):
    """Score every spoiling of every mesh."""
    del argv
    found = assets.find_assets(MESHES.value)
    names = NAMES.value or sorted(found)
    drawn = {name: reading.read_asset(found[name]) for name in names}
    truths = {name: draw(asset, 1.0, SIZE.value) for name, asset in drawn.items()}
    rows: dict[str, dict[str, dict[str, float]]] = {spoiling: {} for spoiling in SPOILINGS}
    for index, name in enumerate(names):
        other, guess = truths[names[index - 1]], draw(drawn[name], WIDER, SIZE.value)
        for spoiling, spoil in SPOILINGS.items():
            rows[spoiling][name] = score(spoil(truths[name], other, guess), truths[name])
        if TRUE_MESHES.value:
            mesh = export.read_mesh(found[name])
            rows["truth"][name] |= report.mesh_scores(mesh, mesh)
            rows.setdefault("no_back", {})[name] = report.mesh_scores(without_back(mesh), mesh)
        print(name, flush=True)
    means = {spoiling: report.mean_scores(list(scores.values())) for spoiling, scores in rows.items()}
    for table in (metrics.VIEW_METRICS, metrics.MESH_METRICS):
        shown = [name for name in table if any(name in scores for scores in means.values())]
        if not shown:
            continue
        print(f"\n| spoiling | {' | '.join(shown)} |\n|{' --- |' * (len(shown) + 1)}")
        for spoiling, scores in means.items():
            if any(name in scores for name in shown):
                print(f"| {spoiling} | {' | '.join(f'{scores[n]:.3f}' if n in scores else '' for n in shown)} |")
    files.write_atomically(pathlib.Path(OUT.value), json.dumps({"mean": means, "objects": rows}, indent=1).encode())
    if problems := broken_expectations(means):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    app.run(main)
