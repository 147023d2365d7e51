"""From (split, seed, index) to an object: the choice of family, materials, lights and pose."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from e3d_jax.data.synthetic import (
    abstract,
    constructions,
    creatures,
    everyday,
    figures,
    materials,
    objects,
    shapes,
    vessels,
)

# Distinct first words of the entropy, so that the sequences of the two splits never coincide.
_SPLITS = {"train": 1, "test": 2}


class Family(NamedTuple):
    """How often a kind of object is sampled, and how it may be colored and posed.

    Attributes:
      build: samples the parts of one object.
      weight: relative frequency.
      plain: probability that its main material has no pattern.
      colors: likely main colors (hue, saturation, value), each in [0, 1]; any color if empty.
      tumble: probability of an arbitrary orientation instead of an upright one.
      rough: probability of a rippled surface.
    """

    build: Callable[[np.random.Generator], list[shapes.Part]]
    weight: float
    plain: float = 0.5
    colors: tuple[tuple[float, float, float], ...] = ()
    tumble: float = 0.0
    rough: float = 0.0


_FUR = ((0.07, 0.5, 0.5), (0.09, 0.4, 0.8), (0.08, 0.55, 0.3), (0.0, 0.0, 0.85), (0.0, 0.0, 0.5), (0.06, 0.7, 0.65))
_WOOD = ((0.08, 0.55, 0.6), (0.07, 0.6, 0.4), (0.1, 0.45, 0.75))
_FRUIT = ((0.0, 0.8, 0.8), (0.12, 0.85, 0.9), (0.28, 0.6, 0.7), (0.08, 0.85, 0.9), (0.95, 0.7, 0.7))
_STEEL = ((0.6, 0.05, 0.65), (0.6, 0.1, 0.45), (0.1, 0.05, 0.8), (0.58, 0.5, 0.6), (0.02, 0.7, 0.7))

FAMILIES: dict[str, Family] = {
    "quadruped": Family(creatures.quadruped, 10, 0.5, _FUR, 0.0, 0.1),
    "sitter": Family(creatures.sitter, 5, 0.6, _FUR, 0.0, 0.1),
    "bird": Family(creatures.bird, 3, 0.6),
    "fish": Family(creatures.fish, 2, 0.5),
    "figure": Family(figures.figure, 4, 0.6),
    "crawler": Family(creatures.crawler, 2, 0.4),
    "snowman": Family(figures.snowman, 1.5, 0.8, ((0.0, 0.0, 0.92), (0.6, 0.1, 0.9))),
    "mug": Family(vessels.mug, 3),
    "vase": Family(vessels.vase, 5, 0.35, (), 0.0, 0.1),
    "bottle": Family(vessels.bottle, 3, 0.7),
    "teapot": Family(vessels.teapot, 4, 0.6),
    "goblet": Family(vessels.goblet, 2),
    "table": Family(everyday.table, 3, 0.5, _WOOD),
    "chair": Family(everyday.chair, 4, 0.6),
    "sofa": Family(everyday.sofa, 2),
    "lamp": Family(everyday.lamp, 2.5),
    "mushroom": Family(everyday.mushroom, 2, 0.3),
    "tree": Family(everyday.tree, 2, 0.6, ((0.3, 0.6, 0.5), (0.35, 0.6, 0.35), (0.22, 0.6, 0.6)), 0.0, 0.3),
    "fruit": Family(everyday.fruit, 3, 0.6, _FRUIT, 0.1, 0.15),
    "banana": Family(
        everyday.banana, 4, 0.6, ((0.14, 0.8, 0.92), (0.15, 0.7, 0.95), (0.07, 0.85, 0.9), (0.25, 0.6, 0.6)), 0.25
    ),
    "sweet": Family(everyday.sweet, 3, 0.6),
    "shelf": Family(everyday.shelf, 3, 0.6),
    "car": Family(constructions.car, 4, 0.8),
    "train": Family(constructions.train, 1.5, 0.8),
    "plane": Family(constructions.plane, 2.5, 0.7),
    "boat": Family(constructions.boat, 1.5),
    "house": Family(constructions.house, 3, 0.5),
    "castle": Family(constructions.castle, 2, 0.5),
    "machine": Family(abstract.machine, 5, 0.85, _STEEL, 0.7),
    "tool": Family(abstract.tool, 2, 0.7, (), 0.2),
    "blocks": Family(abstract.blocks, 7, 0.4, (), 0.2),
    "rosette": Family(abstract.rosette, 3, 0.4, (), 0.5),
    "totem": Family(abstract.totem, 3, 0.4),
    "blob": Family(abstract.blob, 3, 0.4, (), 0.2, 0.3),
}
_NAMES = tuple(FAMILIES)
_WEIGHTS = np.array([f.weight for f in FAMILIES.values()])
_CUMULATIVE = np.cumsum(_WEIGHTS / _WEIGHTS.sum())


def _generator(split: str, seed: int, index: int) -> np.random.Generator:
    if split not in _SPLITS:
        raise ValueError(f"got split {split!r}; expected 'train' or 'test'")
    if seed < 0 or index < 0:
        raise ValueError(f"got seed {seed} and index {index}; expected numbers from 0 up")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_SPLITS[split], index))))


def _yaw(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _pose(rng: np.random.Generator, tumble: float) -> np.ndarray:
    """Sample world_from_object: half the objects roughly face view 0 or show it a side; few lean or lie arbitrarily."""
    if rng.random() < tumble:
        axis = rng.normal(size=3) if rng.random() < 0.5 else np.eye(3)[rng.integers(3)] + rng.normal(0, 0.15, 3)
        return shapes.frame(axis, rng.normal(size=3))
    choice = rng.random()
    angle = rng.normal(0, 0.25) if choice < 0.35 else rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.25)
    turn = _yaw(angle if choice < 0.5 else rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.25:
        lean = rng.normal(0, 0.07, 2)
        turn = shapes.frame((lean[0], lean[1], 1)) @ turn
    return turn


def _main_color(rng: np.random.Generator, family: Family) -> np.ndarray | None:
    if not family.colors or rng.random() < 0.3:
        return None
    hue, saturation, value = np.array(family.colors[rng.integers(len(family.colors))]) + rng.normal(
        0, (0.015, 0.08, 0.07)
    )
    return materials.hsv(hue % 1.0, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0.1, 1)))


def family_of(split: str, seed: int, index: int) -> str:
    """Return the name of an object's family."""
    return _draw_family(_generator(split, seed, index))


def _draw_family(rng: np.random.Generator) -> str:
    return _NAMES[min(int(np.searchsorted(_CUMULATIVE, rng.random())), len(_NAMES) - 1)]


def sample_object(split: str, seed: int, index: int) -> objects.ObjectParams:
    """Return object ``index`` of the endless sequence of a seed, on the host and not yet normalized.

    It depends only on these three values; sequences of different splits share nothing.

    Raises:
      ValueError: an unknown split, or a negative seed or index.
    """
    rng = _generator(split, seed, index)
    family = FAMILIES[_draw_family(rng)]
    parts = family.build(rng)
    rough = rng.random() < family.rough
    return objects.ObjectParams(
        solids=shapes.pack(parts),
        materials=materials.palette(rng, _main_color(rng, family), family.plain),
        lights=materials.random_lights(rng),
        ripple=np.array([rng.uniform(0.01, 0.025), rng.uniform(8, 18)] if rough else [0, 1], np.float32),
        world_from_object=_pose(rng, family.tumble).astype(np.float32),
        center=np.zeros(3, np.float32),
        scale=np.ones((), np.float32),
    )


def sample_batch(split: str, seed: int, indices: np.ndarray | list[int] | range) -> objects.ObjectParams:
    """Return objects of a seed as one batch: :func:`sample_object`, stacked, then :func:`objects.normalize`."""
    return objects.normalize(objects.stack([sample_object(split, seed, int(i)) for i in indices]))
