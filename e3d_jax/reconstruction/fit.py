"""Fit a signed distance field to posed views."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from e3d_jax import structs
from e3d_jax.reconstruction import batches, config, fields, fit_losses, fit_schedules, hull, occupancy, sweep, volume

# Called with the number of steps done, the mean losses of the last chunk, and the field so far.
OnChunk = Callable[[int, Mapping[str, float], fields.Field], None]
# Returns the cameras of pictures, None for those that are to be left out.
Locate = Callable[[fields.Field], Sequence[structs.Cameras | None]]
PICTURES_FROM = 0.5  # progress at which the surface is good enough to find the cameras of pictures


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The result of a fit.

    Attributes:
      field: the surface.
      view_weights: trust in each view; 0 for those that were left out.
    """

    field: fields.Field
    view_weights: Float[Array, " v"]


def fit(
    views: structs.ViewSet,
    settings: config.FitSettings,
    key: jax.Array,
    on_chunk: OnChunk | None = None,
    *,
    pictures: Sequence[Float[np.ndarray, "_ _ 4"]] = (),
    locate: Locate | None = None,
) -> Fitted:
    """Fit a field to posed views (NeuS, arXiv 2106.10689, on a multi-resolution grid).

    Args:
      views: RGBA views with cameras; masks and normals of the anchors are trusted.
      settings: sizes, schedules and weights.
      key: seed of the initial layers and the rays; the same key gives the same field.
      on_chunk: called after every chunk of steps.
      pictures: RGBA, of any sizes, that take part in the second half of the fit as anchors do.
      locate: finds their cameras.

    Raises:
      ValueError: no view shows an object, the views share no object inside ``half_extent``, or the fit diverges.
    """
    if not len(views.normal_views):
        settings = dataclasses.replace(settings, color_weight=settings.bare_color_weight)
    field, pixels = start(views, settings, key, pictures)
    return Fitted(optimize(field, pixels, settings, key, on_chunk, locate), pixels.weights[: len(views.rgba)])


def start(
    views: structs.ViewSet,
    settings: config.FitSettings,
    key: jax.Array,
    pictures: Sequence[Float[np.ndarray, "_ _ 4"]] = (),
) -> tuple[fields.Field, batches.Pixels]:
    """Return the field before the first step, and the views on the device.

    Its surface is the visual hull, without the hollows that views with normal maps look into.

    Warns if the views are usable but poor: a single view, or some that show another shape.

    Raises:
      ValueError: see :func:`hull.carve`.
    """
    if len(views.rgba) == 1:
        warnings.warn("there is only one view, so the depth and the back of the object are guesses", stacklevel=2)
    base, box, agree = _hull(views, settings)
    seen = _chosen(views, agree)
    if settings.depth_width and len(seen.normal_views):
        base = sweep.carve(seen, base, box, width=settings.depth_width)
    field = fields.create(
        jax.random.fold_in(key, 0),
        base,
        box,
        num_views=len(views.rgba) + len(pictures),
        levels=settings.levels,
        color_levels=settings.color_levels,
        features=settings.features,
        hidden=settings.hidden,
        sharpness=settings.sharpness,
    )
    weights = fit_schedules.view_weights(views.cameras) if settings.favor_front else jnp.ones(len(agree))
    return field, batches.load(views, weights * agree, contrast=settings.mask_contrast, pictures=pictures)


def _hull(views: structs.ViewSet, settings: config.FitSettings):
    """Return the hull, its box, and which views agree with it; the others do not take part in the hull."""
    alpha, agree = views.rgba[..., 3], np.ones(len(views.rgba), bool)
    votes = int(settings.hull_votes * len(alpha))
    carve = functools.partial(hull.carve, half_extent=settings.half_extent, cells=settings.hull_cells, votes=votes)
    base, box = carve(alpha, views.cameras)
    if votes:  # Without votes, one wrong view has already carved the hull, and every other view disagrees with it.
        agreement = hull.agreement(alpha, views.cameras, base, box)
        agree = agreement >= settings.least_agreement * np.median(agreement)
    if not agree.all():
        names = ", ".join(map(str, np.flatnonzero(~agree)))
        warnings.warn(f"views {names} show a different shape from the other views and are left out", stacklevel=3)
        base, box = carve(alpha[agree], views.cameras[np.flatnonzero(agree)])
    return base, box, agree


def _chosen(views: structs.ViewSet, keep: Bool[np.ndarray, " v"]) -> structs.ViewSet:
    """Return some of the views."""
    number, with_normal = np.cumsum(keep) - 1, keep[views.normal_views]
    return structs.ViewSet(
        rgba=views.rgba[keep],
        cameras=views.cameras[np.flatnonzero(keep)],
        normal_views=number[views.normal_views[with_normal]],
        normals=views.normals[with_normal],
        anchors=number[views.anchors[keep[views.anchors]]],
    )


def optimize(
    field: fields.Field,
    pixels: batches.Pixels,
    settings: config.FitSettings,
    key: jax.Array,
    on_chunk: OnChunk | None = None,
    locate: Locate | None = None,
) -> fields.Field:
    """Take all steps, starting from what :func:`start` returns; arguments as in :func:`fit`.

    Raises:
      ValueError: the fit diverges.
    """
    state, run_key = optimizer().init(field), jax.random.fold_in(key, 1)
    for first in range(0, settings.steps, settings.steps_per_chunk):
        if locate is not None and first >= PICTURES_FROM * settings.steps:
            pixels, locate = batches.join(pixels, locate(field)), None
        field, state, metrics = run_chunk(field, state, pixels, run_key, jnp.int32(first), settings)
        if on_chunk is not None:
            on_chunk(first + settings.steps_per_chunk, {name: float(value) for name, value in metrics.items()}, field)
    if not np.isfinite(metrics["loss"]):
        raise ValueError("the fit diverged: its loss is not finite; lower the learning rates")
    return field


def _losses(field: fields.Field, batch: batches.Batch, progress, settings: config.FitSettings):
    """Return the losses by name, and values that are only reported."""
    level_weights = _level_weights(progress, settings)
    moved = (field.view_shifts[batch.view][..., None] * batch.across).sum(1)
    rendering = volume.render(
        structs.Rays(batch.rays.origins, fields.normalize(jnp.asarray(batch.rays.directions) + moved)),
        batch.placed,
        lambda points: fields.sample(field, points, level_weights),
        functools.partial(fields.color, field),
        sharpness=jnp.exp(field.log_sharpness),
        annealing=fit_schedules.cosine_annealing(progress, until=settings.anneal_until),
    )
    # A single call for both, because every call is compiled separately.
    pair = fields.sample(field, jnp.concatenate([batch.points, batch.nearby]), level_weights)
    gradient, nearby = jnp.split(pair.gradient, 2)
    alpha, occupied, background = batch.rgba[:, 3], batch.placed.occupied, batch.background
    target = batch.rgba[:, :3] * alpha[:, None] + background * (1 - alpha[:, None])
    shown = rendering.color + background * (1 - rendering.opacity[:, None])
    color = fit_losses.color_error(shown, target)
    mask = fit_losses.mask_error(rendering.opacity, alpha)
    facing, faces = fit_losses.facing_weights(batch.normals, batch.rays.directions)
    normal = fit_losses.normal_error(fields.normalize(rendering.normal), batch.normals)
    with_normal = (alpha > 0.5) & occupied & faces
    eikonal = fit_losses.eikonal_error(rendering.gradient).mean(1)
    kept, everywhere = functools.partial(fit_schedules.kept_fraction, progress), jnp.ones_like(occupied)
    mean, trust = fit_losses.kept_mean, batch.weights
    terms = {
        "color": mean(color, kept(settings.color_kept), valid=everywhere, weights=trust),
        "mask": mean(mask, kept(settings.mask_kept), valid=batch.anchor, weights=trust),
        "normal": mean(normal, kept(settings.normal_kept), valid=with_normal, weights=trust * facing),
        "eikonal": (eikonal * occupied).sum() / jnp.maximum(occupied.sum(), 1),
        "sparsity": fit_losses.sparsity_error(pair.distance).mean(),
        "smoothness": fit_losses.smoothness_error(gradient, nearby).mean(),
        "shift": (field.view_shifts**2).mean(),
    }
    return terms, {"squared_error": ((shown - target) ** 2).mean()}


def _level_weights(progress, settings: config.FitSettings):
    return fit_schedules.level_weights(
        progress, len(settings.levels), first=settings.first_levels, until=settings.levels_until
    )


def total_loss(field: fields.Field, batch: batches.Batch, progress, settings: config.FitSettings):
    """Return the weighted sum of the losses, and the losses together with values that are only reported."""
    terms, reported = _losses(field, batch, progress, settings)
    total = sum(getattr(settings, f"{name}_weight") * term for name, term in terms.items())
    return total, {**terms, **reported}


def optimizer() -> optax.GradientTransformation:
    """Return Adam without a learning rate: :func:`update` applies one per part of the field."""
    return optax.scale_by_adam(b2=0.99, eps=1e-12)


def update(field: fields.Field, state, gradient: fields.Field, progress, settings: config.FitSettings):
    """Take one optimizer step and return the new field and optimizer state."""
    updates, state = optimizer().update(gradient, state)
    base, grids, layers, color, shifts, sharpness = settings.learning_rates
    rates = {"base": base, "levels": grids, "color_levels": color, "distance_layers": layers}
    rates |= {"box": 0.0, "color_layers": color, "view_shifts": shifts, "log_sharpness": sharpness}
    factor = fit_schedules.learning_rate(progress)
    field = jax.tree_util.tree_map_with_path(
        lambda path, value, change: value - factor * rates[path[0].name] * change, field, updates
    )
    return field, state


def sample_chunk(
    field: fields.Field, pixels: batches.Pixels, key, first, settings: config.FitSettings
) -> batches.Batch:
    """Return the stacked batches of ``steps_per_chunk`` steps, placed with an occupancy cache of the current field."""
    cache = occupancy.cache_field(field, _level_weights(first / settings.steps, settings), settings.cache_cells)

    def sample(index):
        return batches.sample(jax.random.fold_in(key, index), pixels, index / settings.steps, cache, settings)

    return jax.vmap(sample)(first + jnp.arange(settings.steps_per_chunk))


@functools.partial(jax.jit, static_argnames="settings")
def run_chunk(field: fields.Field, state, pixels: batches.Pixels, key, first, settings: config.FitSettings):
    """Take ``steps_per_chunk`` steps from step ``first`` on; return the field, optimizer state and mean losses."""

    def step(carry, inputs):
        (field, state), (index, batch) = carry, inputs
        progress = index / settings.steps
        (loss, terms), gradient = jax.value_and_grad(total_loss, has_aux=True)(field, batch, progress, settings)
        field, state = update(field, state, gradient, progress, settings)
        return (field, state), {"loss": loss, **terms, "sharpness": jnp.exp(field.log_sharpness)}

    # All batches of the chunk are sampled at once: they need only the cache, and the loop that follows stays small.
    stacked = sample_chunk(field, pixels, key, first, settings)
    indices = first + jnp.arange(settings.steps_per_chunk)
    (field, state), metrics = jax.lax.scan(step, (field, state), (indices, stacked))
    return field, state, jax.tree.map(jnp.mean, metrics)
