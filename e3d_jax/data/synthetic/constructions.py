"""Vehicles and buildings, upright, with their front at +x.

Materials: 0 main, 1 second, 2 accent, 3 near black.
"""

import numpy as np

from e3d_jax.data.synthetic import shapes

_ALONG_Y = shapes.frame((0, 1, 0), (1, 0, 0))
_ALONG_X = shapes.frame((1, 0, 0), (0, 0, 1))


def _wheels(x: float, wide: float, z: float, radius: float) -> shapes.Part:
    return shapes.turned((x, wide, z), radius, 0.07, rotation=_ALONG_Y, material=3, repeat=1, bevel=0.03)


def car(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a car, van, bus or truck heading to +x."""
    u = rng.uniform
    long, wide, tall = u(0.5, 0.8), u(0.24, 0.34), u(0.12, 0.2)
    cabin, roof, back = long * u(0.35, 0.6), u(0.1, 0.22), u(-0.3, 0.05) * long
    wheel, soft = u(0.11, 0.17), u(0.02, 0.1)
    slant = np.array([0.9, -u(0, 0.25), 0, 0, 0, 0])
    parts = [
        shapes.box((0, 0, 0), (long, wide, tall), soft),
        shapes.box((back, 0, tall + roof * 0.8), (cabin, wide * 0.92, roof), 0.03, material=1, profile=slant),
        shapes.box((back, 0, tall + roof * 1.75), (cabin * (0.85 + slant[1]), wide * (0.85 + slant[1]), 0.04), 0.03),
        _wheels(long * 0.6, wide, -tall, wheel),
        _wheels(-long * 0.6, wide, -tall, wheel),
        shapes.ellipsoid((long, wide * 0.65, 0.03), (0.04, 0.06, 0.05), material=2, repeat=1),
    ]
    if rng.random() < 0.3:
        parts.append(shapes.box((-long * 0.4, 0, tall + roof), (long * 0.55, wide, roof * 1.4), soft, material=2))
    if rng.random() < 0.3:
        parts.append(shapes.box((long, 0, -tall * 0.6), (0.06, wide * 0.95, 0.04), 0.03, material=3))
    return parts


def train(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a steam engine or tractor."""
    u = rng.uniform
    boiler, long, wheel = u(0.17, 0.26), u(0.35, 0.55), u(0.12, 0.18)
    return [
        shapes.turned((0.1, 0, 0), boiler, long, rotation=_ALONG_X),
        shapes.box((-long * 0.8, 0, 0.12), (0.2, boiler * 1.25, boiler + 0.15), 0.02, material=1),
        shapes.box((-long * 0.8, 0, boiler + 0.3), (0.26, boiler * 1.45, 0.04), 0.02, material=2),
        shapes.turned(
            (long * 0.7, 0, boiler + 0.1), 0.07, u(0.12, 0.22), profile=np.array([1, u(0, 0.4), 0, 0, 0, 0]), material=2
        ),
        shapes.box((0, 0, -boiler * 0.9), (long + 0.15, boiler * 1.1, 0.06), 0.02, material=3),
        _wheels(long * 0.75, boiler, -boiler, wheel),
        _wheels(long * 0.1, boiler, -boiler, wheel),
        _wheels(-long * 0.8, boiler, -boiler * 0.9, wheel * u(1.0, 1.6)),
        shapes.ellipsoid((long * 0.15, 0, boiler), (0.1, 0.1, 0.1), material=2),
    ]


def plane(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a plane, or an upright rocket."""
    u = rng.uniform
    long, thick, span = u(0.55, 0.75), u(0.11, 0.2), u(0.45, 0.75)
    if rng.random() < 0.4:
        count = int(rng.integers(3, 6))
        return [
            shapes.ellipsoid(
                (0, 0, 0), (thick * 1.5, thick * 1.5, long), profile=np.array([1.0, u(-0.3, 0.1), 0, 0, 0, 0])
            ),
            shapes.box((thick * 1.5, 0, -long * 0.7), (0.17, 0.035, 0.2), 0.02, material=1, repeat=count, twist=0.0),
            shapes.turned((0, 0, -long), thick, 0.1, material=3, profile=np.array([0.85, -0.15, 0, 0, 0, 0])),
            shapes.torus((thick * 1.35, 0, long * 0.25), 0.09, 0.035, rotation=_ALONG_X, material=2),
            shapes.ellipsoid((thick * 1.3, 0, long * 0.25), (0.05, 0.09, 0.09), material=3),
            shapes.capsule((0, 0, long * 0.9), (0, 0, long + 0.15), 0.06, 0.035, material=2, blend=0.05),
        ]
    sweep = u(-0.25, 0.05)
    high = u(-0.06, 0.12)
    return [
        shapes.capsule((-long, 0, 0.04), (long, 0, 0), thick * 0.6, thick, blend=0.03),
        shapes.capsule(
            (0.1, 0, high),
            (0.1 + sweep, span, high + u(0, 0.1)),
            0.16,
            0.1,
            material=1,
            blend=0.04,
            repeat=1,
            aspect=1.0,
        )
        | {"radius": np.array([0.16, 0.04, 0.1])},
        shapes.ellipsoid((-long * 0.95, 0, 0.22), (0.14, 0.04, 0.2), material=1, blend=0.04),
        shapes.ellipsoid((-long * 0.95, 0.12, 0.06), (0.12, 0.22, 0.035), material=1, blend=0.03, repeat=1),
        shapes.ellipsoid((long * 0.45, 0, thick * 0.8), (0.2, 0.1, 0.1), material=3, blend=0.02),
        shapes.capsule(
            (0.05, span * 0.5, high - 0.08), (0.25, span * 0.5, high - 0.08), 0.07, 0.07, material=2, repeat=1
        ),
    ]


def boat(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a boat or ship heading to +x."""
    u = rng.uniform
    long, wide, deep = u(0.55, 0.8), u(0.2, 0.32), u(0.14, 0.24)
    parts = [
        shapes.ellipsoid((0, 0, 0), (long, wide, deep * 1.5)),
        shapes.box((0, 0, deep), (1.2, 0.6, deep), 0.02, cut=True, material=1),
        shapes.box((u(-0.3, 0.1), 0, 0.06), (u(0.15, 0.3), wide * 0.6, u(0.08, 0.2)), 0.03, material=2),
        shapes.turned((u(-0.1, 0.1), 0, 0.35), u(0.04, 0.09), u(0.25, 0.5), material=1),
    ]
    if rng.random() < 0.5:
        sail = shapes.turned(
            (0.05, 0, 0.5), 0.4, 0.42, sides=4, aspect=1.0, material=2, profile=np.array([0.55, -0.4, 0, 0, 0, 0])
        )
        parts.append(
            sail | {"section": np.array([1.0, 0, 0, 1]), "core": np.array([0.38, 0.03, 0.4]), "fold": np.zeros((2, 2))}
        )
    return parts


def house(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a house, barn, church or tent with its door at +x."""
    u = rng.uniform
    deep, wide, tall, roof = u(0.3, 0.45), u(0.3, 0.5), u(0.2, 0.4), u(0.18, 0.38)
    ridge = rng.random() < 0.6
    prism = np.array([0.55, -0.45, 0, 0, 0, 0])
    eave = 1.15
    if ridge:
        # A square bar on its edge, squeezed in height; its lower half disappears inside the walls.
        cap = shapes.turned((0, 0, tall), roof, deep * eave, sides=4, bevel=0.015, material=1, rotation=_ALONG_X)
        cap["aspect"] = np.array(min(roof / (wide * eave), 1.0))
        cap["fold"] = shapes.mirror_lines(2)
        cap["section"] = np.array([1.0, 1.0, 0, 0]) / np.sqrt(2)
        cap["core"] = np.array([roof / np.sqrt(2), 10.0, deep * eave - 0.015])
    else:
        cap = shapes.box((0, 0, tall + roof), (deep * eave, wide * eave, roof), 0.02, material=1, profile=prism)
    parts = [
        cap,
        shapes.box((0, 0, 0), (deep, wide, tall), 0.01),
        shapes.box((deep, u(-0.1, 0.1), -tall * 0.45), (0.03, 0.09, tall * 0.55), 0.01, material=2),
        shapes.box((deep, wide * 0.6, tall * 0.2), (0.02, 0.08, 0.09), 0.01, material=3, repeat=1),
        shapes.box((0, wide, tall * 0.1), (deep * 0.4, 0.02, 0.1), 0.01, material=3, repeat=1),
    ]
    if rng.random() < 0.5:
        parts.append(
            shapes.box((-deep * 0.5, wide * 0.5, tall + roof * 0.6), (0.07, 0.07, roof * 0.7), 0.01, material=2)
        )
    if rng.random() < 0.3:
        parts.append(shapes.box((deep * 0.6, 0, tall * 0.7), (0.15, 0.15, tall * 1.5), 0.01))
        parts.append(
            shapes.box((deep * 0.6, 0, tall * 2.2 + 0.15), (0.19, 0.19, 0.17), 0.01, material=1, profile=prism)
        )
    return parts


def castle(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a tower, castle, lighthouse or pagoda."""
    u = rng.uniform
    radius, tall = u(0.2, 0.32), u(0.4, 0.65)
    cone = np.array([0.55, -0.45, 0, 0, 0, 0])
    sides = int(rng.choice([0, 0, 4, 6, 8]))
    parts = [
        shapes.turned((0, 0, 0), radius, tall, sides=sides, profile=np.array([0.9, -u(0, 0.2), 0, 0, 0, 0])),
        shapes.turned((0, 0, tall), radius * u(0.95, 1.3), u(0.05, 0.1), sides=sides, material=1),
        shapes.box((radius * 0.95, 0, -tall * 0.75), (0.09, 0.08, tall * 0.22), 0.02, material=3),
        shapes.ellipsoid((radius * 0.9, 0, tall * 0.4), (0.07, 0.05, 0.08), material=3),
    ]
    if rng.random() < 0.6:
        parts.append(shapes.turned((0, 0, tall + 0.25), radius * 1.3, 0.25, sides=sides, profile=cone, material=2))
    else:
        parts.append(
            shapes.box((radius, 0, tall + 0.1), (0.08, 0.06, 0.08), material=1, repeat=int(rng.integers(4, 9)))
        )
    if rng.random() < 0.4:
        far, low = radius + u(0.15, 0.3), -tall * 0.4
        order = int(rng.choice([2, 3, 4]))
        y = far if order == 2 else 0.0
        parts.append(shapes.turned((far, y, low), 0.13, tall * 0.6, repeat=order))
        parts.append(
            shapes.turned((far, y, low + tall * 0.6 + 0.14), 0.17, 0.15, profile=cone, material=2, repeat=order)
        )
        parts.append(shapes.box((0, 0, -tall * 0.65), (far, far, tall * 0.3), 0.02))
    return parts
