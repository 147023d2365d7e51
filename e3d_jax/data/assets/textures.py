"""Textures of meshes: finding their files, and decoding them."""

import io
import os
import pathlib
import unicodedata

import numpy as np
from jaxtyping import Float
from PIL import Image

from e3d_jax import color_profiles

# Larger textures are shrunk: no view shows more detail, and a few of 16k would fill the memory.
MAX_SIZE = 4096
# In which older tools write names, most likely first.
_ENCODINGS = ("utf-8", "gb18030", "cp932", "cp1252", "cp437", "big5", "cp949", "cp1251", "cp1250", "mac_roman")


def open_image(data: bytes, name: str | None = None) -> Image.Image:
    """Return an encoded image as 8-bit RGB or RGBA (if it has any transparency), shrunk if it is huge.

    Args:
      data: encoded.
      name: of the image, if its color profile is applied; glTF wants it ignored.

    Raises:
      ValueError: Pillow cannot decode it.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # Decoders raise errors of any kind.
        raise ValueError(f"not an image that can be decoded ({error})") from error
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        # Pillow would clip what is deeper than 8 bits instead of scaling it.
        values = values * 255 if image.mode == "F" else values / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA") if name is None else color_profiles.to_srgb(image, io.BytesIO(data), name)
    if image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    if max(image.size) > MAX_SIZE:
        image.thumbnail((MAX_SIZE, MAX_SIZE), Image.Resampling.BOX)
    return image


def pixels(image: Image.Image) -> Float[np.ndarray, "h w c"]:
    """Return an image as values in [0, 1]."""
    return np.asarray(image, np.float32) / 255


def find(folder: pathlib.Path, name: str) -> tuple[pathlib.Path | None, str | None]:
    """Return the file that a mesh means by a name, and what is to be said about it; (None, None) if there is none.

    Names may have the separators and drives of Windows: of a path that is not here, the longest tail that is counts.
    Bytes that were not UTF-8 (surrogates, as Python's ``surrogateescape`` makes them) are tried in other encodings.

    Args:
      folder: of the mesh.
      name: as the file has it.
    """
    for candidate in _spellings(name):
        parts = [part for part in candidate.replace("\\", "/").split("/") if part not in ("", ".")]
        if parts and len(parts[0]) == 2 and parts[0][1] == ":":
            parts = parts[1:]
        if candidate.startswith("/") and _is_file(pathlib.Path(candidate)):
            return pathlib.Path(candidate), None
        for first in range(len(parts)):
            if _is_file(path := folder.joinpath(*parts[first:])):
                return path, None
        for first in range(len(parts)):
            if (other := _any_case(folder, parts[first:])) is not None:
                return (
                    other,
                    f"{printable(candidate)} is not there; {printable(other.name)}, spelled differently, was taken",
                )
    return None, None


def printable(name: str) -> str:
    """Return a name of unknown encoding for a message."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _spellings(name: str) -> list[str]:
    raw, found = name.encode("utf-8", "surrogateescape"), []
    for encoding in _ENCODINGS:
        try:
            found.append(raw.decode(encoding))
        except UnicodeDecodeError:
            continue
    return list(dict.fromkeys([*found, name]))  # Archives may keep the bytes of names.


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # Too long, or a NUL.
        return False


def _folded(name: str) -> str:
    """Return a name without what other file systems do not see: letter case, and how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()


def _any_case(folder: pathlib.Path, parts: list[str]) -> pathlib.Path | None:
    for index, part in enumerate(parts):
        try:
            names = os.listdir(folder)
        except OSError:
            return None
        match = [name for name in sorted(names) if _folded(name) == _folded(part)] or ([".."] if part == ".." else [])
        if not match:
            return None
        folder = folder / match[0]
        if index == len(parts) - 1:
            return folder if _is_file(folder) else None
    return None
