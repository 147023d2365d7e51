"""Fit a signed distance field to posed views."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage

from e3d_jax import cameras, structs
from e3d_jax.reconstruction import fields, hull, losses, occupancy, schedule, volume

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
      color_kept, mask_kept, normal_kept: share of the rays, lowest errors first, that count.
      smoothness_step: standard deviation of the offset between compared normals.
    """

    steps: int = 600
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
    features: int = 2
    hidden: int = 32
    first_levels: int = 2
    levels_until: float = 0.5
    anneal_until: float = 0.5
    sharpness: float = 80.0
    favor_front: bool = False
    learning_rates: tuple[float, float, float, float, float] = (1e-3, 1e-2, 2e-3, 1e-2, 1e-2)
    color_weight: float = 0.5
    mask_weight: float = 1.0
    normal_weight: float = 1.0
    eikonal_weight: float = 0.2
    sparsity_weight: float = 0.5
    smoothness_weight: float = 0.1
    color_kept: float = 0.8
    mask_kept: float = 0.9
    normal_kept: float = 0.8
    smoothness_step: float = 0.01


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Pixels:
    """Views on the device: every pixel of every view, and which pixels are worth a ray."""

    rgba: Float[Array, "v hw 4"]
    normals: Float[Array, "v hw 3"]
    has_normals: Bool[Array, " v"]
    cameras: structs.Cameras
    anchors: Int[Array, " k"]
    weights: Float[Array, " v"]
    near_object: Int[Array, "v hw"]
    num_near: Int[Array, " v"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Batch:
    """What one step looks at: rays, where on them it samples, what they should see; and random points."""

    rays: structs.Rays
    placed: volume.Placed
    rgba: Float[Array, "r 4"]
    normals: Float[Array, "r 3"]
    has_normal: Bool[Array, " r"]
    anchor: Bool[Array, " r"]
    weights: Float[Array, " r"]
    background: Float[Array, "r 3"]
    points: Float[Array, "n 3"]
    nearby: Float[Array, "n 3"]


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
    base, box = _initial_distance(views, config)
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
    pixels, state = _pixels(views, config), _optimizer().init(field)
    for start in range(0, config.steps, config.steps_per_chunk):
        field, state, metrics = _run_chunk(field, state, pixels, run_key, jnp.int32(start), config)
        if progress is not None:
            progress(start + config.steps_per_chunk, {name: float(value) for name, value in metrics.items()})
    if not bool(
        jnp.isfinite(fields.sample(field, jnp.mean(field.box, 0)[None], jnp.ones(len(config.levels))).distance[0])
    ):
        raise ValueError("the fit diverged to non-finite distances; lower the learning rates")
    return field


def _initial_distance(views, config):
    """The visual hull's distance on the lattice of its own bounding box, and that box with a margin."""
    alpha, extent = views.rgba[..., 3], config.half_extent
    if not (alpha > 0.5).any():
        raise ValueError("no view shows an object: alpha is below one half everywhere")
    votes = int(config.hull_votes * len(alpha))
    cube = np.array([[-extent] * 3, [extent] * 3], np.float32)
    coarse = np.asarray(fields.lattice(cube, (33, 33, 33)))
    distance = hull.hull_distance(alpha, views.cameras, coarse, votes=votes)
    spacing = 2 * extent / 32
    inside = coarse[distance < spacing / 2]
    if len(inside) == 0:
        raise ValueError(
            f"the silhouettes of the {len(alpha)} views share no object within {extent} of the origin; check the "
            f"poses, their units and the masks"
        )
    box = np.stack([inside.min(0) - 1.5 * spacing, inside.max(0) + 1.5 * spacing]).clip(-extent, extent)
    size = config.hull_cells + 1
    points = np.asarray(fields.lattice(box, (size, size, size)))
    return hull.hull_distance(alpha, views.cameras, points, votes=votes), box


def _pixels(views: structs.ViewSet, config: FitConfig) -> _Pixels:
    num_views, height, width = views.rgba.shape[:3]
    has_normals = np.zeros(num_views, bool)
    has_normals[views.normal_views] = True
    normals = np.zeros((num_views, height * width, 3), np.float32)
    normals[views.normal_views] = views.normals.reshape(-1, height * width, 3)
    reach = max(2, width // 24)
    near = [ndimage.maximum_filter(alpha, 2 * reach + 1).ravel() > 0 for alpha in views.rgba[..., 3]]
    order = np.stack([np.argsort(~row, kind="stable") for row in near])
    weights = schedule.view_weights(views.cameras) if config.favor_front else jnp.ones(num_views)
    return _Pixels(
        rgba=jnp.asarray(views.rgba.reshape(num_views, -1, 4)),
        normals=jnp.asarray(normals),
        has_normals=jnp.asarray(has_normals),
        cameras=jax.tree.map(jnp.asarray, views.cameras),
        anchors=jnp.asarray(views.anchors),
        weights=weights,
        near_object=jnp.asarray(order, jnp.int32),
        num_near=jnp.asarray([row.sum() for row in near], jnp.int32),
    )


def _draw_batch(key: jax.Array, pixels: _Pixels, cached, band, box, progress, config: FitConfig) -> _Batch:
    """Rays of random pixels: from the anchors or from all views by the schedule, most of them near the object."""
    num_views, num_pixels = pixels.rgba.shape[:2]
    choice_key, place_key, background_key, point_key, nearby_key = jax.random.split(key, 5)
    chance = jax.random.uniform(choice_key, (4, config.rays))
    any_view = _pick(chance[0], num_views)
    anchor_view = pixels.anchors[_pick(chance[0], len(pixels.anchors))]
    view = jnp.where(schedule.uses_all_views(progress), any_view, anchor_view)
    near = pixels.near_object[view, _pick(chance[1], pixels.num_near[view])]
    pixel = jnp.where(chance[3] < 0.9, near, _pick(chance[2], num_pixels))
    width = pixels.cameras.width
    rays = cameras.pixel_rays(pixels.cameras[view], jnp.stack([pixel % width, pixel // width], -1) + 0.5)
    placed = volume.place_samples(
        place_key,
        rays,
        box,
        lambda points: fields.interpolate(cached, box, points)[:, 0],
        band=band,
        candidates=config.candidates,
        samples=config.samples,
    )
    points = jax.random.uniform(point_key, (config.random_points, 3), minval=box[0], maxval=box[1])
    return _Batch(
        rays=rays,
        placed=placed,
        rgba=pixels.rgba[view, pixel],
        normals=pixels.normals[view, pixel],
        has_normal=pixels.has_normals[view],
        anchor=jnp.isin(view, pixels.anchors),
        weights=pixels.weights[view],
        background=jax.random.uniform(background_key, (config.rays, 3)),
        points=points,
        nearby=points + config.smoothness_step * jax.random.normal(nearby_key, points.shape),
    )


def _pick(chance, count):
    """Index below ``count`` from a number in [0, 1)."""
    return jnp.minimum((chance * count).astype(jnp.int32), count - 1)


def _losses(field: fields.Field, batch: _Batch, progress, config: FitConfig) -> dict[str, jax.Array]:
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
    # On a random background, so that nothing outside the surface can pass for it.
    alpha, occupied, background = batch.rgba[:, 3], batch.placed.occupied, batch.background
    target = batch.rgba[:, :3] * alpha[:, None] + background * (1 - alpha[:, None])
    color = losses.color_error(seen.color + background * (1 - seen.opacity[:, None]), target)
    mask = losses.mask_error(seen.opacity, alpha)
    facing, faces = losses.facing_weights(batch.normals, batch.rays.directions)
    normal = losses.normal_error(fields.normalize(seen.normal), batch.normals)
    with_normal = batch.has_normal & (alpha > 0.5) & occupied & faces
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


def _rates(field: fields.Field, config: FitConfig) -> fields.Field:
    """The learning rate of every array of the field."""
    base, grids, layers, color, sharpness = config.learning_rates
    rates = {"base": base, "levels": grids, "color_levels": color, "distance_layers": layers}
    rates |= {"box": 0.0, "color_layers": color, "log_sharpness": sharpness}
    return jax.tree_util.tree_map_with_path(lambda path, _: rates[path[0].name], field)


@functools.partial(jax.jit, static_argnames="config")
def _run_chunk(field: fields.Field, state, pixels: _Pixels, key, start, config: FitConfig):
    """``steps_per_chunk`` optimiser steps whose rays are placed by an occupancy cache made at their start."""
    distance_fn = functools.partial(_distance, field, _level_weights(start / config.steps, config))
    cached = occupancy.cache(distance_fn, field.box, config.cache_cells)
    band = occupancy.band(field.box, config.cache_cells, jnp.exp(field.log_sharpness))
    rates = _rates(field, config)

    def draw(index):
        step_key = jax.random.fold_in(key, index)
        return _draw_batch(step_key, pixels, cached, band, field.box, index / config.steps, config)

    def step(carry, inputs):
        (field, state), (index, batch) = carry, inputs
        progress = index / config.steps

        def total(field):
            terms = _losses(field, batch, progress, config)
            return sum(getattr(config, f"{name}_weight") * term for name, term in terms.items()), terms

        (loss, terms), gradient = jax.value_and_grad(total, has_aux=True)(field)
        updates, state = _optimizer().update(gradient, state)
        factor = schedule.learning_rate(progress)
        field = jax.tree.map(lambda p, u, rate: p - factor * rate * u, field, updates, rates)
        return (field, state), {"loss": loss, **terms, "sharpness": jnp.exp(field.log_sharpness)}

    # All batches of the chunk at once: they need the cache only, and the loop that follows stays small.
    indices = start + jnp.arange(config.steps_per_chunk)
    (field, state), metrics = jax.lax.scan(step, (field, state), (indices, jax.vmap(draw)(indices)))
    return field, state, jax.tree.map(jnp.mean, metrics)


def _distance(field, level_weights, points):
    return fields.sample(field, points, level_weights).distance
