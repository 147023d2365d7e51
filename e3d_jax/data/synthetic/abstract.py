"""Machine parts, tools, and free compositions of primitives as in Zeroverse (Xie et al. 2024, arXiv 2406.09371).

Materials: 0 main, 1 second, 2 accent, 3 near black.
"""

import numpy as np

from e3d_jax.data.synthetic import shapes

_ALONG_X = shapes.frame((1, 0, 0), (0, 0, 1))
_ALONG_Y = shapes.frame((0, 1, 0), (1, 0, 0))


def machine(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a bracket, flange, gear, pulley or valve: crisp solids, through holes and bolts."""
    u = rng.uniform
    kind = rng.integers(4)
    count = int(rng.integers(3, 9))
    if kind == 0:  # flange
        wide, hub = u(0.4, 0.5), u(0.16, 0.26)
        parts = [
            shapes.turned(
                (0, 0, 0), wide, u(0.06, 0.14), sides=int(rng.choice([0, 0, 4, 6])), rounding=0.3, bevel=0.015
            ),
            shapes.turned((0, 0, 0.15), hub, u(0.2, 0.4), blend=u(0.001, 0.08), bevel=0.015),
            shapes.turned((0, 0, 0), hub * 0.6, 2.0, cut=True, material=1),
            shapes.turned((wide * 0.75, 0, 0), u(0.05, 0.08), 1.0, cut=bool(rng.integers(2)), repeat=count, material=1)
            if rng.random() < 0.5
            else shapes.turned((wide * 0.75, 0, 0.1), 0.07, 0.08, sides=6, repeat=count, material=1),
        ]
    elif kind == 1:  # gear
        radius, half = u(0.32, 0.4), u(0.07, 0.2)
        parts = [
            shapes.turned((0, 0, 0), radius, half, bevel=0.01),
            shapes.box((radius, 0, 0), (0.1, radius * u(0.9, 1.3) / count, half), 0.015, repeat=count),
            shapes.turned((0, 0, 0), u(0.1, 0.2), half + u(0.02, 0.2), material=1),
            shapes.turned((0, 0, 0), 0.07, 2.0, cut=True, material=3),
        ]
    elif kind == 2:  # bracket
        long, wide, tall, thick = u(0.35, 0.55), u(0.2, 0.4), u(0.3, 0.6), u(0.05, 0.1)
        parts = [
            shapes.box((0, 0, 0), (long, wide, thick), 0.012),
            shapes.box((thick - long, 0, tall), (thick, wide, tall), 0.012, blend=u(0.001, 0.1)),
            shapes.turned((0, 0, tall * 1.2), wide * u(0.35, 0.6), 2.0, cut=True, rotation=_ALONG_X, material=1),
            shapes.turned((long * 0.6, wide * 0.5, 0), 0.07, 0.5, cut=True, repeat=1),
        ]
        if rng.random() < 0.5:
            rib = shapes.box(
                (-long * 0.3, 0, tall * 0.4), (long * 0.5, thick, tall * 0.4), 0.01, blend=0.03, material=0
            )
            parts.insert(2, rib)
    else:  # pipe fitting
        bore, flange = u(0.14, 0.22), u(0.05, 0.08)
        reach = u(0.4, 0.55)
        parts = [
            shapes.turned((0, 0, 0), bore, reach, rotation=_ALONG_Y),
            shapes.turned((0, 0, reach * 0.5), bore, reach * 0.5, blend=u(0.01, 0.1)),
            shapes.turned((0, reach, 0), bore * 1.5, flange, rotation=_ALONG_Y, material=1, repeat=1),
            shapes.turned((0, 0, reach), bore * 1.5, flange, material=1, sides=int(rng.choice([0, 6]))),
            shapes.turned((0, 0, 0), bore * 0.7, 2.0, rotation=_ALONG_Y, cut=True, material=2),
        ]
    return parts


def turn_all(parts: list[shapes.Part], local_from_object: np.ndarray) -> list[shapes.Part]:
    """Return unrepeated parts rotated together about the origin."""
    return [
        p | {"rotation": p["rotation"] @ local_from_object, "center": local_from_object.T @ np.asarray(p["center"])}
        for p in parts
    ]


def tool(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a hammer, dumbbell, spoon, brush, key or flashlight, upright or lying."""
    u = rng.uniform
    grip, half = u(0.05, 0.09), u(0.4, 0.65)
    profile = shapes.random_profile(rng, 0.15)
    parts = [shapes.turned((0, 0, 0), grip, half, profile=profile, material=1, bevel=0.03)]
    kind = rng.integers(5)
    if kind == 0:
        parts.append(
            shapes.turned((0, 0, half), u(0.1, 0.16), u(0.2, 0.32), rotation=_ALONG_Y, sides=int(rng.choice([0, 4, 8])))
        )
    elif kind == 1:
        weight = u(0.18, 0.3)
        parts += [shapes.turned((0, 0, z), weight, 0.12, sides=int(rng.choice([0, 6]))) for z in (half, -half)]
    elif kind == 2:
        parts.append(shapes.ellipsoid((0, 0, half + 0.15), (u(0.05, 0.08), u(0.14, 0.22), u(0.18, 0.26)), blend=0.08))
    elif kind == 3:
        parts.append(shapes.torus((0, 0, half + 0.15), 0.18, 0.05, rotation=_ALONG_X, blend=0.03))
        parts.append(shapes.box((0, 0.1, -half * 0.8), (0.05, 0.1, 0.05), 0.01))
    else:
        parts.append(
            shapes.turned((0, 0, half), u(0.15, 0.25), 0.18, profile=np.array([0.75, 0.25, 0, 0, 0, 0]), blend=0.05)
        )
        parts.append(shapes.turned((0, 0, half + 0.17), 0.12, 0.04, material=2))
    return turn_all(parts, (np.eye(3), _ALONG_Y)[rng.integers(2)])


def _random_part(rng: np.random.Generator, at: np.ndarray, size: float, **pose) -> shapes.Part:
    u = rng.uniform
    kind = rng.integers(7)
    a, b, c = size * rng.uniform(0.5, 1.3, 3)
    twist = u(-1.5, 1.5) / size if rng.random() < 0.25 else 0.0
    bend = u(-0.6, 0.6) / size if rng.random() < 0.25 else 0.0
    profile = shapes.random_profile(rng) if rng.random() < 0.4 else None
    if kind == 0:
        return shapes.ellipsoid(at, (a, b, c), bend=bend, **pose)
    if kind == 1:
        warp = {"profile": profile} if profile is not None else {}
        return shapes.box(
            at, (a * 0.8, b * 0.8, c * 0.8), size * u(0.05, 0.5), twist=twist * 0.6, bend=bend, **warp, **pose
        )
    if kind == 2:
        return shapes.part(at=at, core=(0, 0, c), radius=(a * 0.5,) * 3, bend=bend, **pose)
    if kind == 3:
        return shapes.torus(at, size * 0.75, max(size * u(0.2, 0.4), 0.045), **pose)
    sides = 0 if kind == 4 else int(rng.integers(3, 8))
    star = u(0.5, 1.5) if kind == 6 and sides > 4 else 0.0
    return shapes.turned(
        at,
        a * 0.8,
        b,
        sides=sides,
        star=star,
        bevel=size * u(0.05, 0.25),
        profile=profile,
        twist=twist if sides else 0.0,
        **pose,
    )


def blocks(rng: np.random.Generator) -> list[shapes.Part]:
    """Build random primitives in random poses, smooth or sharp, most of them mirrored in y, some cut away."""
    u = rng.uniform
    count = int(rng.integers(2, 8))
    smooth, mirrored = rng.random() < 0.5, rng.random() < 0.7
    parts: list[shapes.Part] = []
    at = np.zeros(3)
    for i in range(count):
        # Each part starts near the skin of the first one, so few of them float free.
        size = u(0.3, 0.42) if i == 0 else u(0.12, 0.32)
        if i:
            at = rng.normal(size=3)
            at *= u(0.25, 0.4) / np.linalg.norm(at)
            at[1] = abs(at[1]) if mirrored else at[1]
        turned = shapes.frame(rng.normal(size=3), rng.normal(size=3)) if rng.random() < 0.4 else np.eye(3)
        pose = {
            "rotation": turned if i or rng.random() < 0.5 else np.eye(3),
            "blend": u(0.04, 0.2) if smooth else 1e-3,
            "cut": bool(i > 1 and rng.random() < 0.12),
            "material": int(rng.choice([0, 0, 1, 2])),
            "repeat": int(mirrored and i > 0),
        }
        parts.append(_random_part(rng, at, size, **pose))
    return parts


def rosette(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a radially symmetric ornament: a core with parts repeated around it."""
    u = rng.uniform
    order = int(rng.integers(2, 8))
    parts = [_random_part(rng, np.zeros(3), u(0.25, 0.4), blend=0.05)]
    for _ in range(rng.integers(1, 4)):
        at = np.array([u(0.15, 0.38), 0, u(-0.3, 0.3)])
        tilted = shapes.frame((u(-1, 1), 0, u(0.2, 1)))
        parts.append(
            _random_part(
                rng, at, u(0.1, 0.25), repeat=order, rotation=tilted, blend=u(0.001, 0.1), material=int(rng.integers(3))
            )
        )
    return parts


def totem(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a stack of turned pieces and prisms along z: chess pieces, spinning tops, pillars."""
    u = rng.uniform
    parts: list[shapes.Part] = []
    z, smooth = 0.0, rng.random() < 0.5
    for _ in range(rng.integers(2, 6)):
        half, radius = u(0.05, 0.28), u(0.12, 0.42)
        blend, material = (u(0.02, 0.1) if smooth else 1e-3), int(rng.choice([0, 0, 0, 1, 2]))
        if rng.random() < 0.3:
            parts.append(
                shapes.ellipsoid((0, 0, z + half), (radius, radius, half * 1.1), blend=blend, material=material)
            )
        else:
            parts.append(
                shapes.turned(
                    (0, 0, z + half),
                    radius,
                    half + 0.01,
                    profile=shapes.random_profile(rng, 0.25),
                    blend=blend,
                    material=material,
                    sides=int(rng.choice([0, 0, 0, 4, 6, 8])),
                    bevel=u(0.01, 0.06),
                )
            )
        z += 2 * half
    return [p | {"center": np.asarray(p["center"]) - [0, 0, z / 2]} for p in parts]


def blob(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a smooth lump: a chain of ellipsoids grown from one another, with or without a mirror plane."""
    u = rng.uniform
    mirrored = int(rng.random() < 0.6)
    at, parts = np.zeros(3), []
    for i in range(rng.integers(3, 9)):
        size = rng.uniform(0.12, 0.34, 3)
        turned = shapes.frame(rng.normal(size=3))
        parts.append(
            shapes.ellipsoid(
                at,
                size,
                rotation=turned,
                blend=u(0.08, 0.25),
                repeat=mirrored if i else 0,
                material=int(rng.random() < 0.2),
            )
        )
        root = np.asarray(parts[rng.integers(len(parts))]["center"])
        at = np.clip(root + rng.normal(0, 0.22, 3), -0.8, 0.8)
        at[1] = abs(at[1]) if mirrored else at[1]
    return parts
