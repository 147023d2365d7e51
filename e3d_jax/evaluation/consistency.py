"""Whether views agree with each other, without the truth."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from e3d_jax import images, structs
from e3d_jax.evaluation import metrics, missing
from e3d_jax.reconstruction import config, fit, hull, preview

# A quarter of the usual steps from the visual hull: enough to see whether views contradict each other.
SETTINGS = config.FitSettings(steps=250, all_views=(0.0,))
HELD_OUT = 4  # views that are compared, at most
MIN_VIEWS = 4


def consistency(
    views: structs.ViewSet,
    learned: Mapping[str, metrics.Metric],
    *,
    settings: config.FitSettings = SETTINGS,
    seed: int = 0,
    notes: dict[str, str] | None = None,
) -> dict[str, float]:
    """Fit a surface to the even views and compare the odd ones with its renders.

    Args:
      views: of one object, in the order of their azimuths.
      learned: further metrics of the odd views, by name.
      settings: of the fit.
      seed: of the fit.
      notes: receives, by name, why a figure cannot be given.

    Returns:
      ``consistency_psnr`` and ``consistency_NAME`` of every metric in ``learned``, over at most four odd views, evenly
      spaced; ``hull_iou``, the agreement of all silhouettes with those of their common hull; and, if even views have
      normal maps, ``consistency_normal_deg``, the mean angle between these and the fitted normals.

    Raises:
      ValueError: there are too few views, or they share no object.
    """
    if len(views.rgba) < MIN_VIEWS:
        raise missing.NotScored(f"{len(views.rgba)} views are too few for their consistency; {MIN_VIEWS} are needed")
    even, odd = np.arange(0, len(views.rgba), 2), np.arange(1, len(views.rgba), 2)
    chosen = odd[np.unique(np.linspace(0, len(odd), HELD_OUT, endpoint=False).astype(int))]
    field = fit.fit(_subset(views, even), settings, jax.random.key(seed)).field
    rows = []
    table = {"psnr": metrics.VIEW_METRICS["psnr"], **learned}
    for view in chosen:
        render, _ = preview.render_field(field, views.cameras[[view]])
        rows.append(metrics.scores(table, metrics.ViewPair(views.rgba[view], render), notes))
    names = {name for row in rows for name in row}
    scores = {f"consistency_{name}": float(np.mean([row[name] for row in rows])) for name in table if name in names}
    scores["hull_iou"] = hull_agreement(views, settings)
    with_normals = [int(view) for view in views.normal_views if view % 2 == 0][:: max(len(views.normal_views) // 4, 1)]
    angles = []
    for view in with_normals:
        _, shaded = preview.render_field(field, views.cameras[[view]])
        fitted, given = np.asarray(images.decode_normal(shaded)), views.normals[list(views.normal_views).index(view)]
        known = fitted.any(-1) & given.any(-1)
        if known.any():
            angles.append(metrics.normal_angle(given, fitted, known))
    return scores | ({"consistency_normal_deg": float(np.mean(angles))} if angles else {})


def hull_agreement(views: structs.ViewSet, settings: config.FitSettings = SETTINGS) -> float:
    """Return the mean intersection over union of the silhouettes with those of their visual hull.

    Raises:
      ValueError: the silhouettes share no object.
    """
    alpha = views.rgba[..., 3]
    votes = int(settings.hull_votes * len(alpha))
    base, box = hull.carve(
        alpha, views.cameras, half_extent=settings.half_extent, cells=settings.hull_cells, votes=votes
    )
    return float(np.mean(hull.agreement(alpha, views.cameras, base, box)))


def _subset(views: structs.ViewSet, kept: np.ndarray) -> structs.ViewSet:
    """Return some of the views, renumbered; all of them count as anchors."""
    has = np.isin(views.normal_views, kept)
    return dataclasses.replace(
        views,
        rgba=views.rgba[kept],
        cameras=views.cameras[kept],
        normal_views=np.searchsorted(kept, views.normal_views[has]),
        normals=views.normals[has],
        anchors=np.arange(len(kept)),
    )
