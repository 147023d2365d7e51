"""Views to a mesh in one call."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from e3d_jax import structs
from e3d_jax.mesh import extract, texture
from e3d_jax.reconstruction import config, fields, fit, registration

SEARCHED_CELLS = 96  # marching-cubes cells of the mesh that pictures are compared with


def reconstruct(
    views: structs.ViewSet,
    settings: config.ReconstructionSettings,
    key: jax.Array,
    on_chunk: fit.OnChunk | None = None,
) -> structs.Mesh:
    """Fit a field to the views, extract its surface and paint it; arguments and errors as in :func:`fit.fit`."""
    return reconstruct_with(views, (), settings, key, on_chunk)[0]


def reconstruct_with(
    views: structs.ViewSet,
    pictures: Sequence[registration.Picture],
    settings: config.ReconstructionSettings,
    key: jax.Array,
    on_chunk: fit.OnChunk | None = None,
) -> tuple[structs.Mesh, tuple[registration.Found, ...]]:
    """Do the same with pictures of the object, whose cameras are found when half of the fit is done.

    From then on they take part in the fit, and the texture has their colors where they see the surface. A picture that
    differs from the mesh as one of another object does is left out, with a warning.

    Returns:
      The mesh, and the cameras of the pictures.
    """
    found: list[registration.Found] = []

    def locate(field: fields.Field) -> list[structs.Cameras | None]:
        mesh = extract.extract_mesh(*surface_functions(field), field.box, SEARCHED_CELLS)
        found[:] = [registration.find(mesh, picture) for picture in pictures]
        return [each.camera if each.difference <= registration.MOST_DIFFERENT else None for each in found]

    joining = pictures if settings.input_pixels else ()
    fitted = fit.fit(
        views,
        settings.fit,
        key,
        on_chunk,
        pictures=[picture.rgba for picture in joining],
        locate=locate if joining else None,
    )
    distance_fn, color_fn = surface_functions(fitted.field)
    mesh = extract.extract_mesh(
        distance_fn,
        color_fn,
        fitted.field.box,
        settings.resolution,
        max_faces=settings.max_faces,
        smoothing=settings.smoothing,
    )
    shifts = np.asarray(fitted.field.view_shifts)
    views = dataclasses.replace(views, cameras=_shifted(views.cameras, shifts[: len(views.rgba)]))
    if len(found) < len(pictures):
        locate(fitted.field)
    for number, shift in enumerate(shifts[len(views.rgba) :]):
        found[number] = _checked(mesh, joining[number], found[number], shift)
    photos = [structs.Photo(one.rgba, each.camera) for one, each in zip(pictures, found, strict=True) if each.used]
    weights = fitted.view_weights
    return texture.paint(mesh, color_fn, views, settings.texture_size, view_weights=weights, photos=photos), tuple(
        found
    )


def _checked(
    mesh: structs.Mesh, picture: registration.Picture, found: registration.Found, shift: Float[np.ndarray, "2"]
) -> registration.Found:
    """Return the camera of a picture after the fit; warn if it differs from the mesh, and the picture is not used."""
    camera = _shifted(found.camera, shift[None])
    agreement, difference = registration.compare(mesh, picture, camera)
    used = max(difference, found.difference) <= registration.MOST_DIFFERENT
    if not used:
        warnings.warn(
            f"the picture from azimuth {picture.azimuth:g} does not seem to show the object of the generated views, or "
            f"not it alone (the silhouettes agree by {found.agreement:.0%}), so its pixels are not used; check the "
            "picture and its direction",
            stacklevel=3,
        )
    return dataclasses.replace(found, camera=camera, agreement=agreement, difference=difference, used=used)


def _shifted(cameras: structs.Cameras, shifts: Float[np.ndarray, "v 2"]) -> structs.Cameras:
    """Return cameras whose images are moved by the shifts of :class:`fields.Field`."""
    return dataclasses.replace(cameras, center=np.asarray(cameras.center) - shifts)


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
