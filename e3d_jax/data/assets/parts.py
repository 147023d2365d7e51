"""What the readers of all formats return: parts of one material each, in the axes of their file."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from e3d_jax import raycast

GRAY = 0.8  # Display-encoded; the color of a surface without one.


class UnreadableError(ValueError):
    """A file is whole, but needs what cannot be read; the message goes on after the file's name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Texture:
    """An image on a surface.

    Attributes:
      pixels: display-encoded RGB, with or without straight alpha, in [0, 1]; row 0 is the top.
      wrap: how it goes on outside of itself, along u and v.
    """

    pixels: Float[np.ndarray, "h w c"]
    wrap: tuple[raycast.Wrap, raycast.Wrap] = ("repeat", "repeat")


@dataclasses.dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
      texture: what the colors at the corners are multiplied by.
      linear: the colors at the corners are linear light, and multiplied in it; otherwise both are display-encoded.
      alpha: what opacity means: nothing; there or not, by ``cutoff``; or how much of the ray the surface takes.
      cutoff: least opacity that is there.
      emission: linear light that the surface adds to what it reflects.
      emission_texture: what ``emission`` is multiplied by (after decoding).
      unlit: the color is drawn as it is.
    """

    texture: Texture | None = None
    linear: bool = False
    alpha: Literal["opaque", "mask", "blend"] = "opaque"
    cutoff: float = 0.5
    emission: tuple[float, float, float] = (0.0, 0.0, 0.0)
    emission_texture: Texture | None = None
    unlit: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Triangles of one material.

    Attributes:
      vertices: positions.
      faces: vertex indices; counterclockwise seen from outside.
      colors: RGB at the corners of each face, see :class:`Material`.
      alpha: opacity at the corners; what that of the texture is multiplied by.
      uv: texture coordinates at the corners, (0, 0) lower left.
      emission_uv: those of the emission's texture.
      material: how it looks.
    """

    vertices: Float[np.ndarray, "p 3"]
    faces: Int[np.ndarray, "f 3"]
    colors: Float[np.ndarray, "f 3 3"]
    alpha: Float[np.ndarray, "f 3"]
    uv: Float[np.ndarray, "f 3 2"]
    emission_uv: Float[np.ndarray, "f 3 2"]
    material: Material


def part(
    vertices: Float[np.ndarray, "p 3"],
    faces: Int[np.ndarray, "f 3"],
    material: Material | None = None,
    *,
    colors: Float[np.ndarray, "*c 3"] | float = GRAY,
    alpha: Float[np.ndarray, "*a"] | float = 1.0,
    uv: Float[np.ndarray, "f 3 2"] | None = None,
    emission_uv: Float[np.ndarray, "f 3 2"] | None = None,
) -> Part:
    """Return a part; what is not given is opaque gray, and values that all corners share may be given once."""
    count = len(faces)

    def filled(values, *shape):
        return np.broadcast_to(np.asarray(0.0 if values is None else values, np.float32), (count, 3, *shape))

    material = material or Material()
    opacity = filled(alpha)
    if material.alpha != "opaque" and _always_there(material, opacity):
        material = dataclasses.replace(material, alpha="opaque")
    return Part(
        np.asarray(vertices, np.float64),
        np.asarray(faces, np.int64),
        filled(colors, 3),
        opacity,
        np.nan_to_num(filled(uv, 2)),
        np.nan_to_num(filled(emission_uv, 2)),
        material,
    )


def _always_there(material: Material, opacity: np.ndarray) -> bool:
    """Return whether no opacity of a part lets a ray pass, so that it need not be looked up for each."""
    least = float(opacity.min(initial=1.0))
    if material.texture is not None and material.texture.pixels.shape[-1] == 4:
        least *= float(material.texture.pixels[..., 3].min())
    return least >= (min(material.cutoff, 1.0) if material.alpha == "mask" else 1.0)


def decode(display: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"]:
    """Return linear light from display-encoded values (IEC 61966-2-1)."""
    display = np.asarray(display)
    return np.where(display <= 0.04045, display / 12.92, ((np.maximum(display, 0) + 0.055) / 1.055) ** 2.4)


def encode(linear: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Return the inverse of :func:`decode`."""
    linear = np.asarray(linear)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
