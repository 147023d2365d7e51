"""Standing figures, mirror-symmetric in y, facing +x.

Materials: 0 body or clothes, 1 head or hat, 2 accent, 3 near black (eyes, shoes, hair).
"""

import numpy as np

from e3d_jax.data.synthetic import shapes


def figure(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a standing toy figure: doll, robot, gingerbread man."""
    u = rng.uniform
    square = rng.random() < 0.35
    waist, shoulder, torso = u(0.16, 0.3), u(0.18, 0.32), u(0.22, 0.38)
    head, legs, arm = u(0.16, 0.32), u(0.2, 0.5), u(0.07, 0.11)
    depth, blend = u(0.13, 0.2), 1e-3 if square else u(0.03, 0.1)
    top = torso + head * u(0.85, 1.0)
    hand = np.array([u(0, 0.2), shoulder + u(0.1, 0.4), u(-torso, torso * 1.3)])
    leg = min(u(0.08, 0.13), waist * 0.6)
    if square:
        trunk = shapes.box((0, 0, 0), (depth, (waist + shoulder) / 2, torso), 0.03)
        skull = shapes.box((0, 0, top), (head * 0.8, head, head * 0.8), u(0.02, 0.1), material=1)
    else:
        profile = np.array([1.0, (shoulder - waist) / (shoulder + waist), 0, 0, 0, 0])
        trunk = shapes.turned(
            (0, 0, 0),
            (waist + shoulder) / 2,
            torso,
            bevel=0.12,
            aspect=0.7,
            profile=profile,
            rotation=shapes.frame((0, 0, 1), (0, 1, 0)),
        )
        skull = shapes.ellipsoid((0, 0, top), (head, head * u(0.85, 1.1), head), material=1, blend=0.02)
    parts = [
        trunk,
        skull,
        shapes.capsule(
            (0, shoulder * 0.9, torso * 0.75),
            hand,
            arm,
            arm * u(0.7, 1.1),
            blend=blend,
            repeat=1,
            material=int(rng.choice([0, 1])),
        ),
        shapes.capsule(
            (0, waist * 0.5, -torso * 0.8),
            (0, waist * u(0.5, 0.9), -torso - legs),
            leg,
            leg * u(0.8, 1.2),
            blend=blend,
            material=2,
            repeat=1,
        ),
        shapes.ellipsoid((0.07, waist * 0.75, -torso - legs), (0.17, 0.1, 0.07), material=3, blend=0.02, repeat=1),
        shapes.eyes((head * (0.82 if square else 0.88), head * 0.38, top + head * 0.15), head * u(0.12, 0.2)),
    ]
    extra = rng.integers(4)
    if extra == 0:
        parts.append(
            shapes.turned(
                (0, 0, top + head * 0.95),
                head * 0.7,
                head * 0.5,
                material=2,
                profile=np.array([0.6, -u(0, 0.5), 0, 0, 0, 0]),
            )
        )
        parts.append(shapes.turned((0, 0, top + head * 0.55), head * u(1, 1.4), 0.04, material=2))
    elif extra == 1:
        parts.append(
            shapes.ellipsoid((-head * 0.2, 0, top + head * 0.2), (head, head * 1.08, head), material=3, blend=0.02)
        )
    elif extra == 2:
        parts.append(
            shapes.turned(
                (0, 0, -torso),
                waist * 1.7,
                torso * 0.7,
                material=2,
                bevel=0.03,
                profile=np.array([0.75, -0.25, 0, 0, 0, 0]),
            )
        )
    if rng.random() < 0.5:
        parts.append(shapes.ellipsoid((head * 0.95, 0, top - head * 0.1), (0.06, 0.05, 0.05), material=2))
    return parts


def snowman(rng: np.random.Generator) -> list[shapes.Part]:
    """Build stacked balls with a face, a hat and arms."""
    u = rng.uniform
    low, middle, head = u(0.34, 0.42), u(0.25, 0.33), u(0.18, 0.26)
    z1 = low * 0.7 + middle * 0.7
    z2 = z1 + middle * 0.7 + head * 0.7
    return [
        shapes.ellipsoid((0, 0, 0), (low, low, low * 0.95)),
        shapes.ellipsoid((0, 0, z1), (middle,) * 3, blend=0.04),
        shapes.ellipsoid((0, 0, z2), (head,) * 3, blend=0.03),
        shapes.eyes((head * 0.85, head * 0.38, z2 + head * 0.3), 0.04),
        shapes.capsule((head * 0.8, 0, z2), (head + u(0.1, 0.25), 0, z2), 0.06, 0.03, material=2),
        shapes.turned((0, 0, z2 + head * 0.7), head * u(1.1, 1.5), 0.04, material=1),
        shapes.turned((0, 0, z2 + head * 1.1), head * u(0.6, 0.9), head * u(0.4, 0.7), material=1),
        shapes.torus((0, 0, z1 + middle * 0.75), head * 0.75, 0.07, material=2),
        shapes.capsule(
            (0, middle * 0.8, z1), (u(-0.1, 0.2), middle + 0.3, z1 + u(-0.2, 0.3)), 0.045, 0.035, material=3, repeat=1
        ),
        shapes.ellipsoid((middle * 0.97, 0, z1 + 0.08), (0.04, 0.04, 0.04), material=3),
        shapes.ellipsoid((low * 0.98, 0, 0.1), (0.04, 0.04, 0.04), material=3),
    ]
