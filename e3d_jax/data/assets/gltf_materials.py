"""Materials of glTF 2.0 files."""

import dataclasses
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
      matrix: of KHR_texture_transform, applied to (u, v, 1) with v downward.
    """

    uv_set: int
    matrix: Float[np.ndarray, "2 3"]


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
    """Reads the materials of a document, each image once; what cannot be loaded is added to ``warnings``."""

    def __init__(self, document: Document, warnings: list[str]):
        self._document = document
        self._warnings = warnings
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
        transmission = extensions.get("KHR_materials_transmission", {}).get("transmissionFactor", 0.0)
        if transmission > 0:
            # What passes through is not reflected; seen here as a surface that takes a part of the ray.
            texture, opacity, alpha = self._transmissive(texture, alpha, opacity, cutoff, transmission, extensions)
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

    def _transmissive(self, texture, alpha, opacity, cutoff, transmission, extensions):
        """Return texture, opacity and alpha mode of a surface that lets light through."""
        through = 1 - transmission
        if alpha == "mask":
            if texture is None or texture.pixels.shape[-1] == 3:
                there = opacity >= cutoff
                return texture, through if there else 0.0, "blend"
            pixels = texture.pixels.copy()
            pixels[..., 3] = (pixels[..., 3] * opacity >= cutoff) * through
            return dataclasses.replace(texture, pixels=pixels), 1.0, "blend"
        if alpha == "opaque":
            if texture is not None:
                texture = dataclasses.replace(texture, pixels=np.ascontiguousarray(texture.pixels[..., :3]))
            opacity = 1.0
        return texture, opacity * through, "blend"

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
            self._warn(f"a texture was left out: {names} cannot be read")
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
                    self._warn(f"texture {name!r} was left out: {error}")
        return self._images[index]

    def _warn(self, text: str) -> None:
        self._warnings.append(f"{self._document.path}: {text}")


def _matrix(moved: dict[str, Any]) -> np.ndarray:
    """Return the matrix of KHR_texture_transform."""
    (x, y), (wide, high) = moved.get("offset", (0, 0)), moved.get("scale", (1, 1))
    angle = moved.get("rotation", 0.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[wide * cosine, high * sine, x], [-wide * sine, high * cosine, y]])
