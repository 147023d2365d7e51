"""Exact views of a red sphere, and settings for a tiny fit."""

import numpy as np

from e3d_jax import cameras, structs
from e3d_jax.reconstruction import config

RADIUS = 0.3
COLOR = (0.8, 0.2, 0.1)
TINY = config.FitSettings(
    steps=60,
    steps_per_chunk=30,
    rays=128,
    samples=12,
    candidates=32,
    random_points=64,
    hull_cells=24,
    cache_cells=16,
    levels=(8, 16),
    color_levels=(8,),
    first_levels=1,
    hidden=16,
)


def views(size: int = 32, num_views: int = 8) -> structs.ViewSet:
    """Return views from a ring, all of them anchors with normal maps."""
    ring = cameras.ring(size, num_views)
    rays = cameras.image_rays(ring)
    origins, directions = np.asarray(rays.origins), np.asarray(rays.directions)
    along = -(origins * directions).sum(-1)
    miss = (origins**2).sum(-1) - along**2
    hit = miss < RADIUS**2
    depth = along - np.sqrt(np.maximum(RADIUS**2 - miss, 0))
    normals = np.where(hit[..., None], (origins + depth[..., None] * directions) / RADIUS, 0)
    rgba = np.concatenate([np.where(hit[..., None], COLOR, 1.0), hit[..., None]], -1)
    return structs.ViewSet(
        rgba=rgba.astype(np.float32),
        cameras=ring,
        normal_views=np.arange(num_views),
        normals=normals.astype(np.float32),
        anchors=np.arange(num_views),
    )
