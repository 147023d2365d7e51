"""Shapes that need no learning: baselines for a reconstruction from one image."""

import numpy as np
import trimesh
from jaxtyping import Float
from scipy import optimize
from skimage import measure

from e3d_jax import cameras, images, structs
from e3d_jax.evaluation import metrics


def fitted_sphere(gt: structs.Mesh, resolution: int = 48) -> structs.Mesh:
    """Return the sphere with the highest volume IoU with a mesh. It is fitted to the ground truth, which favors it.

    Raises:
      ValueError: the mesh encloses no volume.
    """
    axis = (np.arange(resolution) + 0.5) / resolution - 0.5
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    low = np.full(3, -0.5)
    inside = metrics.occupancy(gt, low, np.full(3, resolution), 1 / resolution).ravel()
    volume = inside.sum() / resolution**3
    if not volume:
        raise ValueError("the mesh encloses no volume in the unit cube around the origin; normalize it first")

    def loss(sphere: np.ndarray) -> float:
        # A soft border one cell wide, because a hard one would make the loss piecewise constant.
        distance = np.linalg.norm(grid - sphere[:3], axis=-1)
        occupancy = ((sphere[3] - distance) * resolution + 0.5).clip(0, 1)
        overlap = occupancy[inside].sum()
        return -float(overlap / (occupancy.sum() + inside.sum() - overlap))

    radius = (volume * 3 / (4 * np.pi)) ** (1 / 3)
    starts = [(*grid[inside].mean(0), factor * radius) for factor in (0.7, 1.0, 1.3)]
    best = min((optimize.minimize(loss, start, method="Nelder-Mead") for start in starts), key=lambda r: r.fun)
    ball = trimesh.creation.icosphere(subdivisions=4, radius=best.x[3])
    return _gray(np.asarray(ball.vertices) + best.x[:3], np.asarray(ball.faces))


def extruded_silhouette(rgba: Float[np.ndarray, "h w 4"], resolution: int = 64) -> structs.Mesh:
    """Extrude the silhouette of view 0 along the viewing direction, to both sides of the origin.

    The depth is guessed from the image alone: the mean width of the silhouette, its area over its height. The image
    must be a render of view 0 of the default ring (square, not cropped); size and position are those in the plane
    x = 0.

    Raises:
      ValueError: the image is not square or shows no object.
    """
    height, width = rgba.shape[:2]
    if height != width:
        raise ValueError(f"the front view is {width} x {height} px; give a square render of view 0 of the ring")
    # An empty border closes the surface.
    alpha = np.pad(images.crop(rgba, (0.0, 0.0, float(width)), resolution)[..., 3], 1)
    mask = alpha > 0.5
    if not mask.any():
        raise ValueError("the front view shows no object (alpha is nowhere above 0.5)")
    pixel = cameras.RELEASED.radius / (cameras.RELEASED.focal * resolution)  # object units per pixel at the origin
    depth = mask.sum() / mask.any(1).sum()
    layers = np.arange(-np.ceil(depth / 2) - 1, np.ceil(depth / 2) + 2)
    # A level set that is zero at the outline and at both caps; axes depth, row, column.
    level = np.minimum(alpha - 0.5, (depth / 2 - np.abs(layers))[:, None, None].clip(-0.5, 0.5))
    vertices, faces, _, _ = measure.marching_cubes(level, 0.0, gradient_direction="ascent")
    center = alpha.shape[0] / 2 - 0.5
    world = [vertices[:, 0] + layers[0], vertices[:, 2] - center, center - vertices[:, 1]]
    return _gray(np.stack(world, -1) * pixel, faces)


def _gray(vertices: np.ndarray, faces: np.ndarray) -> structs.Mesh:
    return structs.Mesh(
        vertices=np.asarray(vertices, np.float32),
        faces=np.asarray(faces, np.int32),
        colors=np.full((len(vertices), 3), 0.5, np.float32),
    )
