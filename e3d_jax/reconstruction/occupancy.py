"""A cached grid of signed distances that says where along a ray the surface can be.

It serves as an occupancy grid: a segment of a ray farther from the cached surface than the *band* gets no samples.
Because it caches distances instead of bits, the same grid also says where in the band the samples belong.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3d_jax import structs
from e3d_jax.reconstruction import fields


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Cached distances of a field.

    Attributes:
      distances: signed distances on the lattice of the box.
      box: lower and upper corner of the region that the lattice spans.
      band: largest cached distance at which a sample matters, object units.
    """

    distances: Float[Array, "x y z 1"]
    box: Float[Array, "2 3"]
    band: Float[Array, ""]

    def distance(self, points: Float[Array, "n 3"]) -> Float[Array, " n"]:
        """Return the interpolated distance at world points."""
        return fields.interpolate(self.distances, self.box, points)[:, 0]


def cache_field(field: fields.Field, level_weights: Float[Array, " l"], cells: int) -> Cache:
    """Cache the distances of a field on ``cells`` cells per side, see :func:`fields.sample`."""
    distances = cache(lambda points: fields.sample(field, points, level_weights).distance, field.box, cells)
    return Cache(distances, field.box, band(field.box, cells, jnp.exp(field.log_sharpness)))


def cache(
    distance_fn: Callable[[Float[Array, "n 3"]], Float[Array, " n"]], box: Float[structs.ArrayLike, "2 3"], cells: int
) -> Float[Array, "x y z 1"]:
    """Evaluate distances on the lattice of ``cells`` cells per side that spans ``box``, slab by slab."""
    size = cells + 1
    slabs = fields.lattice(box, (size, size, size)).reshape(size, size * size, 3)
    return jax.lax.map(distance_fn, slabs).reshape(size, size, size, 1)


def band(box: Float[Array, "2 3"], cells: int, sharpness: Float[Array, ""]) -> Float[Array, ""]:
    """Return the largest cached distance at which a sample matters: a cell's diagonal plus the density's tail."""
    return jnp.linalg.norm((box[1] - box[0]) / cells) + 3 / sharpness
