"""Views to a mesh in one call."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from e3d_jax import structs
from e3d_jax.mesh import extract, texture
from e3d_jax.reconstruction import config, fields, fit


def reconstruct(
    views: structs.ViewSet,
    settings: config.ReconstructionSettings,
    key: jax.Array,
    on_chunk: fit.OnChunk | None = None,
) -> structs.Mesh:
    """Fit a field to the views, extract its surface and paint it; arguments and errors as in :func:`fit.fit`."""
    fitted = fit.fit(views, settings.fit, key, on_chunk)
    distance_fn, color_fn = surface_functions(fitted.field)
    mesh = extract.extract_mesh(
        distance_fn,
        color_fn,
        fitted.field.box,
        settings.resolution,
        max_faces=settings.max_faces,
        smoothing=settings.smoothing,
    )
    center = np.asarray(views.cameras.center) - np.asarray(fitted.field.view_shifts)
    views = dataclasses.replace(views, cameras=dataclasses.replace(views.cameras, center=center))
    return texture.paint(mesh, color_fn, views, settings.texture_size, view_weights=fitted.view_weights)


def surface_functions(field: fields.Field) -> tuple[extract.DistanceFn, extract.ColorFn]:
    """Return functions for the signed distance at world points and the color of points on the surface."""
    return functools.partial(_distance, field), functools.partial(_color, field)


@jax.jit
def _distance(field, points):
    return fields.sample(field, points, jnp.ones(len(field.levels))).distance


@jax.jit
def _color(field, points):
    """Return the color of surface points as seen from straight in front of them."""
    samples = fields.sample(field, points, jnp.ones(len(field.levels)))
    normals = fields.normalize(samples.gradient)
    return fields.color(field, points, samples.feature, normals, -normals)
