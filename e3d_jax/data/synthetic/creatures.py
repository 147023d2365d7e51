"""Animals: smooth unions along a body axis, mirror-symmetric in y, facing +x.

Materials: 0 body, 1 second coat, 2 accent (beak, horns, nose), 3 near black (eyes).
"""

import numpy as np

from e3d_jax.data.synthetic import shapes

_DARK = 3


def quadruped(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a four-legged animal: from pig to giraffe, by proportions."""
    u = rng.uniform
    length, thick, legs = u(0.35, 0.65), u(0.17, 0.32), u(0.15, 0.6)
    leg, blend, coat = u(0.06, 0.11), u(0.05, 0.14), int(rng.random() < 0.25)
    hip, chest = thick * u(0.8, 1.05), thick * u(0.85, 1.1)
    head = u(0.13, 0.22)
    lift, reach = u(0.05, 0.55), u(0.1, 0.35)
    nape = np.array([length + reach, 0, lift + thick * 0.5])
    snout, drop = head * u(0.7, 1.6), head * u(0.1, 0.8)
    nose = np.add(nape, (snout, 0, -drop))
    stance, wide = u(-0.06, 0.06), thick * u(0.45, 0.7)
    floor, foot = -thick * 0.5 - legs, u(0.8, 1.25)
    parts = [
        shapes.capsule((-length, 0, 0), (length, 0, u(-0.05, 0.1)), hip, chest),
        shapes.capsule((length * 0.85, 0, 0.05), nape, chest * u(0.55, 0.8), head * u(0.7, 0.95), blend=blend),
        shapes.ellipsoid(nape, (head * u(1, 1.2), head * u(0.8, 1), head), blend=blend),
        shapes.capsule(nape, nose, head * 0.8, head * u(0.45, 0.7), blend=blend, material=coat),
        shapes.capsule(
            (length * 0.85 + stance, wide, -0.1),
            (length * 0.85, wide, floor),
            leg * u(1, 1.5),
            leg * foot,
            blend=blend,
            material=coat,
            repeat=1,
        ),
        shapes.capsule(
            (-length * 0.9, wide, -0.05),
            (-length * u(0.85, 1.05), wide, floor),
            leg * u(1.2, 1.9),
            leg * foot,
            blend=blend,
            material=coat,
            repeat=1,
        ),
        shapes.eyes((nape[0] + head * 0.6, head * 0.68, nape[2] + head * 0.35), head * u(0.16, 0.24)),
    ]
    ear, spread = u(0.08, 0.4) * rng.choice([0.6, 1.0]), u(0.2, 1.1)
    root = np.add(nape, (-head * 0.2, head * 0.6, head * 0.6))
    tip = root + ear * np.array([u(-0.5, 0.2), spread * 0.6, 1 - 0.6 * spread])
    axis = tip - root
    parts.append(
        shapes.ellipsoid(
            (root + tip) / 2,
            (0.035 + ear * 0.08, ear * u(0.25, 0.45) + 0.02, ear * 0.65 + 0.03),
            blend=0.03,
            rotation=shapes.frame(axis),
            material=coat,
            repeat=1,
        )
    )
    tail = u(0.1, 0.6)
    start = np.array([-length - hip * 0.7, 0, hip * 0.4])
    end = start + tail * np.array([-u(0.3, 1), 0, u(-0.9, 0.8)])
    if rng.random() < 0.2:
        parts.append(shapes.ellipsoid(start, (0.1, 0.1, 0.1), blend=0.03, material=1))
    else:
        bend = u(-0.8, 0.8)
        parts.append(shapes.capsule(start, end, u(0.04, 0.09), u(0.03, 0.08), blend=0.05, bend=bend))
    if rng.random() < 0.3:
        horn = np.add(root, (0, -head * 0.3, 0))
        end = horn + u(0.12, 0.3) * np.array([u(-0.5, 0.5), u(0.1, 0.8), 1])
        parts.append(shapes.capsule(horn, end, 0.05, 0.03, bend=u(-1, 1), material=2, repeat=1))
    if rng.random() < 0.3:
        parts.append(
            shapes.ellipsoid(np.add(nose, (head * 0.3, 0, 0.02)), (0.05, 0.07, 0.05), material=_DARK, blend=0.02)
        )
    if rng.random() < 0.35:
        crest = (
            shapes.capsule(
                np.add(nape, (-0.1, 0, head)), (length * 0.5, 0, thick * 0.9), 0.06, 0.09, blend=0.05, material=1
            )
            if rng.random() < 0.5
            else shapes.ellipsoid((u(-0.3, 0.1), 0, thick * 0.8), (u(0.15, 0.3), thick * 0.6, u(0.1, 0.3)), blend=0.12)
        )
        parts.append(crest)
    return parts


def sitter(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a sitting animal or plush toy: rabbit, cat, bear, mouse."""
    u = rng.uniform
    width, height = u(0.3, 0.45), u(0.35, 0.55)
    head, blend = u(0.24, 0.38), u(0.04, 0.12)
    top = height * 0.85 + head * 0.7
    lean, depth = u(-0.05, 0.2), u(0.85, 1.5)
    center = np.array([lean + 0.05, 0, top])
    coat = int(rng.random() < 0.4)
    parts = [
        shapes.ellipsoid(
            (-0.05 * depth, 0, 0), (width * depth, width, height), profile=np.array([0.95, -u(0, 0.2), 0, 0, 0, 0])
        ),
        shapes.ellipsoid(center, (head * u(0.9, 1.15), head * u(0.9, 1.1), head * u(0.85, 1)), blend=blend),
        shapes.ellipsoid(
            np.add(center, (head * 0.75, 0, -head * 0.2)),
            (head * u(0.3, 0.7), head * 0.45, head * 0.36),
            blend=0.06,
            material=coat,
        ),
        shapes.ellipsoid(
            np.add(center, (head * 1.15, 0, -head * 0.02)), (0.05, 0.06, 0.045), material=rng.choice([2, 3])
        ),
        shapes.eyes((center[0] + head * 0.78, head * 0.42, top + head * 0.25), head * u(0.1, 0.18)),
        shapes.capsule(
            (width * 0.3, width * 0.75, -height * 0.75),
            (width * 0.9 + u(0, 0.3), width * u(0.7, 1), -height * 0.85),
            u(0.1, 0.17),
            u(0.09, 0.13),
            blend=0.05,
            repeat=1,
        ),
        shapes.capsule(
            (lean, width * 0.75, height * 0.45),
            (width * depth * u(0.7, 1.2), width * u(0.5, 1), -u(0, 0.35)),
            u(0.07, 0.12),
            u(0.07, 0.1),
            blend=0.05,
            repeat=1,
        ),
    ]
    kind = rng.integers(3)
    if kind == 0:  # long ears
        root = np.add(center, (-0.05, head * 0.4, head * 0.75))
        tip = root + u(0.25, 0.6) * np.array([u(-0.8, 0.1), u(0, 0.5), 1])
        parts.append(shapes.capsule(root, tip, u(0.06, 0.09), u(0.05, 0.08), aspect=u(0.5, 1), blend=0.04, repeat=1))
    elif kind == 1:  # round ears
        size = u(0.1, 0.22)
        parts.append(
            shapes.ellipsoid(np.add(center, (0, head * 0.75, head * 0.75)), (0.06, size, size), blend=0.03, repeat=1)
        )
    else:  # pointed ears
        cone = np.array([0.55, -0.4, 0, 0, 0, 0])
        parts.append(
            shapes.ellipsoid(
                np.add(center, (0, head * 0.6, head * 0.85)),
                (0.1, 0.17, u(0.18, 0.3)),
                profile=cone,
                blend=0.03,
                repeat=1,
            )
        )
    back = (-width * depth, 0, -height * 0.6)
    if rng.random() < 0.5:
        parts.append(shapes.ellipsoid(back, (u(0.1, 0.16),) * 3, blend=0.03, material=1))
    else:
        end = (-width * depth - u(0.2, 0.4), 0, u(-height * 0.6, height * 0.4))
        parts.append(shapes.capsule(back, end, 0.08, u(0.05, 0.1), bend=u(-1, 1), blend=0.05))
    if rng.random() < 0.4:
        parts.append(
            shapes.ellipsoid(
                (width * depth * 0.55, 0, -0.02), (width * 0.5, width * 0.7, height * 0.7), material=1, blend=0.03
            )
        )
    return parts


def bird(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a duck, chick, penguin or other standing bird."""
    u = rng.uniform
    length, width, tilt = u(0.35, 0.55), u(0.24, 0.38), u(-0.1, 0.9)
    axis = np.array([np.cos(tilt), 0, np.sin(tilt)])
    neck, head = u(0.05, 0.45), u(0.15, 0.24)
    shoulder = axis * length * 0.75
    center = np.add(shoulder, (u(0, 0.15), 0, head * 0.8 + neck))
    beak = u(0.12, 0.3)
    parts = [
        shapes.ellipsoid(
            (0, 0, 0),
            (width, width, length),
            rotation=shapes.frame(axis),
            profile=np.array([0.95, u(-0.1, 0.2), 0, 0, 0, 0]),
        ),
        shapes.capsule(shoulder * 0.8, center, width * u(0.5, 0.8), head * 0.8, blend=u(0.05, 0.15)),
        shapes.ellipsoid(center, (head * u(1, 1.2), head, head), blend=0.05),
        shapes.ellipsoid(
            np.add(center, (head + beak * 0.4, 0, -0.03)), (beak, u(0.05, 0.12), u(0.045, 0.07)), material=2
        ),
        shapes.eyes((center[0] + head * 0.6, head * 0.72, center[2] + head * 0.3), head * u(0.14, 0.24)),
        shapes.ellipsoid(
            (-0.05, width * 0.92, u(-0.05, 0.05)),
            (width * 0.65, 0.07, length * 0.75),
            blend=0.03,
            rotation=shapes.frame(np.add(axis, (0.1, 0.05, -0.1))),
            material=1,
            repeat=1,
        ),
        shapes.ellipsoid(np.add(-axis * length, (0, 0, u(0, 0.2))), (u(0.2, 0.35), u(0.08, 0.2), 0.06), blend=0.08),
    ]
    if rng.random() < 0.7:
        floor = -width * 0.8 - length * np.sin(max(tilt, 0)) * 0.6 - u(0.0, 0.25)
        parts += [
            shapes.capsule(
                (0, width * 0.45, -width * 0.5), (0, width * 0.45, floor), 0.05, 0.045, material=2, repeat=1
            ),
            shapes.ellipsoid((0.1, width * 0.5, floor), (0.17, 0.11, 0.045), material=2, blend=0.02, repeat=1),
        ]
    if rng.random() < 0.3:
        parts.append(
            shapes.ellipsoid(np.add(center, (-0.02, 0, head)), (0.12, 0.04, u(0.06, 0.16)), material=2, blend=0.03)
        )
    return parts


def fish(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a fish, whale or submarine creature."""
    u = rng.uniform
    length, height, width = u(0.55, 0.8), u(0.22, 0.45), u(0.16, 0.32)
    taper = np.array([1.0, u(0.05, 0.45), 0, 0, 0, 0])
    fin = u(0.15, 0.35)
    flat = rng.random() < 0.3  # a whale's horizontal tail
    tail = (fin * 0.7, fin * 1.3, 0.05) if flat else (fin * 0.7, 0.05, fin * 1.3)
    return [
        shapes.ellipsoid(
            (0, 0, 0), (height, width, length), rotation=shapes.frame((1, 0, 0), (0, 0, 1)), profile=taper
        ),
        shapes.capsule((-length * 0.6, 0, 0), (-length * 1.1, 0, 0), width * 0.4, 0.05, blend=0.1),
        shapes.ellipsoid((-length * 1.15, 0, 0), tail, blend=0.06, material=1),
        shapes.ellipsoid((u(-0.1, 0.15), 0, height * 0.95), (u(0.15, 0.35), 0.045, fin * 0.8), blend=0.05, material=1),
        shapes.ellipsoid(
            (length * 0.25, width * 0.9, -height * 0.3),
            (0.16, fin * 0.8, 0.045),
            blend=0.04,
            material=1,
            rotation=shapes.frame((0.3, -u(0.2, 0.8), 1)),
            repeat=1,
        ),
        shapes.eyes((length * 0.62, width * 0.75, height * 0.18), u(0.04, 0.07)),
    ]


def crawler(rng: np.random.Generator) -> list[shapes.Part]:
    """Build a turtle, beetle, crab or spider: a low body with legs around it."""
    u = rng.uniform
    length, width, height = u(0.4, 0.6), u(0.3, 0.5), u(0.15, 0.35)
    head = u(0.1, 0.18)
    parts = [
        shapes.ellipsoid((0, 0, 0), (length, width, height), profile=np.array([1.0, u(-0.2, 0), 0, 0, 0, 0])),
        shapes.capsule((length * 0.7, 0, 0), (length + head, 0, u(0, 0.2)), head * 0.8, head, material=1, blend=0.05),
        shapes.eyes((length + head * 1.6, head * 0.5, 0.1 + head * 0.5), head * 0.22),
    ]
    for x in np.linspace(-0.65, 0.65, rng.integers(2, 4)) * length:
        reach = width * u(0.95, 1.3)
        parts.append(
            shapes.capsule(
                (x * 0.8, width * 0.6, -0.02),
                (x * 1.2, reach, -height - 0.08),
                u(0.06, 0.1),
                u(0.05, 0.08),
                material=1,
                blend=0.04,
                repeat=1,
            )
        )
    if rng.random() < 0.5:
        parts.append(
            shapes.capsule((-length * 0.8, 0, 0), (-length - u(0.1, 0.4), 0, u(-0.1, 0.2)), 0.08, 0.04, material=1)
        )
    return parts
