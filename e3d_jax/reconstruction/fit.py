"""Fit a signed distance field to posed views."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e3d_jax import structs
from e3d_jax.reconstruction import batches, fields, hull, losses, occupancy, schedule, volume

Progress = Callable[[int, Mapping[str, float], fields.Field], None]


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a fit is done; lengths in object units.

    It goes from coarse to fine in three ways, each of which can be switched off: views (``all_views``), grid levels
    (``first_levels`` and ``levels_until``) and sharpness (``sharpness`` and ``anneal_until``).

    The release takes 5000 steps of up to 8192 rays from a sphere. This starts from the visual hull, so that a fifth of
    the steps will do, and has less to learn: a few dense grids instead of ten hashed ones, layers of 32 instead of 64,
    directions in 9 harmonics instead of 16; Adam without weight decay. Colour counts twice as much as there.

    Attributes:
      steps: optimiser steps, a multiple of ``steps_per_chunk``.
      steps_per_chunk: steps of one dispatch; after each the occupancy cache is renewed.
      rays: rays a step.
      samples: samples a ray.
      candidates: stretches of a ray that are searched in the occupancy cache.
      random_points: points a step for sparsity and smoothness.
      all_views: progress at which rays begin to be drawn from all views, stop, begin again ...; from the anchors in
        between. The release's intervals; ``()`` is anchors only, ``(0.0,)`` all views from the start.
      half_extent: the object lies in the cube from ``-half_extent`` to ``half_extent``.
      hull_cells: cells a side of the coarse distance grid, which starts as the visual hull.
      hull_votes: share of the views that may wrongly call a point background.
      least_agreement: views whose silhouettes agree less with the hull, relative to the median view, are left out.
      cache_cells: cells a side of the occupancy cache.
      levels: cells a side of the distance's feature grids, coarse to fine.
      color_levels: cells a side of the colour's.
      features: features of a grid point.
      hidden: width of the layers.
      first_levels: feature grids that are on from the start.
      levels_until: progress at which all are on.
      anneal_until: progress at which the cosine annealing ends.
      sharpness: initial s of the NeuS density.
      mask_contrast: sharpens the views' coverage around one half; 1 leaves it. Generated silhouettes are soft over
        several pixels, and a surface fitted to that is a fur.
      favor_front: weight views by :func:`schedule.view_weights`, as the release does: generated views are best there.
        With the mini system's views it was worth -0.003 of volume IoU (six test objects).
      learning_rates: initial rates of (coarse distance, its feature grids, its layers, colour, shifts of the
        views in pixels, log sharpness).
      color_weight, mask_weight, normal_weight, eikonal_weight, sparsity_weight, smoothness_weight, shift_weight: of the
        losses.
      bare_color_weight: replaces ``color_weight`` where no view has a normal map, so that colours shape hollows.
      color_kept, mask_kept, normal_kept: share of the rays, lowest errors first, that count. All count by default: the
        largest errors are outlines and small patterns, and without them true views lose 0.02 to 0.1 of volume IoU. The
        release keeps 0.8, 0.9 and 0.8, which is worth 0.01 when views contradict each other by three pixels, and -0.005
        for the mini system's views (15 test objects).
      smoothness_step: standard deviation of the offset between compared normals.
    """

    steps: int = 1000
    steps_per_chunk: int = 50
    rays: int = 512
    samples: int = 16
    candidates: int = 64
    random_points: int = 512
    all_views: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    half_extent: float = 0.55
    hull_cells: int = 64
    hull_votes: float = 0.05
    least_agreement: float = 0.8
    cache_cells: int = 48
    levels: tuple[int, ...] = (16, 32, 64)
    color_levels: tuple[int, ...] = (16, 64)
    features: int = 4
    hidden: int = 32
    first_levels: int = 2
    levels_until: float = 0.5
    anneal_until: float = 0.5
    sharpness: float = 80.0
    mask_contrast: float = 1.0
    favor_front: bool = False
    learning_rates: tuple[float, float, float, float, float, float] = (1e-3, 2e-2, 3e-3, 1e-2, 2e-2, 1e-2)
    color_weight: float = 1.0
    bare_color_weight: float = 15.0
    mask_weight: float = 1.0
    normal_weight: float = 1.0
    eikonal_weight: float = 0.2
    sparsity_weight: float = 0.5
    smoothness_weight: float = 0.05
    shift_weight: float = 0.005
    color_kept: float = 1.0
    mask_kept: float = 1.0
    normal_kept: float = 1.0
    smoothness_step: float = 0.01

    def __post_init__(self):
        """Refuses what would fail, or diverge, only after minutes.

        Raises:
          ValueError: names the first setting out of range.
        """
        if self.steps < 1 or self.steps_per_chunk < 1 or self.steps % self.steps_per_chunk:
            raise ValueError(
                f"steps is {self.steps}; expected a positive multiple of steps_per_chunk, {self.steps_per_chunk}"
            )
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.type is int else 0
            if not all(least <= each < math.inf for each in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{field.name} is {value}; expected {least} or more")


# Values of ``all_views`` that an ablation compares.
VIEW_SCHEDULES = {"anchors_only": (), "all_views": (0.0,), "coarse_to_fine": FitConfig.all_views}


def fit(views: structs.ViewSet, config: FitConfig, key: jax.Array, progress: Progress | None = None) -> fields.Field:
    """Fit a field to posed views (NeuS, arXiv 2106.10689, on a multi-resolution grid).

    Args:
      views: RGBA views with cameras; masks and normals of the anchors are trusted.
      config: sizes, schedules and weights.
      key: seeds initial layers and rays; the same key gives the same field.
      progress: called after every chunk with the steps done, the mean losses of the chunk, and the field so far.

    Raises:
      ValueError: no view shows an object, the views share no object inside ``half_extent``, or the fit diverges.
    """
    config = adapt(config, views)
    field, pixels = start(views, config, key)
    return optimise(field, pixels, config, key, progress)


def adapt(config: FitConfig, views: structs.ViewSet) -> FitConfig:
    """The config for views with or without normal maps."""
    return config if len(views.normal_views) else dataclasses.replace(config, color_weight=config.bare_color_weight)


def optimise(
    field: fields.Field, pixels: batches.Pixels, config: FitConfig, key: jax.Array, progress: Progress | None = None
) -> fields.Field:
    """All steps from what :func:`start` returns; arguments as of :func:`fit`.

    Raises:
      ValueError: the fit diverges.
    """
    state, run_key = optimizer().init(field), jax.random.fold_in(key, 1)
    for first in range(0, config.steps, config.steps_per_chunk):
        field, state, metrics = run_chunk(field, state, pixels, run_key, jnp.int32(first), config)
        if progress is not None:
            progress(first + config.steps_per_chunk, {name: float(value) for name, value in metrics.items()}, field)
    if not np.isfinite(metrics["loss"]):
        raise ValueError("the fit diverged: its loss is not finite; lower the learning rates")
    return field


def start(views: structs.ViewSet, config: FitConfig, key: jax.Array) -> tuple[fields.Field, batches.Pixels]:
    """The field before the first step, whose surface is the visual hull, and the views on the device.

    Raises:
      ValueError: see :func:`hull.carve`.

    Warns where views can be used but say little.
    """
    if len(views.rgba) == 1:
        warnings.warn("there is only one view, so depth and back of the object are guesses", stacklevel=2)
    base, box, agree = _hull(views, config)
    field = fields.create(
        jax.random.fold_in(key, 0),
        base,
        box,
        num_views=len(views.rgba),
        levels=config.levels,
        color_levels=config.color_levels,
        features=config.features,
        hidden=config.hidden,
        sharpness=config.sharpness,
    )
    weights = schedule.view_weights(views.cameras) if config.favor_front else jnp.ones(len(agree))
    return field, batches.load(views, weights * agree, contrast=config.mask_contrast)


def _hull(views: structs.ViewSet, config: FitConfig):
    """The hull and its box, and which views it agrees with; a view of something else has no part in it."""
    alpha, agree = views.rgba[..., 3], np.ones(len(views.rgba), bool)
    votes = int(config.hull_votes * len(alpha))
    carve = functools.partial(hull.carve, half_extent=config.half_extent, cells=config.hull_cells, votes=votes)
    base, box = carve(alpha, views.cameras)
    if votes:  # Else one wrong view has carved the hull already, and every other disagrees with it.
        found = hull.agreement(alpha, views.cameras, base, box)
        agree = found >= config.least_agreement * np.median(found)
    if not agree.all():
        names = ", ".join(map(str, np.flatnonzero(~agree)))
        warnings.warn(f"views {names} show another shape than the others and are left out", stacklevel=3)
        base, box = carve(alpha[agree], views.cameras[np.flatnonzero(agree)])
    return base, box, agree


def _losses(field: fields.Field, batch: batches.Batch, progress, config: FitConfig):
    """The losses by name, and what is only reported."""
    level_weights = _level_weights(progress, config)
    moved = (field.view_shifts[batch.view][..., None] * batch.across).sum(1)
    seen = volume.render(
        structs.Rays(batch.rays.origins, fields.normalize(jnp.asarray(batch.rays.directions) + moved)),
        batch.placed,
        lambda points: fields.sample(field, points, level_weights),
        functools.partial(fields.color, field),
        sharpness=jnp.exp(field.log_sharpness),
        annealing=schedule.cosine_annealing(progress, until=config.anneal_until),
    )
    # One call for both: every call is compiled anew.
    pair = fields.sample(field, jnp.concatenate([batch.points, batch.nearby]), level_weights)
    here, nearby = jnp.split(pair.gradient, 2)
    alpha, occupied, background = batch.rgba[:, 3], batch.placed.occupied, batch.background
    target = batch.rgba[:, :3] * alpha[:, None] + background * (1 - alpha[:, None])
    shown = seen.color + background * (1 - seen.opacity[:, None])
    color = losses.color_error(shown, target)
    mask = losses.mask_error(seen.opacity, alpha)
    facing, faces = losses.facing_weights(batch.normals, batch.rays.directions)
    normal = losses.normal_error(fields.normalize(seen.normal), batch.normals)
    with_normal = (alpha > 0.5) & occupied & faces
    eikonal = losses.eikonal_error(seen.gradient).mean(1)
    kept, everywhere = functools.partial(schedule.kept_fraction, progress), jnp.ones_like(occupied)
    terms = {
        "color": losses.kept_mean(color, kept(config.color_kept), valid=everywhere, weights=batch.weights),
        "mask": losses.kept_mean(mask, kept(config.mask_kept), valid=batch.anchor, weights=batch.weights),
        "normal": losses.kept_mean(normal, kept(config.normal_kept), valid=with_normal, weights=batch.weights * facing),
        "eikonal": (eikonal * occupied).sum() / jnp.maximum(occupied.sum(), 1),
        "sparsity": losses.sparsity_error(pair.distance).mean(),
        "smoothness": losses.smoothness_error(here, nearby).mean(),
        "shift": (field.view_shifts**2).mean(),
    }
    return terms, {"squared_error": ((shown - target) ** 2).mean()}


def _level_weights(progress, config: FitConfig):
    return schedule.level_weights(progress, len(config.levels), first=config.first_levels, until=config.levels_until)


def total_loss(field: fields.Field, batch: batches.Batch, progress, config: FitConfig):
    """The weighted sum of the losses, and each of them with what else is reported."""
    terms, reported = _losses(field, batch, progress, config)
    total = sum(getattr(config, f"{name}_weight") * term for name, term in terms.items())
    return total, {**terms, **reported}


def optimizer() -> optax.GradientTransformation:
    """Adam; learning rates come in :func:`update`, as every part of the field has its own."""
    return optax.scale_by_adam(b2=0.99, eps=1e-12)


def update(field: fields.Field, state, gradient: fields.Field, progress, config: FitConfig):
    """One optimiser step: the new field and state."""
    updates, state = optimizer().update(gradient, state)
    base, grids, layers, color, shifts, sharpness = config.learning_rates
    rates = {"base": base, "levels": grids, "color_levels": color, "distance_layers": layers}
    rates |= {"box": 0.0, "color_layers": color, "view_shifts": shifts, "log_sharpness": sharpness}
    factor = schedule.learning_rate(progress)
    field = jax.tree_util.tree_map_with_path(
        lambda path, value, change: value - factor * rates[path[0].name] * change, field, updates
    )
    return field, state


def draw_chunk(field: fields.Field, pixels: batches.Pixels, key, first, config: FitConfig) -> batches.Batch:
    """The stacked batches of ``steps_per_chunk`` steps, placed by an occupancy cache made now."""
    distance_fn = functools.partial(_distance, field, _level_weights(first / config.steps, config))
    cached = occupancy.cache(distance_fn, field.box, config.cache_cells)
    band = occupancy.band(field.box, config.cache_cells, jnp.exp(field.log_sharpness))

    def draw(index):
        return batches.draw(
            jax.random.fold_in(key, index),
            pixels,
            index / config.steps,
            cached,
            field.box,
            band=band,
            rays=config.rays,
            candidates=config.candidates,
            samples=config.samples,
            random_points=config.random_points,
            spread=config.smoothness_step,
            all_views=config.all_views,
        )

    return jax.vmap(draw)(first + jnp.arange(config.steps_per_chunk))


@functools.partial(jax.jit, static_argnames="config")
def run_chunk(field: fields.Field, state, pixels: batches.Pixels, key, first, config: FitConfig):
    """``steps_per_chunk`` optimiser steps from step ``first`` on: the field, the state and mean losses."""

    def step(carry, inputs):
        (field, state), (index, batch) = carry, inputs
        progress = index / config.steps
        (loss, terms), gradient = jax.value_and_grad(total_loss, has_aux=True)(field, batch, progress, config)
        field, state = update(field, state, gradient, progress, config)
        return (field, state), {"loss": loss, **terms, "sharpness": jnp.exp(field.log_sharpness)}

    # All batches of the chunk at once: they need the cache only, and the loop that follows stays small.
    drawn = draw_chunk(field, pixels, key, first, config)
    indices = first + jnp.arange(config.steps_per_chunk)
    (field, state), metrics = jax.lax.scan(step, (field, state), (indices, drawn))
    return field, state, jax.tree.map(jnp.mean, metrics)


def _distance(field, level_weights, points):
    return fields.sample(field, points, level_weights).distance
