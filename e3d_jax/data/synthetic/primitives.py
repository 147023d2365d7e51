"""One formula for every solid: a box core dilated by an ellipsoid, under symmetries, warps and a profile.

Objects are data, so one compiled program draws any of them. A primitive is the set of points within an ellipsoid of
radii ``radius`` around a box of half extents ``core``, in local coordinates that were, in this order: repeated around
the object's z axis, posed, unbent, untwisted, and folded into a cross-section (rectangle, ellipse, polygon, star or
ring). A polynomial ``profile`` scales the section along local z. Ellipsoids, boxes, capsules, cylinders, cones, tori,
prisms and turned shapes are all values of these numbers; every primitive costs the same hundred or so operations and
no branch. Lengths are in the object's own units, before normalization; families keep objects within [-1.5, 1.5]^3.

Symbols: p primitives of an object, m materials of an object.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from e3d_jax import structs

MAX_PRIMITIVES = 16
MAX_MATERIALS = 4
PROFILE_DEGREE = 5
# Primitives evaluated in one fused kernel; more saves memory traffic, fewer saves compile time.
_UNROLL = 4
# Width of the seam between the colors of two parts, object units.
_SEAM = 0.008


class Point(NamedTuple):
    """Coordinates kept apart, so that accelerators read them as contiguous arrays."""

    x: jax.Array
    y: jax.Array
    z: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Primitives:
    """The solids of an object, in the order in which they are combined; batch axes lead; in a scan it is one solid.

    Attributes:
      repeat: normals of two mirror lines in the object's xy plane; with y = 0 they generate an n-fold symmetry.
      repeated: 1 where the primitive is repeated (at least mirrored in y), else 0.
      center: origin of the local frame.
      rotation: local_from_object.
      bend: curvature of the axis: local x moves by ``bend * z**2``.
      twist: tangent of the section's turn per unit of local z.
      fold: mirror lines of the section, as ``repeat``.
      section: weights of folded x, folded y and the radius in the section's first coordinate, and of folded y in its
        second: (1, 0, 0, 1) rectangle, (0, 0, 1, 0) circle, (1, 0, 0, 0) polygon, (1, a, 0, 0) star.
      aspect: factor of local y before the section, at most 1.
      ring: distance of the section's center from the axis; positive for a torus.
      core: half extents of the box.
      radius: radii of the dilation, positive.
      profile: coefficients of the section's scale in t = z / (half length), lowest first.
      sign: 1 joins, -1 cuts.
      blend: width over which the junction is rounded.
      material: one-hot choice of material.
    """

    repeat: Float[structs.ArrayLike, "*p 2 2"]
    repeated: Float[structs.ArrayLike, "*p"]
    center: Float[structs.ArrayLike, "*p 3"]
    rotation: Float[structs.ArrayLike, "*p 3 3"]
    bend: Float[structs.ArrayLike, "*p"]
    twist: Float[structs.ArrayLike, "*p"]
    fold: Float[structs.ArrayLike, "*p 2 2"]
    section: Float[structs.ArrayLike, "*p 4"]
    aspect: Float[structs.ArrayLike, "*p"]
    ring: Float[structs.ArrayLike, "*p"]
    core: Float[structs.ArrayLike, "*p 3"]
    radius: Float[structs.ArrayLike, "*p 3"]
    profile: Float[structs.ArrayLike, "*p 6"]
    sign: Float[structs.ArrayLike, "*p"]
    blend: Float[structs.ArrayLike, "*p"]
    material: Float[structs.ArrayLike, "*p m"]


def _kaleidoscope(x: jax.Array, y: jax.Array, normals: structs.ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Fold the plane onto the sector that the lines ``normals`` and y = 0 bound."""
    y = jnp.abs(y)
    for i in range(2):
        nx, ny = normals[i, 0], normals[i, 1]
        beyond = 2 * jnp.minimum(x * nx + y * ny, 0.0)
        x, y = x - beyond * nx, jnp.abs(y - beyond * ny)
    return x, y


def _local(prim: Primitives, point: Point) -> Point:
    """Return object coordinates in the local frame of one primitive, after repetition."""
    x, y = _kaleidoscope(point.x, point.y, prim.repeat)
    x = jnp.where(prim.repeated > 0, x, point.x) - prim.center[0]
    y = jnp.where(prim.repeated > 0, y, point.y) - prim.center[1]
    z = point.z - prim.center[2]
    rows = prim.rotation
    return Point(*(rows[i, 0] * x + rows[i, 1] * y + rows[i, 2] * z for i in range(3)))


def _distance(prim: Primitives, point: Point) -> jax.Array:
    """Return the signed distance to one primitive: first-order exact at its surface, a lower bound outside convex ones.

    For a convex function f with f = 0 on the surface, f / |grad f| never exceeds the distance from outside.
    """
    x, y, z = _local(prim, point)
    half = prim.core[2] + prim.radius[2]
    along = jnp.clip(z, -half, half)
    x = x - prim.bend * along**2
    turn = prim.twist * along
    cosine = jax.lax.rsqrt(1 + turn**2)
    x, y = (x + turn * y) * cosine, (y - turn * x) * cosine * prim.aspect

    u, v = _kaleidoscope(x, y, prim.fold)
    around = x**2 + y**2 + 1e-12
    u = prim.section[0] * jnp.abs(u) + prim.section[1] * v + prim.section[2] * around * jax.lax.rsqrt(around)
    u, v, w = jnp.abs(u - prim.ring), prim.section[3] * v, jnp.abs(z)

    inverse_half = 1 / half
    t = along * inverse_half
    scale, slope = jnp.zeros_like(t), jnp.zeros_like(t)
    for k in range(PROFILE_DEGREE, -1, -1):
        slope = slope * t + scale
        scale = scale * t + prim.profile[k]
    u, v, w = u - prim.core[0] * scale, v - prim.core[1] * scale, w - prim.core[2]

    # On a GPU, a reciprocal root is one instruction; a root or a quotient is ten.
    shrink = 1 / scale
    ru, rv, rw = shrink * (1 / prim.radius[0]), shrink * (1 / prim.radius[1]), 1 / prim.radius[2]
    qu, qv, qw = jnp.maximum(u, 0) * ru, jnp.maximum(v, 0) * rv, jnp.maximum(w, 0) * rw
    square = qu**2 + qv**2 + qw**2
    q = square * jax.lax.rsqrt(jnp.maximum(square, 1e-18))
    steepness = jax.lax.rsqrt(jnp.maximum((qu * ru) ** 2 + (qv * rv) ** 2 + (qw * rw) ** 2, 1e-18))
    smallest = jnp.minimum(jnp.minimum(prim.radius[0], prim.radius[1]) * scale, prim.radius[2])
    inside = jnp.maximum(jnp.maximum(u, v), w) - smallest
    distance = jnp.where(q > 1e-4, (q - 1) * q * steepness, inside)
    # The warps stretch space by the tangents of their slopes, the profile's only where the surface faces sideways.
    width = prim.core[0] + prim.radius[0]
    sideways = 1 - (qw * rw * steepness) ** 2
    stretch = sideways * (width * slope * inverse_half) ** 2 + (2 * prim.bend * along) ** 2 + (prim.twist * width) ** 2
    return distance * jax.lax.rsqrt(1 + stretch)


def _join(distance: jax.Array, prim: Primitives, point: Point) -> tuple[jax.Array, jax.Array]:
    """Return the distance after one more primitive, and how much closer that primitive's surface was (signed)."""
    before, other = prim.sign * distance, _distance(prim, point)
    overlap = jnp.maximum(prim.blend - jnp.abs(before - other), 0.0)
    joined = jnp.minimum(before, other) - overlap**2 * (0.25 / prim.blend)
    return jnp.asarray(prim.sign * joined), jnp.asarray(before - other)


def distance(prims: Primitives, point: Point) -> jax.Array:
    """Return the signed distance to one object's primitives (negative inside), object units."""

    def step(total: jax.Array, prim: Primitives) -> tuple[jax.Array, None]:
        return _join(total, prim, point)[0], None

    return jax.lax.scan(step, jnp.full_like(point.x, 100.0), prims, unroll=_UNROLL)[0]


def mix(prims: Primitives, point: Point, colors: jax.Array) -> jax.Array:
    """Return the color of the primitive whose surface is nearest, softened at seams.

    Args:
      prims: the primitives of one object.
      point: position, object units.
      colors: the color of every material at every point, ``[m, ..., 3]``.
    """

    def step(carry: tuple[jax.Array, jax.Array], prim: Primitives) -> tuple[tuple[jax.Array, jax.Array], None]:
        total, color = carry
        total, nearer = _join(total, prim, point)
        weight = jnp.clip(0.5 + nearer / jnp.maximum(prim.blend, _SEAM), 0, 1)[..., None]
        own = sum(prim.material[i] * colors[i] for i in range(MAX_MATERIALS))
        return (total, color + weight * (own - color)), None

    start = (jnp.full_like(point.x, 100.0), jnp.zeros_like(colors[0]))
    return jax.lax.scan(step, start, prims, unroll=_UNROLL)[0][1]
