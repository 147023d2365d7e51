"""Shapes by name, as values of the one primitive: ellipsoid, box, capsule, turned solid, prism, torus."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from e3d_jax.data.synthetic import primitives

# A bound that no section reaches, for axes that the section does not use.
_UNBOUNDED = 10.0
# Largest tangent of the angle between a profile's flank and the axis.
_STEEPEST = 1.5
_HEIGHTS = np.linspace(-1, 1, 41)
_POWERS = _HEIGHTS[:, None] ** np.arange(primitives.PROFILE_DEGREE + 1)
_SLOPES = np.arange(primitives.PROFILE_DEGREE + 1) * _HEIGHTS[:, None] ** np.maximum(
    np.arange(primitives.PROFILE_DEGREE + 1) - 1, 0
)
_FIT = np.linalg.pinv(_POWERS)

# Fields of one primitive by name, before they are stacked.
Part = dict[str, Any]
Vector = Sequence[float | int] | np.ndarray
Profile = Float[np.ndarray, "6"]


def mirror_lines(order: int | np.integer) -> Float[np.ndarray, "2 2"]:
    """Return the normals of two lines that fold the plane into ``order`` equal sectors.

    Each line reflects after a reflection in y = 0.

    Raises:
      ValueError: the order is not in 1..9 (each line can reduce the angle to a third).
    """
    if not 1 <= order <= 9:
        raise ValueError(f"got a symmetry of order {order}; expected 1 to 9")
    normals, sectors = np.zeros((2, 2), np.float32), order
    for i in range(2):
        if sectors > 1:
            kept = -(-sectors // 3)
            angle = np.pi * kept / order
            normals[i] = np.sin(angle), -np.cos(angle)
            sectors = max(kept, sectors - 2 * kept)
    return normals


def frame(axis: Vector = (0, 0, 1), side: Vector = (1, 0, 0)) -> Float[np.ndarray, "3 3"]:
    """Return local_from_object of a frame whose z is ``axis`` and whose x is as close to ``side`` as that allows."""
    z = np.asarray(axis, np.float64)
    z = z / np.sqrt(z @ z)
    x = np.asarray(side, np.float64)
    x = x - (x @ z) * z
    if x @ x < 1e-6:
        x = np.array([0.0, 0.0, 1.0]) - z[2] * z if abs(z[2]) < 0.9 else np.array([0.0, 1.0, 0.0]) - z[1] * z
    x = x / np.sqrt(x @ x)
    y = (z[1] * x[2] - z[2] * x[1], z[2] * x[0] - z[0] * x[2], z[0] * x[1] - z[1] * x[0])
    return np.stack([x, y, z]).astype(np.float32)


_PLAIN: Part = {
    "repeat": np.zeros((2, 2)),
    "repeated": np.zeros(()),
    "center": np.zeros(3),
    "rotation": np.eye(3),
    "bend": np.zeros(()),
    "twist": np.zeros(()),
    "fold": np.zeros((2, 2)),
    "section": np.array([1.0, 0, 0, 1]),
    "aspect": np.ones(()),
    "ring": np.zeros(()),
    "core": np.zeros(3),
    "radius": np.ones(3),
    "profile": np.array([1.0, 0, 0, 0, 0, 0]),
    "sign": np.ones(()),
    "blend": np.full((), 1e-3),
    "material": np.array([1.0, 0, 0, 0]),
}
# Far enough away to affect no object.
_ABSENT: Part = {**_PLAIN, "center": np.full(3, 50.0)}


def part(
    *,
    at: Vector = (0, 0, 0),
    rotation: np.ndarray | None = None,
    material: int | np.integer = 0,
    blend: float = 1e-3,
    cut: bool = False,
    repeat: int | np.integer = 0,
    **shape,
) -> Part:
    """Return a primitive from its pose, its junction and the raw numbers of its shape.

    Args:
      at: center, object units.
      rotation: local_from_object; upright by default.
      material: index of the material.
      blend: width of the rounded junction; positive.
      cut: whether to remove the solid instead of adding it.
      repeat: 0 for once, 1 for mirrored in y, n > 1 for n times around z with mirror symmetry.
      **shape: fields of :class:`primitives.Primitives`.
    """
    placed = dict(_PLAIN, center=at, blend=blend, sign=-1.0 if cut else 1.0, **shape)
    placed["material"] = np.eye(primitives.MAX_MATERIALS)[material]
    _tame(placed)
    if rotation is not None:
        placed["rotation"] = rotation
    if repeat:
        placed.update(repeat=mirror_lines(repeat), repeated=1.0)
    return placed


def fit_profile(radii: list[float], heights: list[float] | None = None) -> Profile:
    """Return the coefficients of a smooth profile through radii at heights in [-1, 1] (default: evenly spaced).

    It is at least 0.15 everywhere.
    """
    at = np.linspace(-1, 1, len(radii)) if heights is None else heights
    coefficients = _FIT @ np.interp(_HEIGHTS, at, radii)
    coefficients[0] += max(0.0, 0.15 - (_POWERS @ coefficients).min())
    return coefficients


def scale_at(profile: Profile, t: float) -> float:
    """Return a profile's value at t in [-1, 1]."""
    return float(np.polyval(profile[::-1], t))


def random_profile(rng: np.random.Generator, waviness: float = 0.3) -> Profile:
    """Sample a smooth profile with maximum 1 and minimum at least 0.25."""
    falling = waviness / np.array([1, 1, 1.5, 2, 2.5])
    coefficients = np.polynomial.chebyshev.cheb2poly([1.0, *rng.normal(0, falling)])
    values = _POWERS @ coefficients
    squeeze = min(1.0, 0.75 / max(values.max() - values.min(), 1e-6))
    coefficients = coefficients * squeeze
    coefficients[0] += 1 - values.max() * squeeze
    return coefficients


def _tame(shape: Part) -> None:
    """Flatten warps that would stretch space so far that rays stop converging."""
    width = float(shape["core"][0] + shape["radius"][0])
    half = float(shape["core"][2] + shape["radius"][2])
    profile = np.array(shape["profile"], np.float64)
    if profile[1:].any():
        steepest = width / half * np.abs(_SLOPES @ profile).max()
        profile[1:] *= min(1.0, _STEEPEST / max(steepest, 1e-6))
        profile[0] += max(0.0, 0.15 - (_POWERS @ profile).min())
    limits = {"twist": 0.7 / width, "bend": 0.6 / half}
    shape.update({name: np.clip(shape[name], -limit, limit) for name, limit in limits.items()}, profile=profile)


def ellipsoid(at: Vector, radii: Vector, **pose) -> Part:
    """Return an ellipsoid, or an egg if a ``profile`` is given."""
    return part(at=at, radius=radii, **pose)


def box(at: Vector, half: Vector, bevel: float = 0.02, **pose) -> Part:
    """Return a box of half extents ``half`` with edges rounded by ``bevel`` (at most the smallest half extent)."""
    bevel = min(bevel, 0.999 * min(half))
    return part(at=at, core=np.asarray(half) - bevel, radius=np.full(3, bevel), **pose)


def capsule(start: Vector, end: Vector, r0: float, r1: float, *, side: Vector = (1, 0, 0), **pose) -> Part:
    """Return a rounded bar from ``start`` (radius ``r0``) to ``end`` (radius ``r1``)."""
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    axis = end - start
    length, mean = max(float(np.sqrt(axis @ axis)), 1e-3), (r0 + r1) / 2
    axis = axis if length > 1e-3 else np.array([0.0, 0, 1])
    # The profile runs to the tips; the given radii hold at the centers of the caps.
    gain = (r1 - r0) / 2 / mean * (length / 2 + mean) / (length / 2)
    gain = float(np.clip(gain, -0.85, 0.85))
    profile = np.array([1.0, gain, 0, 0, 0, 0])
    shape: Part = {"core": (0, 0, length / 2), "radius": (mean,) * 3, "profile": profile}
    return part(at=(start + end) / 2, rotation=frame(axis, side), **shape, **pose)


def turned(
    at: Vector,
    radius: float,
    half: float,
    *,
    bevel: float = 0.02,
    profile: np.ndarray | None = None,
    sides: int | np.integer = 0,
    star: float = 0.0,
    rounding: float = 0.0,
    **pose,
) -> Part:
    """Return a solid of revolution about local z (cylinder, cone, vase), or a prism if ``sides`` is given.

    Args:
      at: center, object units.
      radius: radius of the section (of a prism's sides) where the profile is 1.
      half: half of the length along z.
      bevel: rounding of the rims.
      profile: coefficients of the radius over t in [-1, 1], lowest first.
      sides: 0 for a circle, else the number of sides of a polygon or points of a star, 3 to 9.
      star: how far the sides fold inward; 0 is a polygon.
      rounding: from 0 for a sharp polygon to 1 for a circle.
      **pose: see :func:`part`.
    """
    bevel = min(bevel, 0.9 * radius, 0.9 * half)
    section, fold = np.array([0.0, 0, 1, 0]), np.zeros((2, 2))
    if sides:
        fold = mirror_lines(sides)
        section = np.array([1.0, star, 0, 0]) / np.sqrt(1 + star**2) * (1 - rounding) + section * rounding
    shape: Part = {
        "core": (radius - bevel, _UNBOUNDED, half - bevel),
        "radius": (bevel,) * 3,
        "section": section,
        "fold": fold,
    }
    if profile is not None:
        shape["profile"] = profile
    return part(at=at, **shape, **pose)


def torus(at: Vector, ring: float, thickness: float | Vector, **pose) -> Part:
    """Return a ring about local z; ``thickness`` is the radius of its section, or its (radial, unused, axial) radii."""
    radii = np.broadcast_to(thickness, 3)
    return part(at=at, section=(0, 0, 1, 0), ring=ring, core=(0, _UNBOUNDED, 0), radius=radii, **pose)


def eyes(at: Vector, size: float) -> Part:
    """Return a pair of dark balls of radius ``size``, mirrored in y."""
    return ellipsoid(at, (size, size, size), material=primitives.MAX_MATERIALS - 1, repeat=1)


def pack(parts: list[Part]) -> primitives.Primitives:
    """Return parts as fixed-size arrays, padded with absent ones.

    Raises:
      ValueError: more parts than :data:`primitives.MAX_PRIMITIVES`, or none.
    """
    if not 1 <= len(parts) <= primitives.MAX_PRIMITIVES:
        raise ValueError(f"got an object of {len(parts)} parts; expected 1 to {primitives.MAX_PRIMITIVES}")
    padded = parts + [_ABSENT] * (primitives.MAX_PRIMITIVES - len(parts))
    return primitives.Primitives(**{name: np.array([p[name] for p in padded], np.float32) for name in _PLAIN})
