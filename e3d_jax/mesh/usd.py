"""USDZ files, for viewers of phones and for USD pipelines; needs the extra ``usd``."""

import os
import pathlib
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from e3d_jax import cameras, files, images, structs
from e3d_jax.data.assets import parts
from e3d_jax.mesh import extract


def write_usdz(path: str | os.PathLike, mesh: structs.Mesh) -> None:
    """Write a package of the mesh in meters, y up, with its texture, or otherwise with vertex colors.

    The material is rough and not metallic, because the colors already contain the lighting.

    Raises:
      ImportError: ``usd-core`` is missing.
      OSError: the folder cannot be written.
    """
    from pxr import Gf, Sdf, Usd, UsdGeom, UsdUtils, Vt  # It is an extra.

    points = cameras.gltf_from_world(np.asarray(mesh.vertices, np.float32))
    with tempfile.TemporaryDirectory() as scratch:
        stage = Usd.Stage.CreateNew(str(pathlib.Path(scratch, "mesh.usdc")))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/object").GetPrim())
        shape = UsdGeom.Mesh.Define(stage, "/object/mesh")
        shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
        shape.CreateExtentAttr([Gf.Vec3f(*map(float, points.min(0))), Gf.Vec3f(*map(float, points.max(0)))])
        shape.CreateFaceVertexCountsAttr(Vt.IntArray([3]) * len(mesh.faces))
        shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.astype(np.int32).reshape(-1)))
        shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
        normals = cameras.gltf_from_world(extract.vertex_normals(mesh)).astype(np.float32)
        shape.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(normals))
        shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
        if mesh.texture is None:
            linear = parts.decode(np.asarray(mesh.colors, np.float64).clip(0, 1)).astype(np.float32)
            shape.CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex).Set(Vt.Vec3fArray.FromNumpy(linear))
        else:
            Image.fromarray(images.to_uint8(mesh.texture.image)).save(pathlib.Path(scratch, "texture.png"))
            corner_uv = np.ascontiguousarray(mesh.texture.corner_uv.reshape(-1, 2), np.float32)
            kind, per_corner = Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
            UsdGeom.PrimvarsAPI(shape).CreatePrimvar("st", kind, per_corner).Set(Vt.Vec2fArray.FromNumpy(corner_uv))
            _bind_texture(stage, shape, "texture.png")
        stage.Save()
        package = pathlib.Path(scratch, "mesh.usdz")
        if not UsdUtils.CreateNewUsdzPackage(stage.GetRootLayer().identifier, str(package)):
            raise OSError(f"cannot write {path}: usd-core made no package; check the space in the temporary folder")
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, package.read_bytes())


def _bind_texture(stage: Any, shape: Any, file: str) -> None:
    """Give a shape a material whose color is a texture, at the points that the primvar ``st`` has."""
    from pxr import Sdf, UsdShade

    kinds = Sdf.ValueTypeNames

    def shader(name: str, kind: str) -> Any:
        made = UsdShade.Shader.Define(stage, f"/object/material/{name}")
        made.CreateIdAttr(kind)
        return made

    material = UsdShade.Material.Define(stage, "/object/material")
    surface, texture, at = (
        shader("surface", "UsdPreviewSurface"),
        shader("texture", "UsdUVTexture"),
        shader("at", "UsdPrimvarReader_float2"),
    )
    at.CreateInput("varname", kinds.String).Set("st")
    texture.CreateInput("file", kinds.Asset).Set(file)
    texture.CreateInput("sourceColorSpace", kinds.Token).Set("sRGB")
    texture.CreateInput("st", kinds.Float2).ConnectToSource(at.CreateOutput("result", kinds.Float2))
    surface.CreateInput("roughness", kinds.Float).Set(1.0)
    surface.CreateInput("metallic", kinds.Float).Set(0.0)
    color = texture.CreateOutput("rgb", kinds.Float3)
    surface.CreateInput("diffuseColor", kinds.Color3f).ConnectToSource(color)
    material.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", kinds.Token))
    UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(material)
