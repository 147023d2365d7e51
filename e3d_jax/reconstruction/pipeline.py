"""From views to a mesh in one call."""

import functools

import jax
import jax.numpy as jnp

from e3d_jax import structs
from e3d_jax.mesh import extract
from e3d_jax.reconstruction import fields, fit


def reconstruct(
    views: structs.ViewSet,
    config: fit.FitConfig,
    key: jax.Array,
    progress: fit.Progress | None = None,
    *,
    resolution: int = 128,
) -> structs.Mesh:
    """Fit a field to the views and extract its coloured surface; arguments and errors of ``fit.fit``.

    ``resolution`` is the number of marching-cubes cells along the longest side of the object.
    """
    field = fit.fit(views, config, key, progress)
    return extract.extract_mesh(
        functools.partial(_distance, field), functools.partial(_color, field), field.box, resolution
    )


@jax.jit
def _distance(field, points):
    return fields.sample(field, points, jnp.ones(len(field.levels))).distance


@jax.jit
def _color(field, points):
    """Colour of surface points as a viewer straight in front of them sees it."""
    found = fields.sample(field, points, jnp.ones(len(field.levels)))
    normals = fields.normalize(found.gradient)
    return fields.color(field, points, found.feature, normals, -normals)
