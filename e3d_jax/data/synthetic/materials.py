"""Solid textures and soft lights: color as a function of the point in space, so that it is defined on every side."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from e3d_jax import structs
from e3d_jax.data import lighting
from e3d_jax.data.synthetic import primitives, shapes

PATTERNS = ("solid", "gradient", "stripes", "checks", "spots", "noise", "rings")
NUM_LIGHTS = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Materials:
    """Two colors and the pattern that mixes them, per material.

    Attributes:
      colors: display-encoded colors in [0, 1].
      pattern: one-hot choice among :data:`PATTERNS`.
      transform: object coordinates to those of the pattern (whose period is 2 pi).
      phase: offset of those coordinates.
      warp: how far the pattern is bent out of shape.
      threshold: value of the pattern, in [-1, 1], at which the colors meet.
      softness: width of the transition.
      mottle: contrast of a fine modulation of the brightness.
    """

    colors: Float[structs.ArrayLike, "*m 2 3"]
    pattern: Float[structs.ArrayLike, "*m k"]
    transform: Float[structs.ArrayLike, "*m 3 3"]
    phase: Float[structs.ArrayLike, "*m 3"]
    warp: Float[structs.ArrayLike, "*m"]
    threshold: Float[structs.ArrayLike, "*m"]
    softness: Float[structs.ArrayLike, "*m"]
    mottle: Float[structs.ArrayLike, "*m"]


def colors(materials: Materials, point: primitives.Point) -> Float[jax.Array, "m *n 3"]:
    """Return the color of every material of one object at every point (object units)."""
    return jnp.stack(
        [_color(jax.tree.map(lambda a, i=i: a[i, ...], materials), point) for i in range(primitives.MAX_MATERIALS)]
    )


def _color(material: Materials, point: primitives.Point) -> jax.Array:
    rows = material.transform
    x, y, z = (rows[i, 0] * point.x + rows[i, 1] * point.y + rows[i, 2] * point.z + material.phase[i] for i in range(3))
    waves = [
        jnp.sin(1.3 * b + 0.9 * a) + 0.5 * jnp.sin(2.7 * c - 1.9 * b) for a, b, c in ((x, y, z), (y, z, x), (z, x, y))
    ]
    x, y, z = (a + material.warp * wave for a, wave in zip((x, y, z), waves, strict=True))
    values = (
        jnp.full_like(x, 4.0),
        z / jnp.pi,
        jnp.sin(z),
        4 * jnp.sin(x) * jnp.sin(y) * jnp.sin(z),
        (jnp.cos(x) + jnp.cos(y) + jnp.cos(z)) / 1.5 - 1,
        sum(waves) / 3,
        jnp.sin(2 * jnp.sqrt(x**2 + y**2 + 1e-9)),
    )
    value = sum((material.pattern[k] * value for k, value in enumerate(values)), jnp.zeros_like(x))
    weight = jnp.clip(0.5 + (value - material.threshold) / material.softness, 0, 1)[..., None]
    fine = jnp.sin(3.1 * x + 2 * y) + jnp.sin(3.1 * y + 2 * z) + jnp.sin(3.1 * z + 2 * x)
    color = material.colors[0] + weight * (material.colors[1] - material.colors[0])
    return jnp.clip(color * (1 + material.mottle * fine[..., None]), 0, 1)


def shade(
    lights: lighting.Lights, albedo: jax.Array, normal: jax.Array, openness: jax.Array
) -> Float[jax.Array, "*n 3"]:
    """Return the wrapped diffuse shading, display-encoded: ``albedo * (ambient + sum of light * (1 + n.l) / 2)``.

    Args:
      lights: the lights of one object.
      albedo: display-encoded color, [0, 1].
      normal: unit normals, world frame.
      openness: from 1 in the open to 0 in a crease; the shape of ``normal`` without its last axis.
    """
    light = lights.ambient
    for i in range(NUM_LIGHTS):
        cosine = (normal * lights.directions[i]).sum(-1, keepdims=True)
        light = light + lights.colors[i] * (0.5 + 0.5 * cosine)
    return jnp.clip(albedo * light * (1 - lights.occlusion * (1 - openness[..., None])), 0, 1)


# ------------------------------------------------------------------------------------------ sampling, on the host

_NEUTRALS = np.array(
    [[0.93, 0.92, 0.89], [0.78, 0.76, 0.72], [0.55, 0.55, 0.57], [0.33, 0.33, 0.36], [0.16, 0.15, 0.17],
     [0.72, 0.53, 0.34], [0.52, 0.35, 0.22], [0.36, 0.23, 0.15], [0.86, 0.74, 0.56], [0.90, 0.82, 0.70]]
)  # fmt: skip


def hsv(hue: float, saturation: float, value: float) -> Float[np.ndarray, "3"]:
    """Return the RGB color of a hue in turns, a saturation and a value in [0, 1]."""
    ramp = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return value * (1 - saturation + saturation * np.clip(ramp, 0, 1))


def random_color(rng: np.random.Generator, neutral: float = 0.35) -> Float[np.ndarray, "3"]:
    """Sample the color of an everyday thing: a neutral or a hue."""
    if rng.random() < neutral:
        return np.clip(_NEUTRALS[rng.integers(len(_NEUTRALS))] + rng.normal(0, 0.03, 3), 0.05, 1)
    return hsv(rng.random(), rng.uniform(0.25, 0.85), rng.uniform(0.4, 0.95))


def material(
    rng: np.random.Generator, color: np.ndarray, *, pattern: str | None = None, plain: float = 0.5
) -> dict[str, np.ndarray]:
    """Sample a material of a given main color.

    Args:
      rng: source of randomness.
      color: the main color.
      pattern: one of :data:`PATTERNS`; a random one by default.
      plain: probability of no pattern if ``pattern`` is not given.
    """
    if pattern is None:
        pattern = "solid" if rng.random() < plain else PATTERNS[rng.integers(1, len(PATTERNS))]
    second = random_color(rng)
    if rng.random() < 0.4:  # the same hue, lighter or darker
        second = np.clip(color * rng.uniform(0.45, 0.75) if color.mean() > 0.5 else color + rng.uniform(0.2, 0.4), 0, 1)
    frequency = rng.uniform(5, 16) * (0.35 if pattern == "gradient" else 0.6 if pattern in ("spots", "noise") else 1.0)
    axes = np.eye(3)
    if rng.random() < 0.5:
        axes = np.roll(axes, rng.integers(3), axis=0)
    if rng.random() < 0.25:
        axes = shapes.frame(rng.normal(size=3), rng.normal(size=3))
    phase = rng.uniform(-np.pi, np.pi, 3)
    if pattern == "gradient":
        phase[2] *= 0.2
    if pattern in ("stripes", "checks", "rings"):
        phase[:2] = np.pi / 2 if pattern != "rings" else 0.0  # mirror-symmetric in x and y
    return {
        "colors": np.stack([second, color]),
        "pattern": np.eye(len(PATTERNS))[PATTERNS.index(pattern)],
        "transform": axes * frequency,
        "phase": phase,
        "warp": np.array(rng.choice([0.0, 0.0, rng.uniform(0.2, 0.9)]) if pattern not in ("spots", "noise") else 0.7),
        "threshold": np.array(rng.uniform(-0.5, 0.5) if pattern != "gradient" else rng.uniform(-0.2, 0.2)),
        "softness": np.array(rng.uniform(0.15, 0.5) if pattern != "gradient" else rng.uniform(0.8, 2.0)),
        "mottle": np.array(rng.uniform(0, 0.035) * (rng.random() < 0.3)),
    }


def palette(rng: np.random.Generator, main: np.ndarray | None = None, plain: float = 0.5) -> Materials:
    """Sample the four materials of an object: main, second, accent, and near black (eyes, tires)."""
    first = random_color(rng, 0.25) if main is None else np.asarray(main)
    rows = [
        material(rng, first, plain=plain),
        material(rng, random_color(rng), plain=max(plain, 0.7)),
        material(rng, random_color(rng), plain=1.0),
        material(rng, rng.uniform(0.05, 0.18) * np.ones(3), pattern="solid"),
    ]
    return Materials(**{name: np.array([row[name] for row in rows], np.float32) for name in rows[0]})


def random_lights(rng: np.random.Generator) -> lighting.Lights:
    """Sample a key light near the usual one, sometimes moved far from it, with fill lights and faint tints."""
    key = lighting.KEY_LIGHT + rng.normal(0, 0.15 if rng.random() < 0.7 else 0.8, 3) * [1, 1, 0.4]
    if rng.random() < 0.35:
        key, strength, ambient = lighting.KEY_LIGHT, lighting.KEY_STRENGTH, lighting.AMBIENT
    else:
        strength, ambient = rng.uniform(0.3, 0.65), rng.uniform(0.4, 0.62)
    directions = np.stack([key, rng.normal(size=3), rng.normal(size=3)])
    fills = rng.uniform(0, 0.15, 2) * (rng.random(2) < 0.35)
    tints = 1 + rng.normal(0, 0.04, (4, 3)) * (rng.random() < 0.4)
    amounts = np.array([ambient, strength, *fills])[:, None] * tints
    return lighting.Lights(
        ambient=amounts[0].astype(np.float32),
        directions=(directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32),
        colors=amounts[1:].astype(np.float32),
        occlusion=np.array(rng.uniform(0, 0.5) * (rng.random() < 0.6), np.float32),
    )
