"""Material libraries (MTL) of Wavefront OBJ files, as programs of all kinds write them."""

import codecs
import dataclasses
import pathlib
import re

import numpy as np
from jaxtyping import Float
from PIL import Image

from e3d_jax import raycast
from e3d_jax.data.assets import parts, textures

# Options of texture maps and the most values each takes; of these three, later numbers may be left out.
_OPTIONS = {
    "-blendu": 1, "-blendv": 1, "-bm": 1, "-boost": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1, "-mm": 2, "-texres": 1,
    "-type": 1, "-colorspace": 1, "-o": 3, "-s": 3, "-t": 3,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a texture lies.

    Attributes:
      offset: added to the texture coordinates.
      scale: what they are multiplied by before.
    """

    offset: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    def apply(self, uv: Float[np.ndarray, "*f 2"]) -> Float[np.ndarray, "*f 2"]:
        """Return texture coordinates in the texture."""
        return uv * self.scale + self.offset


@dataclasses.dataclass(frozen=True)
class Look:
    """A material.

    Attributes:
      material: with its textures.
      color: display-encoded; of surfaces without texture.
      opacity: what that of the texture is multiplied by.
      placement: of the texture.
      emission_placement: of the emission's texture.
    """

    material: parts.Material
    color: tuple[float, ...]
    opacity: float
    placement: Placement
    emission_placement: Placement


@dataclasses.dataclass(frozen=True)
class _Map:
    image: Image.Image
    file: pathlib.Path
    placement: Placement
    wrap: raycast.Wrap

    def texture(self) -> parts.Texture:
        return parts.Texture(textures.pixels(self.image.convert("RGB")), (self.wrap, self.wrap))


def text_of(path: pathlib.Path) -> str:
    """Return the text of a file of unknown encoding; bytes that are not UTF-8 become surrogates."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    if b"\0" in data[:2]:
        return data.decode("utf-16-le" if data[:1] != b"\0" else "utf-16-be", "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def read(path: pathlib.Path, libraries: list[str], warnings: list[str]) -> dict[str | None, Look]:
    """Read all material libraries of a .obj.

    Args:
      path: of the .obj.
      libraries: what follows each ``mtllib``: one name, which may have blanks, or several.
      warnings: gets a line for each library or texture that cannot be found.
    """
    out: dict[str | None, Look] = {}
    for line in libraries:
        for name in _names(path.parent, line):
            found, note = textures.find(path.parent, name)
            if found is None:
                warnings.append(f"{path}: material library {textures.printable(name)!r} is not there")
                continue
            if note:
                warnings.append(f"{path}: material library {note}")
            for key, entries in _blocks(text_of(found)):
                out[key] = _Reader(path, found.parent, warnings).look(entries)
    return out


def _names(folder: pathlib.Path, line: str) -> list[str]:
    """Return the libraries that a line names: a single one, several that end in .mtl, or several without blanks."""
    ending = re.split(r"(?:(?<=\.mtl)|(?<=\.mtl\"))\s+", line, flags=re.IGNORECASE)
    for names in ([line], ending, line.split()):
        names = [name.strip('"') for name in names]
        if any(textures.find(folder, name)[0] is not None for name in names):
            return names
    return ending


def _blocks(text: str) -> list[tuple[str, dict[str, str]]]:
    """Return the materials of a library with their entries by lower-case keyword."""
    out: list[tuple[str, dict[str, str]]] = []
    for line in text.splitlines():
        words = line.strip().split(None, 1)
        if not words or words[0].startswith("#"):
            continue
        key, rest = words[0].lower(), words[1].strip() if len(words) > 1 else ""
        if key == "newmtl":
            out.append((rest, {}))
        elif out and rest:
            out[-1][1][key] = rest
    return out


class _Reader:
    """Makes a material of its entries."""

    def __init__(self, path: pathlib.Path, folder: pathlib.Path, warnings: list[str]):
        self._path, self._folder, self._warnings = path, folder, warnings

    def look(self, entries: dict[str, str]) -> Look:
        """Return the material."""
        color = _color(entries.get("kd"), (parts.GRAY,) * 3)
        emission = _color(entries.get("ke"), (0.0, 0.0, 0.0))
        base, glow, mask = (self._map(entries.get(key)) for key in ("map_kd", "map_ke", "map_d"))
        if "map_d" not in entries:
            mask = self._map(entries.get("map_opacity"))
        if glow is not None and not any(emission):
            emission = (1.0, 1.0, 1.0)
        if glow is None and "map_ke" in entries:
            emission = (0.0, 0.0, 0.0)  # Without its texture it would be one bright area.
        texture, opacity = None if base is None else base.texture(), _opacity(entries)
        if mask is not None:
            texture = _masked(base, mask, color)
        material = parts.Material(
            texture,
            alpha="blend" if mask is not None or opacity < 1 else "opaque",
            emission=tuple(parts.decode(np.asarray(emission)).tolist()),  # type: ignore[arg-type]
            emission_texture=None if glow is None else glow.texture(),
        )
        placed = base or mask
        return Look(
            material,
            color,
            opacity,
            placed.placement if placed else Placement(),
            glow.placement if glow else Placement(),
        )

    def _map(self, entry: str | None) -> _Map | None:
        """Return a texture map from its options and file name."""
        if entry is None:
            return None
        name, placement, wrap = _options(entry)
        found, note = textures.find(self._folder, name)
        if found is None and self._folder != self._path.parent:
            found, note = textures.find(self._path.parent, name)
        if note:
            self._warnings.append(f"{self._path}: texture {note}")
        if found is None:
            self._warnings.append(f"{self._path}: texture {textures.printable(name)!r} is not there")
            return None
        try:
            return _Map(textures.open_image(found.read_bytes(), str(found)), found, placement, wrap)
        except (OSError, ValueError) as error:
            self._warnings.append(f"{self._path}: texture {textures.printable(name)!r} was left out: {error}")
            return None


def _options(entry: str) -> tuple[str, Placement, raycast.Wrap]:
    """Split an entry such as ``-s 2 2 1 -clamp on my wood.png``."""
    values: dict[str, list[str]] = {}
    rest = entry.strip()
    while rest.startswith("-") and (option := rest.split(None, 1)[0].lower()) in _OPTIONS:
        rest = rest[len(option) :].lstrip()
        values[option] = []
        for _ in range(_OPTIONS[option]):
            word, after = (*rest.split(None, 1), "", "")[:2]
            if not after or (_OPTIONS[option] > 1 and not _is_number(word)):
                break
            values[option].append(word)
            rest = after
    (x, y), (wide, high) = (
        ([float(word) for word in values.get(option, [])] + default[len(values.get(option, [])) :])[:2]
        for option, default in (("-o", [0.0, 0.0]), ("-s", [1.0, 1.0]))
    )
    clamped = values.get("-clamp", ["off"])[:1] == ["on"]
    name = rest.strip().strip('"')
    return name, Placement((x, y), (wide, high)), "clamp" if clamped else "repeat"


def _masked(base: _Map | None, mask: _Map, color: tuple[float, ...]) -> parts.Texture | None:
    """Return the texture with the opacity of another."""
    if mask.image.mode == "RGBA":
        opacity = mask.image.getchannel("A")
    elif base is not None and base.file == mask.file:
        return base.texture()  # One file for both, but it has no opacity.
    else:
        opacity = mask.image.convert("L")
    if base is None:
        rgb = Image.new("RGB", opacity.size, tuple(round(255 * value) for value in color))
        wrap = mask.wrap
    else:
        rgb, wrap = base.image.convert("RGB"), base.wrap
    size = (max(rgb.width, opacity.width), max(rgb.height, opacity.height))
    rgba = rgb.resize(size).convert("RGBA")
    rgba.putalpha(opacity.resize(size))
    return parts.Texture(textures.pixels(rgba), (wrap, wrap))


def _opacity(entries: dict[str, str]) -> float:
    """Return ``d``, or else 1 - ``Tr``."""
    for key in ("d", "tr"):
        for word in entries.get(key, "").split()[::-1]:
            if _is_number(word):
                value = float(np.clip(float(word), 0, 1))
                return value if key == "d" else 1 - value
    return 1.0


def _color(entry: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    numbers = [float(word) for word in (entry or "").split() if _is_number(word)]
    if not numbers:
        return default
    return tuple(float(np.clip(value, 0, 1)) for value in (numbers * 3 if len(numbers) < 3 else numbers)[:3])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
