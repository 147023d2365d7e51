"""A cached grid of signed distances that tells rays where the surface can be.

It plays the part of an occupancy grid: a stretch of a ray farther from the cached surface than the *band* holds no
samples. Because it caches distances and not bits, the same grid also says where in the band the samples belong.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3d_jax import structs
from e3d_jax.reconstruction import fields


def cache(
    distance_fn: Callable[[Float[Array, "n 3"]], Float[Array, " n"]], box: Float[structs.ArrayLike, "2 3"], cells: int
) -> Float[Array, "x y z 1"]:
    """Distances on the lattice of ``cells`` cells a side that spans ``box``, evaluated slab by slab."""
    size = cells + 1
    slabs = fields.lattice(box, (size, size, size)).reshape(size, size * size, 3)
    return jax.lax.map(distance_fn, slabs).reshape(size, size, size, 1)


def band(box: Float[Array, "2 3"], cells: int, sharpness: Float[Array, ""]) -> Float[Array, ""]:
    """Largest cached distance, object units, at which a sample matters: a cell's diagonal and the density's tail."""
    return jnp.linalg.norm((box[1] - box[0]) / cells) + 3 / sharpness
