"""The files of a mesh: their axes, units, and colors."""

import dataclasses
import zipfile

import numpy as np
import pytest
import trimesh

from e3d_jax import structs
from e3d_jax.mesh import export, formats


@pytest.fixture
def mesh():
    """A box, longest along world z, whose texture is red, but green at its top."""
    box = trimesh.creation.box(extents=(0.2, 0.4, 0.8))
    image = np.zeros((8, 8, 3), np.float32)
    image[:4] = [0, 1, 0]
    image[4:] = [1, 0, 0]
    top = box.vertices[box.faces][..., 2] > 0
    uv = np.where(top[..., None], [0.5, 0.9], [0.5, 0.1]).astype(np.float32)
    gray = np.full((8, 3), 0.5, np.float32)
    return structs.Mesh(box.vertices.astype(np.float32), box.faces, gray, structs.Texture(image, uv))


def read(path):
    return trimesh.load_mesh(path, process=False)


@pytest.mark.parametrize("name", ["ply", "obj"])
def test_the_longest_side_has_the_size(tmp_path, mesh, name):
    formats.Formats(others=(name,), size=0.2).write(tmp_path, mesh)
    np.testing.assert_allclose(read(tmp_path / f"mesh.{name}").extents, [0.05, 0.1, 0.2], atol=1e-6)


def test_glb_files_have_the_size_and_their_own_axes(tmp_path, mesh):
    formats.Formats(size=0.2, up="z").write(tmp_path, mesh)
    np.testing.assert_allclose(read(tmp_path / "mesh.glb").extents, [0.1, 0.2, 0.05], atol=1e-6)


def test_stl_files_are_closed_and_in_millimeters(tmp_path, mesh):
    formats.Formats(others=("stl",), size=0.2).write(tmp_path, mesh)
    found = trimesh.load_mesh(tmp_path / "mesh.stl")
    np.testing.assert_allclose(found.extents, [50, 100, 200], atol=1e-3)
    assert found.is_watertight and found.volume == pytest.approx(50 * 100 * 200)


@pytest.mark.parametrize("name", ["stl", "ply", "obj"])
def test_y_can_be_up(tmp_path, mesh, name):
    formats.Formats(others=(name,), up="y").write(tmp_path, mesh)
    found = read(tmp_path / f"mesh.{name}")
    np.testing.assert_allclose(found.extents / found.extents.max(), [0.5, 1, 0.25], atol=1e-6)
    assert found.volume > 0


def test_ply_files_are_closed_and_have_the_colors_of_the_texture(tmp_path, mesh):
    formats.Formats(others=("ply",)).write(tmp_path, mesh)
    found = read(tmp_path / "mesh.ply")
    assert found.is_watertight and len(found.vertices) == 8
    top = found.vertices[:, 2] > 0
    np.testing.assert_array_equal(found.visual.vertex_colors[top, :3], [[0, 255, 0]] * 4)
    np.testing.assert_array_equal(found.visual.vertex_colors[~top, :3], [[255, 0, 0]] * 4)


def test_glb_files_with_webp_are_read_back(tmp_path, mesh):
    noise = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    noisy = dataclasses.replace(mesh, texture=structs.Texture(noise, mesh.texture.corner_uv))
    formats.Formats(webp=True).write(tmp_path / "small", noisy)
    formats.Formats().write(tmp_path / "large", noisy)
    assert (tmp_path / "small/mesh.glb").stat().st_size < 0.7 * (tmp_path / "large/mesh.glb").stat().st_size
    np.testing.assert_allclose(export.read_mesh(tmp_path / "small/mesh.glb").texture.image.mean(), 0.5, atol=0.05)


def test_unknown_formats_are_refused():
    with pytest.raises(ValueError, match="'fbx' is an unknown format; choose among obj, stl, ply, usdz"):
        formats.Formats(others=("fbx",))


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"size is 0\.0; expected above 0"):
        formats.Formats(size=0.0)


def test_usdz_without_its_package_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="usdz files need the package usd-core; install the 'usd' extra"):
        formats.Formats(others=("usdz",))


@pytest.mark.slow
def test_usdz_files_have_the_axes_the_size_and_the_texture(tmp_path, mesh):
    pytest.importorskip("pxr")
    from pxr import Usd, UsdGeom, UsdShade

    formats.Formats(others=("usdz",), size=0.2).write(tmp_path, mesh)
    stage = Usd.Stage.Open(str(tmp_path / "mesh.usdz"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    shape = stage.GetPrimAtPath("/object/mesh")
    points = np.array(UsdGeom.Mesh(shape).GetPointsAttr().Get())
    np.testing.assert_allclose(np.ptp(points, axis=0), [0.1, 0.2, 0.05], atol=1e-6)
    material, _ = UsdShade.MaterialBindingAPI(shape).ComputeBoundMaterial()
    surface, *_ = material.ComputeSurfaceSource()
    (color,), _ = surface.GetInput("diffuseColor").GetConnectedSources()
    with zipfile.ZipFile(tmp_path / "mesh.usdz") as package:
        assert color.source.GetInput("file").Get().path in package.namelist()
