"""The colors that a picture means: its ICC profile, or the code points of its file, become sRGB."""

import io
import struct
import warnings
from collections.abc import Iterator
from typing import cast

import numpy as np
from PIL import Image, ImageCms

# Chromaticities (x, y) of red, green, blue and white by their number in H.273; PNG (cICP), AVIF and HEIC (nclx) use it.
D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)
PRIMARIES = {
    1: SRGB_PRIMARIES,
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
# Luminance of white in pictures of high dynamic range, cd / m^2 (BT.2408).
WHITE = 203.0
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
Chromaticities = tuple[tuple[float, float], ...]


def to_srgb(image: Image.Image, file: io.BufferedReader | io.BytesIO, name: str) -> Image.Image:
    """Return a picture in sRGB, 8 bits per channel, as RGB or RGBA; one that says nothing is taken for sRGB.

    Args:
      image: decoded, of any of Pillow's 8-bit modes.
      file: that it was read from; its header is read again if it is a PNG, AVIF, or HEIC file.
      name: of the picture in messages.
    """
    chunks = dict(_png_chunks(file))
    if len(chunks.get(b"cICP", b"")) == 4:
        primaries, transfer = chunks[b"cICP"][:2]
        return _from_code_points(image, primaries, transfer, name)
    if profile := image.info.get("icc_profile"):
        return _from_profile(image, profile, name)
    if b"sRGB" not in chunks and (b"gAMA" in chunks or b"cHRM" in chunks):
        return _from_gamma(image, chunks)
    if (points := _nclx(file)) is not None and 2 not in points:  # 2 is "unspecified".
        return _from_code_points(image, *points, name)
    return image.convert("RGBA")


def _nclx(file: io.BufferedReader | io.BytesIO) -> tuple[int, int] | None:
    """Return the primaries and transfer of an AVIF or HEIC file without an ICC profile."""
    file.seek(0)
    head = file.read(1 << 16)
    at = head.find(b"colrnclx")
    return struct.unpack_from(">HH", head, at + 8) if head[4:8] == b"ftyp" and 0 < at < len(head) - 12 else None


def _png_chunks(file: io.BufferedReader | io.BytesIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield the color chunks of a file if it is a PNG."""
    file.seek(0)
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        length = int.from_bytes(head[:4], "big")
        if head[4:] in (b"cICP", b"gAMA", b"cHRM", b"sRGB"):
            yield head[4:], file.read(length)
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)


def _from_profile(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Apply an ICC profile with LittleCMS."""
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = image if image.mode in ("L", "RGB", "CMYK") else image.convert("L" if image.mode == "LA" else "RGB")
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if theirs.profile.xcolor_space.strip() == "GRAY" and plain.mode == "RGB":
            plain = plain.convert("L")
        elif theirs.profile.xcolor_space.strip() == "RGB" and plain.mode == "L":
            plain = plain.convert("RGB")
        converted = ImageCms.profileToProfile(plain, theirs, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        warnings.warn(f"{name} has a color profile that cannot be applied ({error}); taken for sRGB", stacklevel=5)
        return image.convert("RGBA")
    result = (converted or plain).convert("RGBA")
    if alpha is not None:
        result.putalpha(alpha)
    return result


def _from_gamma(image: Image.Image, chunks: dict[bytes, bytes]) -> Image.Image:
    """Apply the chunks gAMA and cHRM of a PNG file; the usual gamma stands for the curve of sRGB."""
    gamma, primaries = 0.45455, cast(Chromaticities, SRGB_PRIMARIES)
    if len(data := chunks.get(b"gAMA", b"")) == 4:
        gamma = int.from_bytes(data, "big") / 1e5 or gamma
    if len(data := chunks.get(b"cHRM", b"")) == 32:
        values = [value / 1e5 for value in struct.unpack(">8I", data)]
        white, *rgb = zip(values[::2], values[1::2], strict=True)
        if min(y for _, y in (white, *rgb)) > 0:
            primaries = (*rgb, white)
    usual = abs(gamma - 0.45455) < 0.005
    if usual and np.allclose(primaries, SRGB_PRIMARIES, atol=0.002):
        return image.convert("RGBA")
    return _convert(image, (lambda v: _srgb_linear(v)) if usual else (lambda v: v ** (1 / gamma)), primaries)


def _from_code_points(image: Image.Image, primaries: int, transfer: int, name: str) -> Image.Image:
    """Apply primaries and transfer, numbers of H.273."""
    curves = {
        1: _bt709_linear,
        4: lambda v: v**2.2,
        5: lambda v: v**2.8,
        6: _bt709_linear,
        8: lambda v: v,
        13: _srgb_linear,
        14: _bt709_linear,
        15: _bt709_linear,
        16: _pq_linear,
        18: _hlg_linear,
    }
    if primaries not in PRIMARIES or transfer not in curves:
        warnings.warn(
            f"{name} has unknown code points of colors ({primaries}, {transfer}); taken for sRGB", stacklevel=5
        )
        return image.convert("RGBA")
    if transfer in (16, 18):
        warnings.warn(f"{name} has a high dynamic range; what is brighter than white is cut off", stacklevel=5)
    if (primaries, transfer) == (1, 13):
        return image.convert("RGBA")
    return _convert(image, curves[transfer], PRIMARIES[primaries])


def _convert(image: Image.Image, linear, primaries: Chromaticities) -> Image.Image:
    """Return the picture in sRGB: decoded to linear light, with other primaries, and encoded."""
    rgba = np.asarray(image.convert("RGBA"))
    light = linear(np.arange(256) / 255)[rgba[..., :3]]
    if not np.allclose(primaries, SRGB_PRIMARIES, atol=1e-4):
        light = light @ (np.linalg.inv(_xyz(SRGB_PRIMARIES)) @ _xyz(primaries)).T
    light = light.clip(0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return Image.fromarray(np.concatenate([(encoded * 255).round().astype(np.uint8), rgba[..., 3:]], -1))


def _xyz(primaries: Chromaticities) -> np.ndarray:
    """Return the matrix from linear RGB to XYZ, adapted to D65 (Bradford)."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    rgb, white = columns[:, :3], columns[:, 3]
    x, y = D65
    cones = BRADFORD @ np.array([x / y, 1, (1 - x - y) / y]) / (BRADFORD @ white)
    adapt = np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD
    return adapt @ (rgb * np.linalg.solve(rgb, white))


def _srgb_linear(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _bt709_linear(v: np.ndarray) -> np.ndarray:
    return np.where(v < 0.081, v / 4.5, ((v + 0.099) / 1.099) ** (1 / 0.45))


def _pq_linear(v: np.ndarray) -> np.ndarray:
    """Invert the curve of SMPTE ST 2084; 1 is white."""
    power = v ** (32 / 2523)
    return 1e4 / WHITE * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (8192 / 1305)


def _hlg_linear(v: np.ndarray) -> np.ndarray:
    """Invert the curve of ARIB STD-B67 on a display of 1000 cd / m^2; 1 is white."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(v <= 0.5, v**2 / 3, (np.exp((v - c) / a) + b) / 12)
    return 1000 / WHITE * scene**1.2
