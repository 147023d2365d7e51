"""An object as data: solids, materials, lights and pose; its field, normalization and mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from skimage import measure

from e3d_jax import structs
from e3d_jax.data import lighting
from e3d_jax.data.synthetic import materials as materials_lib
from e3d_jax.data.synthetic import primitives

# Families keep their objects within this half extent, object units.
EXTENT = 1.5
# Radius of the ball that a normalized object touches.
RADIUS = 0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ObjectParams:
    """One object, or a batch of them with a leading axis on every array.

    A world point p corresponds to the object point ``center + scale * world_from_object.T @ p``.

    Attributes:
      solids: primitives, in object units.
      materials: solid textures over object coordinates.
      lights: lights in the world frame.
      ripple: amplitude and wave number of a displacement of the whole surface, object units.
      world_from_object: rotation.
      center: the object point that lies at the world's origin.
      scale: object units per world unit.
    """

    solids: primitives.Primitives
    materials: materials_lib.Materials
    lights: lighting.Lights
    ripple: Float[structs.ArrayLike, "*b 2"]
    world_from_object: Float[structs.ArrayLike, "*b 3 3"]
    center: Float[structs.ArrayLike, "*b 3"]
    scale: Float[structs.ArrayLike, "*b"]


def stack(objects: list[ObjectParams]) -> ObjectParams:
    """Return objects as one batch, on the host."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *objects)


def take(objects: ObjectParams, index: int) -> ObjectParams:
    """Return one object of a batch."""
    return jax.tree.map(lambda leaf: leaf[index, ...], objects)


def _to_object(params: ObjectParams, point: primitives.Point) -> primitives.Point:
    columns = params.world_from_object
    return primitives.Point(
        *(
            params.center[i]
            + params.scale * (columns[0, i] * point.x + columns[1, i] * point.y + columns[2, i] * point.z)
            for i in range(3)
        )
    )


def field(params: ObjectParams, point: primitives.Point) -> jax.Array:
    """Return :func:`sdf` for coordinates kept apart."""
    local = _to_object(params, point)
    amplitude, wave = params.ripple[0], params.ripple[1]
    ripple = amplitude * jnp.sin(wave * local.x) * jnp.sin(wave * local.y + 1.0) * jnp.sin(wave * local.z)
    distance = primitives.distance(params.solids, local) - ripple
    return distance / (params.scale * jnp.sqrt(1 + (amplitude * wave) ** 2))


def sdf(params: ObjectParams, points: Float[structs.ArrayLike, "*n 3"]) -> Float[jax.Array, "*n"]:
    """Return the signed distance to one object in the world frame, negative inside.

    Exact to first order at the surface; elsewhere an approximation on which sphere tracing converges.
    """
    return field(params, primitives.Point(*jnp.moveaxis(jnp.asarray(points), -1, 0)))


def albedo_at(params: ObjectParams, point: primitives.Point) -> jax.Array:
    """Return :func:`albedo` for coordinates kept apart."""
    local = _to_object(params, point)
    return primitives.mix(params.solids, local, materials_lib.colors(params.materials, local))


def albedo(params: ObjectParams, points: Float[structs.ArrayLike, "*n 3"]) -> Float[jax.Array, "*n 3"]:
    """Return the display-encoded color of one object without light, [0, 1], at world points on or near its surface."""
    return albedo_at(params, primitives.Point(*jnp.moveaxis(jnp.asarray(points), -1, 0)))


def occupancy(params: ObjectParams, points: Float[structs.ArrayLike, "*n 3"]) -> Bool[jax.Array, "*n"]:
    """Return whether world points lie inside one object."""
    return sdf(params, points) < 0


def _grid(low: jax.Array, high: jax.Array, resolution: int) -> primitives.Point:
    axes = [jnp.linspace(low[i], high[i], resolution) for i in range(3)]
    return primitives.Point(*jnp.meshgrid(*axes, indexing="ij"))


def _surface(params: ObjectParams, low: jax.Array, high: jax.Array, resolution: int) -> tuple[jax.Array, jax.Array]:
    """Return the grid points of a box moved onto the surface, ``[n, 3]``, and which of them are on it."""
    spacing = (high - low) / (resolution - 1)
    point = _grid(low, high, resolution)
    value = field(params, point)
    slopes = [jnp.asarray(jnp.gradient(value, axis=i)) / spacing[i] for i in range(3)]
    step = value / jnp.maximum(sum(s**2 for s in slopes), 0.25)
    moved = primitives.Point(*(p - step * s for p, s in zip(point, slopes, strict=True)))
    size = spacing.max()
    # Near a concave edge the step can leave the object: keep what landed on the surface.
    on = (jnp.abs(value) < size) & (jnp.abs(field(params, moved)) < 0.15 * size)
    return jnp.stack(moved, -1).reshape(-1, 3), on.reshape(-1)


def _bounds(points: jax.Array, on: jax.Array) -> tuple[jax.Array, jax.Array]:
    low = jnp.where(on[:, None], points, jnp.inf).min(0)
    return low, jnp.where(on[:, None], points, -jnp.inf).max(0)


def _normalize(params: ObjectParams) -> ObjectParams:
    reach = jnp.full(3, EXTENT * np.sqrt(3.0, dtype=np.float32))
    start = dataclasses.replace(params, center=jnp.zeros(3), scale=jnp.ones(()))
    low, high = _bounds(*_surface(start, -reach, reach, 48))
    margin = 2 * reach / 47
    points, on = _surface(start, low - margin, high + margin, 64)
    low, high = _bounds(points, on)
    middle = (low + high) / 2
    farthest = jnp.sqrt(jnp.where(on, ((points - middle) ** 2).sum(-1), 0.0).max())
    rotation = params.world_from_object
    center = rotation[0] * middle[0] + rotation[1] * middle[1] + rotation[2] * middle[2]
    return dataclasses.replace(params, center=center, scale=farthest / RADIUS)


@jax.jit
def normalize(objects: ObjectParams) -> ObjectParams:
    """Move and scale a batch of objects to the convention of the cameras.

    The center of the bounding box of the rotated object goes to the origin and the farthest surface point to distance
    0.5, both measured on a grid of the field, to about 1 % of the object's size.
    """
    return jax.lax.map(_normalize, objects, batch_size=min(8, len(objects.scale)))


@jax.jit
def _lattice(params: ObjectParams, axis: jax.Array) -> jax.Array:
    return field(params, primitives.Point(*jnp.meshgrid(axis, axis, axis, indexing="ij")))


_albedo = jax.jit(albedo)


def ground_truth_mesh(params: ObjectParams, resolution: int = 128) -> structs.Mesh:
    """Extract the surface of one normalized object by marching cubes on its field, colored by its albedo.

    Args:
      params: one object.
      resolution: grid points along an edge of the cube [-0.52, 0.52]^3.

    Raises:
      ValueError: the field has no surface inside the cube, as for an object that was never normalized.
    """
    axis = np.linspace(-0.52, 0.52, resolution, dtype=np.float32)
    values = np.array(_lattice(params, axis))  # a copy: marching cubes needs a writable array
    if not values.min() < 0 < values.max():
        raise ValueError("the object has no surface within [-0.52, 0.52]^3; pass it through normalize() first")
    # For a field that grows outward, this direction winds faces counterclockwise seen from outside.
    vertices, faces, _, _ = measure.marching_cubes(values, 0.0, gradient_direction="descent")
    vertices = (axis[0] + vertices * (axis[1] - axis[0])).astype(np.float32)
    # Padded to a power of two, so that few sizes are compiled.
    padded = np.zeros((1 << len(vertices).bit_length(), 3), np.float32)
    padded[: len(vertices)] = vertices
    colors = np.asarray(_albedo(params, padded))[: len(vertices)]
    return structs.Mesh(vertices=vertices, faces=faces.astype(np.int32), colors=colors)
