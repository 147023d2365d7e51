"""From views to a mesh in one call."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from e3d_jax import structs
from e3d_jax.mesh import extract, texture
from e3d_jax.reconstruction import fields, fit


@dataclasses.dataclass(frozen=True)
class SurfaceConfig:
    """How the fitted field becomes a mesh.

    Attributes:
      resolution: marching-cubes cells along the longest side of the object.
      max_faces: the mesh is decimated to so many.
      texture_size: width and height of the texture in pixels.
      smoothing: see :func:`extract.extract_mesh`; for generated views.
    """

    resolution: int = 128
    max_faces: int = 20_000
    texture_size: int = 1024
    smoothing: float = 0.0

    def __post_init__(self):
        """Refuses what would fail only after the fit.

        Raises:
          ValueError: names the first setting out of range.
        """
        limits = {
            "resolution": (8, 1024),
            "max_faces": (100, 10**7),
            "texture_size": (16, 16_384),
            "smoothing": (0, 10),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {low} to {high}")


# Speed against detail, for views of 128 to 512 pixels.
QUALITIES = {
    "fast": (fit.FitConfig(steps=500), SurfaceConfig(max_faces=10_000, texture_size=512)),
    "standard": (fit.FitConfig(steps=1200, rays=1024), SurfaceConfig(resolution=192)),
    "best": (
        fit.FitConfig(steps=4000, rays=2048, levels=(16, 32, 64, 128), color_levels=(16, 64, 128)),
        SurfaceConfig(resolution=320, max_faces=40_000, texture_size=2048),
    ),
}


def reconstruct(
    views: structs.ViewSet,
    config: fit.FitConfig,
    key: jax.Array,
    progress: fit.Progress | None = None,
    *,
    surface: SurfaceConfig = SurfaceConfig(),
) -> structs.Mesh:
    """Fit a field to the views, extract its surface and paint it; arguments and errors of ``fit.fit``."""
    config = fit.adapt(config, views)
    field, pixels = fit.start(views, config, key)
    field = fit.optimise(field, pixels, config, key, progress)
    distance_fn, color_fn = surface_functions(field)
    mesh = extract.extract_mesh(
        distance_fn,
        color_fn,
        field.box,
        surface.resolution,
        max_faces=surface.max_faces,
        smoothing=surface.smoothing,
    )
    center = np.asarray(views.cameras.center) - np.asarray(field.view_shifts)
    views = dataclasses.replace(views, cameras=dataclasses.replace(views.cameras, center=center))
    return texture.paint(mesh, color_fn, views, surface.texture_size, view_weights=pixels.weights)


def surface_functions(field: fields.Field) -> tuple[extract.DistanceFn, extract.ColorFn]:
    """Signed distance of world points, and colour of points on the surface."""
    return functools.partial(_distance, field), functools.partial(_color, field)


@jax.jit
def _distance(field, points):
    return fields.sample(field, points, jnp.ones(len(field.levels))).distance


@jax.jit
def _color(field, points):
    """Colour of surface points as a viewer straight in front of them sees it."""
    found = fields.sample(field, points, jnp.ones(len(field.levels)))
    normals = fields.normalize(found.gradient)
    return fields.color(field, points, found.feature, normals, -normals)
