"""Vessels: turned bodies with handles, spouts and lids, upright, with their front at +x.

Materials: 0 main, 1 second, 2 accent, 3 near black. Cameras at elevation 0 cannot look into an opening, so its
depth could not be known: openings are shallow.
"""

import numpy as np

from e3d_jax.data.synthetic import shapes

_UP = (0.0, 0.0, 1.0)
_ALONG_X = shapes.frame((1, 0, 0), (0, 0, 1))
_ALONG_Y = shapes.frame((0, 1, 0), (1, 0, 0))


def _dish(radius: float, top: float, depth: float = 0.06, material: int = 0) -> shapes.Part:
    """Build a shallow hollow in the top of a vessel."""
    return shapes.turned((0, 0, top), radius, depth, bevel=depth * 0.9, cut=True, material=material, blend=0.01)


def mug(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a mug, its handle at the side or in front."""
    u = rng.uniform
    radius, half = u(0.28, 0.45), u(0.32, 0.5)
    profile = shapes.fit_profile([u(0.7, 1), u(0.85, 1.05), 1.0])
    side = np.array([0.0, radius, 0.0]) if rng.random() < 0.7 else np.array([radius, 0.0, 0.0])
    rotation = shapes.frame((1, 0, 0), _UP) if side[1] else _ALONG_Y
    ring = half * u(0.42, 0.62)
    return [
        shapes.torus(
            np.add(side * 1.05, (0, 0, u(-0.05, 0.05))),
            ring,
            u(0.05, 0.075),
            rotation=rotation,
            material=rng.choice([0, 0, 1]),
        ),
        shapes.turned((0, 0, 0), radius, half, bevel=u(0.02, 0.08), profile=profile, blend=0.03),
        _dish(radius * 0.86, half, material=1),
    ]


def vase(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a turned vase or jar, sometimes ribbed or with two handles."""
    u = rng.uniform
    radius, half, bands = u(0.22, 0.48), u(0.45, 0.8), rng.random()
    profile = shapes.random_profile(rng, 0.35)
    sides = int(rng.integers(5, 10)) if bands < 0.25 else 0
    parts = [
        shapes.turned(
            (0, 0, 0),
            radius,
            half,
            profile=profile,
            sides=sides,
            rounding=u(0, 0.7),
            bevel=u(0.015, 0.05),
            twist=u(-0.8, 0.8) if sides else 0.0,
        )
    ]
    top = radius * shapes.scale_at(profile, 1.0)
    if rng.random() < 0.5:
        parts.append(shapes.torus((0, 0, half - 0.02), top * 0.95, 0.05, material=rng.choice([0, 1]), blend=0.02))
    if rng.random() < 0.3:
        z, grip = u(-0.1, 0.25) * half, u(0.14, 0.24)
        wide = radius * shapes.scale_at(profile, z / half)
        rotation = shapes.frame((1, 0, 0), _UP)
        parts.insert(0, shapes.torus((0, wide, z), grip, u(0.04, 0.055), rotation=rotation, material=0, repeat=1))
    if rng.random() < 0.4:
        z = u(-0.7, 0.7)
        belt = radius * shapes.scale_at(profile, z)
        parts.append(shapes.torus((0, 0, z * half), belt * 0.98, (0.04, 0.04, u(0.04, 0.1)), material=1))
    return [*parts, _dish(max(top * 0.8, 0.05), half, 0.05, material=1)]


def bottle(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a bottle, flask or jar with a cap and perhaps a label."""
    u = rng.uniform
    radius, half, neck = u(0.18, 0.34), u(0.35, 0.6), u(0.07, 0.15)
    sides = int(rng.choice([0, 0, 0, 4, 6, 8]))
    top = half + u(0.1, 0.35)
    shape: shapes.Part = {"sides": sides, "rounding": 0.3, "bevel": u(0.03, 0.12)}
    parts = [
        shapes.turned((0, 0, 0), radius, half, profile=shapes.fit_profile([u(0.8, 1), 1.0, 1.0, u(0.7, 1)]), **shape),
        shapes.turned((0, 0, (half + top) / 2), neck, (top - half) / 2 + 0.1, blend=u(0.08, 0.25)),
        shapes.turned((0, 0, top + 0.06), neck * u(1.1, 1.5), u(0.05, 0.12), material=2),
    ]
    if rng.random() < 0.6:
        parts.append(
            shapes.turned(
                (0, 0, u(-0.15, 0.1)), radius * 1.02, half * u(0.25, 0.5), sides=sides, rounding=0.3, material=1
            )
        )
    return parts


def teapot(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a teapot, kettle or watering can with spout and handle in the plane of symmetry."""
    u = rng.uniform
    radius, squash = u(0.36, 0.5), u(0.7, 1.0)
    height = radius * squash
    tip = np.array([radius + u(0.22, 0.4), 0, u(0.1, 0.4)])
    side = rng.random() < 0.5
    turn = _ALONG_Y if side else shapes.frame((0, 1, 0))
    handle = (
        shapes.torus(
            (-radius * 1.05, 0, u(0, 0.08)), u(0.18, 0.25), u(0.045, 0.06), rotation=turn, material=rng.choice([0, 1])
        )
        if rng.random() < 0.8
        else shapes.torus(
            (0, 0, height * 0.9), radius * 0.75, 0.05, rotation=_ALONG_X if side else _ALONG_Y, material=1
        )
    )
    profile = shapes.fit_profile([u(0.7, 0.95), 1.0, u(0.7, 1.0)])
    body = (
        shapes.ellipsoid((0, 0, 0), (radius, radius, height), blend=0.03)
        if rng.random() < 0.6
        else shapes.turned((0, 0, 0), radius, height * 0.85, bevel=0.1, profile=profile, blend=0.03)
    )
    return [
        handle,
        body,
        shapes.capsule(
            (radius * 0.6, 0, -height * 0.25), tip, u(0.11, 0.15), u(0.05, 0.07), bend=u(-0.7, 0.2), blend=0.07
        ),
        shapes.ellipsoid(
            (0, 0, height * 0.85), (radius * 0.6, radius * 0.6, 0.1), blend=0.02, material=rng.choice([0, 1])
        ),
        shapes.ellipsoid((0, 0, height * 0.85 + 0.14), (0.07, 0.07, 0.06), blend=0.02, material=rng.choice([0, 1])),
        shapes.turned((0, 0, -height * 0.92), radius * 0.55, 0.06, blend=0.03),
    ]


def goblet(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a goblet, trophy, cake stand or candlestick."""
    u = rng.uniform
    bowl, cup, stem = u(0.22, 0.42), u(0.16, 0.35), u(0.15, 0.4)
    top = stem + 2 * cup
    profile = shapes.fit_profile([u(0.25, 0.6), u(0.8, 1), u(0.85, 1.05), u(0.8, 1.2)])
    parts = [
        shapes.turned((0, 0, 0), u(0.045, 0.08), stem + 0.05),
        shapes.turned((0, 0, -stem), u(0.2, 0.36), 0.045, blend=u(0.04, 0.15), material=rng.choice([0, 1])),
        shapes.turned((0, 0, stem + cup), bowl, cup, profile=profile, blend=u(0.02, 0.1)),
        _dish(bowl * shapes.scale_at(profile, 1.0) * 0.85, top, material=1),
    ]
    if rng.random() < 0.4:
        parts.append(shapes.ellipsoid((0, 0, u(-0.5, 0.6) * stem), (0.1, 0.1, 0.08), blend=0.04, material=1))
    if rng.random() < 0.35:
        turn = shapes.frame((1, 0, 0), _UP)
        parts.insert(0, shapes.torus((0, bowl, stem + cup), cup * 0.6, 0.045, rotation=turn, material=1, repeat=1))
    return parts
