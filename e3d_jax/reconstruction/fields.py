"""A neural surface: signed distance and color at a point, as one pytree of arrays.

The signed distance (positive outside, object units) is a coarse grid of distances, initialized to the visual hull,
plus a correction: a multi-resolution grid of features, read by trilinear interpolation with the coordinates appended
and passed through one hidden layer (the progressive grids of Neuralangelo, arXiv 2306.03092, with dense levels instead
of hashed ones: an object at 64 cells per side is small enough to store, and dense levels cannot collide). Its
gradient is exact, through the trilinear interpolation and the layers, not a finite difference.

Color comes from a small network whose inputs are separate feature grids, the feature vector of the distance, the
normal and the viewing direction (NeuS, arXiv 2106.10689, section 3.1).

All coordinates are in the world frame; grids span the field's box, corner to corner.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3d_jax import structs

Layers = tuple[tuple[jax.Array, jax.Array], ...]
FEATURE_WIDTH = 13  # width of the vector that the distance layers pass to the color layers
DIRECTION_WIDTH = 9  # spherical harmonics below degree 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Field:
    """Parameters of the surface.

    Attributes:
      box: lower and upper corner of the region that the grids span, object units.
      base: coarse signed distance on the lattice of the box.
      levels: feature grids of the distance, coarse to fine.
      color_levels: feature grids of the color. They are separate because texture is sharper than shape: details of
        a pattern would make the surface rough.
      distance_layers: weights and biases from encoding to (correction, feature vector).
      color_layers: weights and biases from (encoding, feature vector, normal, direction) to color logits.
      view_shifts: offset of the rays of each view from its pixels, in pixels (x, y): generated images do not all show
        the object at the same place.
      log_sharpness: logarithm of the inverse standard deviation s of the NeuS density, 1 / object unit.
    """

    box: Float[Array, "2 3"]
    base: Float[Array, "x y z 1"]
    levels: tuple[Float[Array, "_ _ _ c"], ...]
    color_levels: tuple[Float[Array, "_ _ _ c"], ...]
    distance_layers: Layers
    color_layers: Layers
    view_shifts: Float[Array, "v 2"]
    log_sharpness: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """The field at n points.

    Attributes:
      distance: signed distance, object units, positive outside.
      gradient: its gradient in world axes; of length one where the field is an exact distance.
      feature: input of the color layers that describes the shape.
    """

    distance: Float[Array, " n"]
    gradient: Float[Array, "n 3"]
    feature: Float[Array, "n k"]


@functools.partial(jax.jit, static_argnames=("num_views", "levels", "color_levels", "features", "hidden", "sharpness"))
def create(
    key: jax.Array,
    base: Float[structs.ArrayLike, "x y z"],
    box: Float[structs.ArrayLike, "2 3"],
    *,
    num_views: int,
    levels: tuple[int, ...],
    color_levels: tuple[int, ...],
    features: int,
    hidden: int,
    sharpness: float,
) -> Field:
    """Create a field whose distance is exactly ``base``; ``levels`` are the cells per side of the feature grids.

    Raises:
      ValueError: a level has no cells.
    """
    if min(*levels, *color_levels) < 1:
        raise ValueError(f"feature grids need at least 1 cell per side, got {tuple(levels)} and {tuple(color_levels)}")
    distance_key, color_key = jax.random.split(key)
    encoding = 3 + features * len(levels)
    distance_layers = _init_layers(distance_key, (encoding, hidden, 1 + FEATURE_WIDTH))
    weight, bias = distance_layers[-1]
    distance_layers = (*distance_layers[:-1], (weight.at[:, 0].set(0.0), bias))
    color_width = 3 + features * len(color_levels) + FEATURE_WIDTH + 3 + DIRECTION_WIDTH
    return Field(
        box=jnp.asarray(box, jnp.float32),
        base=jnp.asarray(base, jnp.float32)[..., None],
        levels=tuple(jnp.zeros((n + 1, n + 1, n + 1, features)) for n in levels),
        color_levels=tuple(jnp.zeros((n + 1, n + 1, n + 1, features)) for n in color_levels),
        distance_layers=distance_layers,
        color_layers=_init_layers(color_key, (color_width, hidden, hidden, 3)),
        view_shifts=jnp.zeros((num_views, 2)),
        log_sharpness=jnp.float32(math.log(sharpness)),
    )


def sample(field: Field, points: Float[Array, "n 3"], level_weights: Float[Array, " l"]) -> Samples:
    """Return distance, gradient and feature at world points; points outside the box are moved to its border.

    ``level_weights`` in [0, 1] fade the feature grids in, coarse to fine.
    """
    # Corners are looked up once for both the distance and its gradient, so that the backward pass scatters once.
    grids = (field.base, *field.levels)
    corners = [_corners(grid, _unit(field.box, points)) for grid in grids]

    # The last layer is in two parts, because only the distance is differentiated; compilers for TPUs fail otherwise.
    inner, (weight, bias) = field.distance_layers[:-1], field.distance_layers[-1]

    def distance_and_feature(points):
        unit = _unit(field.box, points)
        base, *features = (
            _blend(corner, unit * (jnp.array(grid.shape[:3]) - 1) - cell)
            for grid, (corner, cell) in zip(grids, corners, strict=True)
        )
        encoding = [2 * unit - 1, *(fade * feature for fade, feature in zip(level_weights, features, strict=True))]
        encoding = jnp.concatenate(encoding, -1)
        hidden = jax.nn.silu(_apply_layers(inner, encoding, jax.nn.silu))
        return base[:, 0] + hidden @ weight[:, 0] + bias[0], hidden @ weight[:, 1:] + bias[1:]

    value, pull_back, feature = jax.vjp(distance_and_feature, points, has_aux=True)
    return Samples(distance=value, gradient=pull_back(jnp.ones_like(value))[0], feature=feature)


def color(
    field: Field,
    points: Float[Array, "n 3"],
    feature: Float[Array, "n k"],
    normals: Float[Array, "n 3"],
    directions: Float[Array, "n 3"],
) -> Float[Array, "n 3"]:
    """Return display-encoded RGB in [0, 1] seen along unit ``directions`` at points with unit ``normals``."""
    texture = [interpolate(grid, field.box, points) for grid in field.color_levels]
    encoding = [2 * _unit(field.box, points) - 1, *texture, feature, normals, harmonics(directions)]
    return jax.nn.sigmoid(_apply_layers(field.color_layers, jnp.concatenate(encoding, -1), jax.nn.relu))


def interpolate(grid: Float[Array, "x y z c"], box: Float[Array, "2 3"], points: Float[Array, "n 3"]):
    """Return trilinear values ``[n, c]`` of a grid that spans ``box``; points outside are moved to its border."""
    unit = _unit(box, points)
    corners, cell = _corners(grid, unit)
    return _blend(corners, unit * (jnp.array(grid.shape[:3]) - 1) - cell)


def lattice(box: Float[structs.ArrayLike, "2 3"], shape: tuple[int, int, int]) -> Float[Array, "x y z 3"]:
    """Return the world points of a grid of the given shape that spans ``box``, corner to corner."""
    axes = [jnp.linspace(box[0, i], box[1, i], shape[i]) for i in range(3)]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)


def harmonics(directions: Float[Array, "n 3"]) -> Float[Array, "n 9"]:
    """Return real spherical harmonics of unit vectors below degree 3, up to constant factors."""
    x, y, z = directions[:, 0], directions[:, 1], directions[:, 2]
    return jnp.stack([jnp.ones_like(x), x, y, z, x * y, y * z, 3 * z * z - 1, z * x, x * x - y * y], -1)


def normalize(vectors: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Return unit vectors, with finite gradients at zero."""
    return vectors * jax.lax.rsqrt(jnp.maximum((vectors**2).sum(-1, keepdims=True), 1e-12))


def _unit(box, points):
    box = jax.lax.stop_gradient(box)
    return jnp.clip((points - box[0]) / (box[1] - box[0]), 0.0, 1.0)


def _corners(grid, unit):
    """Return the eight lattice values around points, ``[n, 2, 2, 2, c]``, and the index of the lowest, ``[n, 3]``."""
    size = jnp.array(grid.shape[:3])
    cell = jnp.clip(jnp.floor(unit * (size - 1)).astype(jnp.int32), 0, size - 2)
    window = (2, 2, 2, grid.shape[3])
    return jax.vmap(lambda start: jax.lax.dynamic_slice(grid, (*start, 0), window))(cell), cell


def _blend(corners, fraction):
    """Return the values ``[n, c]`` between the corners, dimension by dimension."""
    # Points come last, because loops over eight corners of a few features are too short for vector instructions.
    values = jnp.moveaxis(corners, 0, -1)
    for along in fraction.T:
        low, high = _halves(values)
        values = low + (high - low) * along
    return values.T


@jax.custom_vjp
def _halves(values):
    return values[0], values[1]


# The gradient of an index is padded with zeros; stacking is faster.
_halves.defvjp(lambda values: (_halves(values), None), lambda _, gradients: (jnp.stack(gradients),))


def _init_layers(key, widths) -> Layers:
    keys, pairs = jax.random.split(key, len(widths) - 1), itertools.pairwise(widths)
    return tuple(
        (jnp.sqrt(2 / m) * jax.random.normal(k, (m, n)), jnp.zeros(n)) for k, (m, n) in zip(keys, pairs, strict=True)
    )


def _apply_layers(layers: Layers, x, activation):
    for weight, bias in layers[:-1]:
        x = activation(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias
