"""Fit a signed distance field to posed views."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e3d_jax import structs
from e3d_jax.reconstruction import batches, fields, hull, losses, occupancy, schedule, volume

Progress = Callable[[int, Mapping[str, float]], None]


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a fit is done; lengths in object units.

    Attributes:
      steps: optimiser steps, a multiple of ``steps_per_chunk``.
      steps_per_chunk: steps of one dispatch; after each the occupancy cache is renewed.
      rays: rays a step.
      samples: samples a ray.
      candidates: stretches of a ray that are searched in the occupancy cache.
      random_points: points a step for sparsity and smoothness.
      half_extent: the object lies in the cube from ``-half_extent`` to ``half_extent``.
      hull_cells: cells a side of the coarse distance grid, which starts as the visual hull.
      hull_votes: share of the views that may wrongly call a point background.
      cache_cells: cells a side of the occupancy cache.
      levels: cells a side of the distance's feature grids, coarse to fine.
      color_levels: cells a side of the colour's.
      features: features of a grid point.
      hidden: width of the layers.
      first_levels: feature grids that are on from the start.
      levels_until: progress at which all are on.
      anneal_until: progress at which the cosine annealing ends.
      sharpness: initial s of the NeuS density.
      favor_front: weight views by :func:`schedule.view_weights`; for generated views, which are best there.
      learning_rates: initial rates of (coarse distance, its feature grids, its layers, colour, log sharpness).
      color_weight, mask_weight, normal_weight, eikonal_weight, sparsity_weight, smoothness_weight: of the losses.
      color_kept, mask_kept, normal_kept: share of the rays, lowest errors first, that count. All count by default: the
        largest errors are outlines and small patterns, and without them true views lose 0.02 to 0.1 of volume IoU. The
        release keeps 0.8, 0.9 and 0.8, which is worth 0.01 when views contradict each other by three pixels.
      smoothness_step: standard deviation of the offset between compared normals.
    """

    steps: int = 1000
    steps_per_chunk: int = 50
    rays: int = 512
    samples: int = 16
    candidates: int = 64
    random_points: int = 512
    half_extent: float = 0.55
    hull_cells: int = 64
    hull_votes: float = 0.05
    cache_cells: int = 48
    levels: tuple[int, ...] = (16, 32, 64)
    color_levels: tuple[int, ...] = (16, 64)
    features: int = 4
    hidden: int = 32
    first_levels: int = 2
    levels_until: float = 0.5
    anneal_until: float = 0.5
    sharpness: float = 80.0
    favor_front: bool = False
    learning_rates: tuple[float, float, float, float, float] = (1e-3, 2e-2, 3e-3, 1e-2, 1e-2)
    color_weight: float = 0.5
    mask_weight: float = 1.0
    normal_weight: float = 1.0
    eikonal_weight: float = 0.2
    sparsity_weight: float = 0.5
    smoothness_weight: float = 0.05
    color_kept: float = 1.0
    mask_kept: float = 1.0
    normal_kept: float = 1.0
    smoothness_step: float = 0.01


def fit(views: structs.ViewSet, config: FitConfig, key: jax.Array, progress: Progress | None = None) -> fields.Field:
    """Fit a field to posed views (NeuS, arXiv 2106.10689, on a multi-resolution grid).

    Args:
      views: RGBA views with cameras; masks and normals of the anchors are trusted.
      config: sizes, schedules and weights.
      key: seeds initial layers and rays; the same key gives the same field.
      progress: called after every chunk with the steps done and the mean losses of the chunk.

    Raises:
      ValueError: no view shows an object, the views share no object inside ``half_extent``, or the config does not fit.
    """
    if config.steps < 1 or config.steps % config.steps_per_chunk:
        raise ValueError(f"{config.steps=} must be a positive multiple of {config.steps_per_chunk=}")
    init_key, run_key = jax.random.split(key)
    base, box = hull.carve(
        views.rgba[..., 3],
        views.cameras,
        half_extent=config.half_extent,
        cells=config.hull_cells,
        votes=int(config.hull_votes * len(views.rgba)),
    )
    field = fields.create(
        init_key,
        base,
        box,
        levels=config.levels,
        color_levels=config.color_levels,
        features=config.features,
        hidden=config.hidden,
        sharpness=config.sharpness,
    )
    pixels, state = batches.load(views, favor_front=config.favor_front), _optimizer().init(field)
    for start in range(0, config.steps, config.steps_per_chunk):
        field, state, metrics = _run_chunk(field, state, pixels, run_key, jnp.int32(start), config)
        if progress is not None:
            progress(start + config.steps_per_chunk, {name: float(value) for name, value in metrics.items()})
    if not np.isfinite(metrics["loss"]):
        raise ValueError("the fit diverged: its loss is not finite; lower the learning rates")
    return field


def _losses(field: fields.Field, batch: batches.Batch, progress, config: FitConfig) -> dict[str, jax.Array]:
    level_weights = _level_weights(progress, config)
    seen = volume.render(
        batch.rays,
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
    color = losses.color_error(seen.color + background * (1 - seen.opacity[:, None]), target)
    mask = losses.mask_error(seen.opacity, alpha)
    facing, faces = losses.facing_weights(batch.normals, batch.rays.directions)
    normal = losses.normal_error(fields.normalize(seen.normal), batch.normals)
    with_normal = (alpha > 0.5) & occupied & faces
    eikonal = losses.eikonal_error(seen.gradient).mean(1)
    kept, everywhere = functools.partial(schedule.kept_fraction, progress), jnp.ones_like(occupied)
    return {
        "color": losses.kept_mean(color, kept(config.color_kept), valid=everywhere, weights=batch.weights),
        "mask": losses.kept_mean(mask, kept(config.mask_kept), valid=batch.anchor, weights=batch.weights),
        "normal": losses.kept_mean(normal, kept(config.normal_kept), valid=with_normal, weights=batch.weights * facing),
        "eikonal": (eikonal * occupied).sum() / jnp.maximum(occupied.sum(), 1),
        "sparsity": losses.sparsity_error(pair.distance).mean(),
        "smoothness": losses.smoothness_error(here, nearby).mean(),
    }


def _level_weights(progress, config: FitConfig):
    return schedule.level_weights(progress, len(config.levels), first=config.first_levels, until=config.levels_until)


def _optimizer() -> optax.GradientTransformation:
    return optax.scale_by_adam(b2=0.99, eps=1e-12)


def _apply_updates(field: fields.Field, updates: fields.Field, factor, config: FitConfig) -> fields.Field:
    """One step down, every array at its own learning rate."""
    base, grids, layers, color, sharpness = config.learning_rates
    rates = {"base": base, "levels": grids, "color_levels": color, "distance_layers": layers}
    rates |= {"box": 0.0, "color_layers": color, "log_sharpness": sharpness}
    return jax.tree_util.tree_map_with_path(
        lambda path, value, update: value - factor * rates[path[0].name] * update, field, updates
    )


@functools.partial(jax.jit, static_argnames="config")
def _run_chunk(field: fields.Field, state, pixels: batches.Pixels, key, start, config: FitConfig):
    """``steps_per_chunk`` optimiser steps whose rays are placed by an occupancy cache made at their start."""
    distance_fn = functools.partial(_distance, field, _level_weights(start / config.steps, config))
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
        )

    def step(carry, inputs):
        (field, state), (index, batch) = carry, inputs
        progress = index / config.steps

        def total(field):
            terms = _losses(field, batch, progress, config)
            return sum(getattr(config, f"{name}_weight") * term for name, term in terms.items()), terms

        (loss, terms), gradient = jax.value_and_grad(total, has_aux=True)(field)
        updates, state = _optimizer().update(gradient, state)
        field = _apply_updates(field, updates, schedule.learning_rate(progress), config)
        return (field, state), {"loss": loss, **terms, "sharpness": jnp.exp(field.log_sharpness)}

    # All batches of the chunk at once: they need the cache only, and the loop that follows stays small.
    indices = start + jnp.arange(config.steps_per_chunk)
    (field, state), metrics = jax.lax.scan(step, (field, state), (indices, jax.vmap(draw)(indices)))
    return field, state, jax.tree.map(jnp.mean, metrics)


def _distance(field, level_weights, points):
    return fields.sample(field, points, level_weights).distance
