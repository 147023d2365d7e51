"""Furniture, plants and food, upright, with their front at +x.

Materials: 0 main, 1 second, 2 accent, 3 near black.
"""

import numpy as np

from e3d_jax.data.synthetic import shapes

_UP = (0.0, 0.0, 1.0)
_ALONG_Y = shapes.frame((0, 1, 0), (1, 0, 0))
_ALONG_X = shapes.frame((1, 0, 0), (0, 0, 1))


def table(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a table or stool: a plate on legs or on a column."""
    u = rng.uniform
    long, wide, half = u(0.3, 0.75), u(0.3, 0.45), u(0.25, 0.5)
    thick, leg = u(0.035, 0.07), u(0.035, 0.07)
    around = rng.random() < 0.4
    top = (
        shapes.turned((0, 0, half), wide * 1.2, thick, sides=int(rng.choice([0, 0, 6, 8])))
        if around
        else shapes.box((0, 0, half), (wide, long, thick), u(0.005, 0.03))
    )
    if around and rng.random() < 0.5:
        column = shapes.turned((0, 0, 0), u(0.08, 0.16), half, profile=shapes.random_profile(rng), material=1)
        foot = shapes.turned((0, 0, -half), wide * u(0.6, 0.9), 0.05, material=1, blend=0.08)
        return [top, column, foot]
    splay = u(0.7, 1.0)
    x, y = (wide * 0.8, 0.0) if around else (wide - 0.09, long - 0.09)
    order = int(rng.integers(3, 6)) if around else 2
    legs = shapes.capsule((x * splay, y * splay, half), (x, y, -half), leg, leg * u(0.7, 1.0), material=1, repeat=order)
    parts = [top, legs]
    if not around and rng.random() < 0.6:
        parts.append(shapes.box((0, 0, half - 0.1), (wide - 0.08, long - 0.08, 0.07), material=1))
    if not around and rng.random() < 0.3:
        parts.append(shapes.box((0, 0, -half * u(0.2, 0.7)), (wide - 0.1, long - 0.1, 0.035), material=0))
    return parts


def chair(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a chair or armchair facing +x."""
    u = rng.uniform
    wide, deep, legs, back = u(0.26, 0.38), u(0.26, 0.36), u(0.2, 0.4), u(0.3, 0.6)
    thick, leg = u(0.04, 0.1), u(0.035, 0.055)
    parts = [
        shapes.box((0, 0, 0), (deep, wide, thick), u(0.01, 0.05)),
        shapes.box(
            (0.04 - deep, 0, back * 0.5),
            (0.05, wide, back * 0.5 + thick),
            u(0.01, 0.045),
            material=rng.choice([0, 1]),
            rotation=shapes.frame((-u(0, 0.2), 0, 1)),
        ),
    ]
    if rng.random() < 0.75:
        spread = u(1.0, 1.15)
        x, y = deep - leg, wide - leg
        parts.append(
            shapes.capsule((x, y, 0), (x * spread, y * spread, -legs), leg, leg * u(0.7, 1), material=1, repeat=2)
        )
    else:
        parts.append(shapes.box((0, 0, -legs / 2), (deep, wide, legs / 2), 0.03, material=1))
    style = rng.integers(3)
    if style == 0:
        parts.append(shapes.box((0, wide, 0.12), (deep, 0.06, 0.18), 0.03, material=rng.choice([0, 1]), repeat=1))
    elif style == 1:  # slots in the back
        slot = shapes.box((-deep, wide * 0.45, back * 0.55), (0.2, wide * 0.25, back * 0.28), cut=True, repeat=1)
        parts.insert(2, slot)
    return parts


def sofa(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a sofa, or a bed if it is low."""
    u = rng.uniform
    long, deep, seat, soft = u(0.45, 0.85), u(0.28, 0.4), u(0.1, 0.18), u(0.03, 0.09)
    return [
        shapes.box((0, 0, 0), (deep, long, seat), soft),
        shapes.box((-deep, 0, seat), (0.1, long + 0.05, seat + u(0.12, 0.3)), soft, blend=0.02),
        shapes.box((0, long, seat * 0.6), (deep, 0.1, seat + u(0.02, 0.12)), soft, blend=0.02, repeat=1),
        shapes.box((0.04, long * 0.5, seat + 0.05), (deep - 0.02, long * 0.47, 0.07), 0.05, material=1, repeat=1),
        shapes.turned((deep * 0.8, long * 0.9, -seat - 0.05), 0.05, 0.1, material=3, repeat=2),
    ]


def lamp(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a table lamp or lantern with a shade."""
    u = rng.uniform
    shade, tall, stem = u(0.28, 0.45), u(0.16, 0.3), u(0.2, 0.4)
    bell = shapes.fit_profile([1.0, u(0.6, 0.9), u(0.35, 0.8)])
    base = (
        shapes.turned((0, 0, -stem), u(0.16, 0.3), u(0.04, 0.07), material=1, blend=0.05)
        if rng.random() < 0.5
        else shapes.turned(
            (0, 0, -stem * 0.7), u(0.15, 0.28), stem * 0.5, profile=shapes.random_profile(rng), material=1
        )
    )
    return [
        shapes.turned((0, 0, 0), u(0.035, 0.06), stem + 0.1, material=1),
        base,
        shapes.turned((0, 0, stem + tall * 0.7), shade, tall, profile=bell, sides=int(rng.choice([0, 0, 0, 6, 8]))),
        shapes.turned((0, 0, stem - tall * 0.3), shade * 0.85, 0.04, cut=True),
        shapes.ellipsoid((0, 0, stem + tall * 1.75), (0.045, 0.045, 0.06), material=2),
    ]


def mushroom(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a mushroom or parasol."""
    u = rng.uniform
    cap, tall, stem = u(0.32, 0.55), u(0.15, 0.4), u(0.25, 0.45)
    return [
        shapes.turned((0, 0, 0), u(0.1, 0.2), stem, profile=shapes.random_profile(rng, 0.2), material=1, bevel=0.05),
        shapes.ellipsoid(
            (0, 0, stem), (cap, cap, tall), profile=shapes.fit_profile([1.0, 1.0, u(0.6, 1.1)]), blend=0.02
        ),
        shapes.turned((0, 0, stem - tall * 0.75), cap * 1.1, tall * 0.5, cut=True, material=1, blend=0.03, bevel=0.05),
        shapes.turned((0, 0, stem * 0.5), u(0.08, 0.13), stem * 0.9, material=1, blend=0.05),
    ]


def tree(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a conifer of stacked cones, or a round tree of blobs."""
    u = rng.uniform
    trunk = shapes.turned(
        (0, 0, -0.35), u(0.06, 0.12), u(0.2, 0.3), material=1, profile=np.array([0.9, -0.1, 0, 0, 0, 0])
    )
    parts = [trunk]
    if rng.random() < 0.5:
        levels, cone = rng.integers(1, 4), np.array([0.55, -0.45, 0, 0, 0, 0])
        for i in range(levels):
            half = u(0.2, 0.3) * (1.6 if levels == 1 else 1)
            parts.append(
                shapes.turned(
                    (0, 0, half + i * 0.27 - 0.25),
                    0.48 - 0.1 * i,
                    half,
                    profile=cone,
                    blend=0.02,
                    sides=int(rng.choice([0, 0, 6])),
                    bevel=0.03,
                )
            )
        return parts
    for i in range(rng.integers(1, 6)):
        # The first sits on the trunk.
        at, size = rng.normal((0, 0, 0.25), 0.16) if i else (0, 0, 0.1), u(0.22, 0.34)
        parts.append(shapes.ellipsoid(at, (size, size, size * u(0.8, 1.2)), blend=u(0.03, 0.12)))
    return parts


def fruit(rng: np.random.Generator) -> list[shapes.Part]:
    """Build an apple, pear, pumpkin, egg or acorn with a stalk."""
    u = rng.uniform
    radius, half = u(0.35, 0.5), u(0.35, 0.6)
    kind = rng.integers(3)
    stalk = shapes.capsule((0, 0, half * 0.8), (u(-0.08, 0.08), 0, half + u(0.08, 0.22)), 0.04, 0.035, material=1)
    if kind == 0:
        profile = np.array([0.85, u(-0.35, 0.25), 0, 0, 0, 0])
        body = [shapes.ellipsoid((0, 0, 0), (radius, radius, half), profile=profile)]
    elif kind == 1:  # lobes
        count = int(rng.integers(5, 10))
        lobe = shapes.ellipsoid(
            (radius * 0.55, 0, 0), (radius * 0.5, radius * 0.42, half * 0.8), repeat=count, blend=0.03
        )
        body = [shapes.ellipsoid((0, 0, 0), (radius * 0.7, radius * 0.7, half * 0.7)), lobe]
    else:  # a pear or gourd
        body = [
            shapes.ellipsoid((0, 0, -half * 0.3), (radius, radius, half * 0.75)),
            shapes.ellipsoid((0, 0, half * 0.45), (radius * u(0.4, 0.65),) * 2 + (half * 0.6,), blend=0.2),
        ]
    if rng.random() < 0.35:
        body.append(shapes.ellipsoid((0.12, 0, half + 0.03), (0.16, 0.08, 0.035), material=2))
    return [*body, stalk]


def banana(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a banana, croissant, pepper or carrot: one bent, tapered bar with tips."""
    u = rng.uniform
    half, thick, bend = u(0.5, 0.7), u(0.11, 0.2), u(0.0, 0.75)
    profile = shapes.fit_profile([u(0.3, 0.7), u(0.85, 1), 1.0, u(0.8, 1), u(0.3, 0.7)])
    side = rng.random() < 0.5
    lying = shapes.frame((0, 1, 0) if side else _UP, (0, 0, -1) if side else (0, 1, 0))
    core: shapes.Part = {"core": (0, 0, half - thick), "radius": (thick,) * 3, "bend": bend}
    sides = int(rng.choice([0, 5, 6]))
    if sides:
        bar = shapes.turned(
            (0, 0, 0), thick, half, sides=sides, rounding=0.5, bevel=0.07, rotation=lying, profile=profile, bend=bend
        )
    else:
        bar = shapes.part(rotation=lying, profile=profile, **core)
    # The bend moves a tip by bend * half^2 along the local x axis.
    across, along = lying[0], lying[2]
    parts = [bar]
    for end in (1, -1)[: rng.integers(1, 3)]:
        tip = across * bend * half**2 + along * end * half
        outward = along * end + across * 2 * bend * half
        outward = outward / np.linalg.norm(outward)
        parts.append(
            shapes.capsule(
                tip - outward * 0.03,
                tip + outward * u(0.02, 0.14),
                thick * 0.4,
                0.035,
                material=rng.choice([0, 1, 3]),
                blend=0.05,
            )
        )
    return parts


def sweet(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a cupcake, ice cream cone, donut or cake."""
    u = rng.uniform
    kind = rng.integers(4)
    if kind == 0:
        cup = shapes.turned(
            (0, 0, -0.2), 0.36, 0.22, profile=np.array([0.85, 0.15, 0, 0, 0, 0]), material=1, sides=9, rounding=0.6
        )
        tops = [
            shapes.ellipsoid((0, 0, 0.05 + 0.17 * i), (0.42 - 0.12 * i,) * 2 + (0.15,), blend=0.05) for i in range(3)
        ]
        return [cup, *tops, shapes.ellipsoid((0, 0, 0.55), (0.09,) * 3, material=2)]
    if kind == 1:
        cone = shapes.turned(
            (0, 0, -0.4), 0.28, 0.45, profile=np.array([0.58, 0.42, 0, 0, 0, 0]), material=1, bevel=0.03
        )
        count = rng.integers(1, 4)
        scoops = [
            shapes.ellipsoid((0, 0, 0.15 + 0.3 * i), (0.31 - 0.03 * i,) * 3, material=int(2 * (i % 2)), blend=0.03)
            for i in range(count)
        ]
        return [cone, *scoops]
    if kind == 2:
        ring, thick = u(0.3, 0.4), u(0.15, 0.22)
        turn = _ALONG_X if rng.random() < 0.7 else np.eye(3)
        dough = shapes.torus((0, 0, 0), ring, thick, material=1, rotation=turn)
        icing = shapes.torus(turn[2] * 0.05, ring, (thick * 0.97, 1.0, thick), rotation=turn)
        return [dough, icing]
    layers = [
        shapes.turned((0, 0, 0.3 * i), 0.5 - u(0.05, 0.14) * i, 0.16, material=i % 2, bevel=0.03)
        for i in range(rng.integers(1, 4))
    ]
    top = 0.3 * len(layers) - 0.1
    return [*layers, shapes.turned((0.25, 0, top), 0.04, u(0.08, 0.16), material=2, repeat=int(rng.integers(3, 9)))]


def shelf(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a cupboard, radio, oven or bookcase: a box with fronts, knobs or openings toward +x."""
    u = rng.uniform
    deep, wide, tall = u(0.2, 0.4), u(0.25, 0.55), u(0.25, 0.65)
    parts = [shapes.box((0, 0, 0), (deep, wide, tall), u(0.01, 0.06))]
    rows = int(rng.integers(1, 4))
    for i in range(rows):
        z, half = tall * (2 * (i + 0.5) / rows - 1), tall / rows * 0.8
        if rng.random() < 0.5:
            parts.append(shapes.box((deep, 0, z), (0.02, wide * 0.88, half), 0.01, material=1))
            parts.append(
                shapes.ellipsoid(
                    (deep + 0.03, u(0, 0.5) * wide, z), (0.045,) * 3, material=2, repeat=int(rng.integers(2))
                )
            )
        else:
            parts.append(shapes.box((deep, 0, z), (0.08, wide * 0.85, half), 0.01, material=1, cut=True))
    if rng.random() < 0.5:
        parts.append(
            shapes.capsule(
                (deep - 0.08, wide - 0.08, -tall),
                (deep - 0.06, wide - 0.06, -tall - u(0.08, 0.3)),
                0.05,
                0.04,
                material=2,
                repeat=2,
            )
        )
    return parts
