"""Materials of glTF 2.0 files."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from trimesh.visual import gloss

from e3d_jax import raycast
from e3d_jax.data.assets import parts, textures
from e3d_jax.data.assets.gltf_document import Document

_WRAPS: dict[int, raycast.Wrap] = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
# Most specific first: the plain source is for readers that know none of them.
_SOURCES = ("EXT_texture_avif", "EXT_texture_webp", "MSFT_texture_dds")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the texture coordinates of a texture come from.

    Attributes:
      uv_set: number of the TEXCOORD attribute.
      matrix: of KHR_texture_transform, two rows, applied to (u, v, 1) with v downward.
    """

    uv_set: int
    matrix: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Look:
    """A material before vertex colors are known.

    Attributes:
      material: its texture is not multiplied by ``factor`` yet.
      factor: linear light.
      opacity: factor of the opacity.
      placement: of the texture.
      emission_placement: of the emission's texture.
    """

    material: parts.Material
    factor: tuple[float, float, float]
    opacity: float
    placement: Placement | None
    emission_placement: Placement | None


class Materials:
    """Reads the materials of a document, each image once; what cannot be loaded is added to the document's warnings."""

    def __init__(self, document: Document):
        self._document = document
        self._images: dict[int, Image.Image | None] = {}
        self._looks: dict[int | None, Look] = {}
        self._tinted: dict[tuple, parts.Material] = {}

    def look(self, index: int | None) -> Look:
        """Return a material; white for None, as the specification says."""
        if index not in self._looks:
            self._looks[index] = self._read({} if index is None else self._document.json["materials"][index])
        return self._looks[index]

    def tinted(self, look: Look) -> parts.Material:
        """Return the material of a look with its factor worked into the texture."""
        material, factor = look.material, np.array(look.factor, np.float32)
        if material.texture is None or (factor == 1).all():
            return material
        key = (id(material), look.factor)
        if key not in self._tinted:
            pixels = material.texture.pixels.copy()
            pixels[..., :3] = parts.encode(parts.decode(pixels[..., :3]) * factor)
            texture = dataclasses.replace(material.texture, pixels=pixels)
            self._tinted[key] = dataclasses.replace(material, texture=texture)
        return self._tinted[key]

    def _read(self, material: dict[str, Any]) -> Look:
        extensions = material.get("extensions", {})
        surface = material.get("pbrMetallicRoughness", {})
        factor = surface.get("baseColorFactor", [1, 1, 1, 1])
        texture, placement = self._texture(surface.get("baseColorTexture"))
        if (glossy := extensions.get("KHR_materials_pbrSpecularGlossiness")) is not None:
            factor, texture, placement = self._specular(glossy)
        alpha = {"MASK": "mask", "BLEND": "blend"}.get(material.get("alphaMode", "OPAQUE"), "opaque")
        opacity = factor[3] if len(factor) > 3 else 1.0
        cutoff = material.get("alphaCutoff", 0.5)
        transmission = extensions.get("KHR_materials_transmission", {})
        if transmission.get("transmissionFactor", 0.0) > 0:
            texture, placement, opacity = self._transmissive(texture, placement, alpha, opacity, cutoff, transmission)
            alpha = "blend"
        if alpha == "opaque" and texture is not None:
            texture = dataclasses.replace(texture, pixels=np.ascontiguousarray(texture.pixels[..., :3]))
        emission, emission_texture, emission_placement = self._emission(material)
        unlit = "KHR_materials_unlit" in extensions
        made = parts.Material(
            texture,
            alpha=alpha,  # type: ignore[arg-type]
            cutoff=cutoff,
            emission=(0.0, 0.0, 0.0) if unlit else emission,
            emission_texture=None if unlit else emission_texture,
            unlit=unlit,
        )
        return Look(made, tuple(map(float, factor[:3])), float(opacity), placement, emission_placement)  # type: ignore[arg-type]

    def _transmissive(self, texture, placement, alpha, opacity, cutoff, transmission):
        """Return texture, placement and opacity of a surface that lets light through.

        What passes through is not reflected; it is seen here as a surface that takes only a part of the ray.
        """
        pixels = np.ones((1, 1, 3), np.float32) if texture is None else texture.pixels
        there = pixels[..., 3] if alpha != "opaque" and pixels.shape[-1] == 4 else np.ones(pixels.shape[:2], np.float32)
        if alpha == "mask":
            there = (there * opacity >= cutoff).astype(np.float32)
        opacity = opacity if alpha == "blend" else 1.0
        through, info = transmission["transmissionFactor"], transmission.get("transmissionTexture")
        if info is None:
            opacity *= 1 - through
        else:
            clear, clear_placement = self._texture(info)
            if clear is None:
                pass  # Without its texture the whole surface would be gone.
            elif texture is not None and (clear_placement != placement or clear.wrap != texture.wrap):
                self._document.warn("a transmission texture was left out: it lies elsewhere than that of the color")
            else:
                size = tuple(map(max, zip(pixels.shape[:2], clear.pixels.shape[:2], strict=True)))
                pixels = _stretched(pixels, *size)
                there = _stretched(there, *size) * (1 - through * _stretched(clear.pixels[..., 0], *size))
                texture, placement = texture or clear, clear_placement
        if texture is not None:
            texture = dataclasses.replace(texture, pixels=np.concatenate([pixels[..., :3], there[..., None]], -1))
        elif alpha == "mask":
            opacity *= float(there[0, 0])
        return texture, placement, opacity

    def _emission(self, material):
        strength = (
            material.get("extensions", {}).get("KHR_materials_emissive_strength", {}).get("emissiveStrength", 1.0)
        )
        emission = tuple(float(value) * strength for value in material.get("emissiveFactor", [0, 0, 0]))
        if not any(emission):
            return (0.0, 0.0, 0.0), None, None
        info = material.get("emissiveTexture")
        texture, placement = self._texture(info)
        if info is not None and texture is None:
            return (0.0, 0.0, 0.0), None, None  # It would be one bright area.
        if texture is not None:
            texture = dataclasses.replace(texture, pixels=np.ascontiguousarray(texture.pixels[..., :3]))
        return emission, texture, placement

    def _specular(self, glossy: dict[str, Any]):
        """Return base color factor, texture and placement of a specular-glossiness material."""
        factor = glossy.get("diffuseFactor", [1, 1, 1, 1])
        texture, placement = self._texture(glossy.get("diffuseTexture"))
        metal = max(glossy.get("specularFactor", [1, 1, 1])) > 0.1 and max(factor[:3]) < 0.1
        if metal and texture is None and "specularGlossinessTexture" not in glossy:
            known = {
                name: glossy[name] for name in ("diffuseFactor", "specularFactor", "glossinessFactor") if name in glossy
            }
            found = gloss.specular_to_pbr(**known).get("baseColorFactor")
            if found is not None and len(found) >= 3 and np.isfinite(np.asarray(found, float)).all():
                values = np.asarray(found)
                values = values / 255 if np.issubdtype(values.dtype, np.integer) else values
                factor = [*values[:3].tolist(), factor[3] if len(factor) > 3 else 1.0]
        return factor, texture, placement

    def _texture(self, info: dict[str, Any] | None) -> tuple[parts.Texture | None, Placement | None]:
        if info is None:
            return None, None
        texture = self._document.json["textures"][info["index"]]
        image = None
        sources = [texture.get("extensions", {}).get(name, {}).get("source") for name in _SOURCES]
        sources = [source for source in [*sources, texture.get("source")] if source is not None]
        if not sources:
            names = ", ".join(sorted(texture.get("extensions", {}))) or "no source"
            self._document.warn(f"a texture was left out: {names} cannot be read")
        for number, source in enumerate(sources):
            image = self._image(source, last=number == len(sources) - 1)
            if image is not None:
                break
        if image is None:
            return None, None
        sampler = self._document.json["samplers"][texture["sampler"]] if "sampler" in texture else {}
        wrap = tuple(_WRAPS.get(sampler.get(key, 10497), "repeat") for key in ("wrapS", "wrapT"))
        moved = info.get("extensions", {}).get("KHR_texture_transform", {})
        placement = Placement(moved.get("texCoord", info.get("texCoord", 0)), _matrix(moved))
        return parts.Texture(self._pixels(source), wrap), placement  # type: ignore[arg-type]

    def _pixels(self, index: int) -> np.ndarray:
        return textures.pixels(self._images[index])  # type: ignore[arg-type]

    def _image(self, index: int, *, last: bool) -> Image.Image | None:
        if index not in self._images:
            image = self._document.json["images"][index]
            name = image.get("uri", "")
            name = image.get("name", f"image {index}") if not name or name.startswith("data:") else name
            try:
                if "bufferView" in image:
                    data = self._document.view(image["bufferView"])[0].tobytes()
                else:
                    data = self._document.uri(image["uri"])
                if data[:8] == b"\xabKTX 20\xbb":
                    raise ValueError("KTX2 (KHR_texture_basisu) cannot be read")
                self._images[index] = textures.open_image(data)
            except (OSError, KeyError, ValueError) as error:
                self._images[index] = None
                if last:
                    self._document.warn(f"texture {name!r} was left out: {error}")
        return self._images[index]


def _stretched(pixels: Float[np.ndarray, "h w *c"], height: int, width: int) -> Float[np.ndarray, "H W *c"]:
    """Return an image of another size; the color of the nearest pixel."""
    rows, columns = (np.arange(new) * old // new for new, old in zip((height, width), pixels.shape[:2], strict=True))
    return pixels[rows[:, None], columns]


def _matrix(moved: dict[str, Any]) -> tuple[tuple[float, ...], ...]:
    """Return the matrix of KHR_texture_transform."""
    (x, y), (wide, high) = moved.get("offset", (0, 0)), moved.get("scale", (1, 1))
    angle = moved.get("rotation", 0.0)
    cosine, sine = math.cos(angle), math.sin(angle)
    return (wide * cosine, high * sine, float(x)), (-wide * sine, high * cosine, float(y))
