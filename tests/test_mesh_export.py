"""Mesh files: axes, winding, colors, textures, errors."""

import dataclasses

import gltf_files
import numpy as np
import pytest
import trimesh

from e3d_jax import structs
from e3d_jax.data.assets import gltf_document
from e3d_jax.mesh import export


@pytest.fixture
def mesh():
    """A box, longest along world z, with random vertex colors."""
    box = trimesh.creation.box(extents=(0.2, 0.4, 0.8))
    colors = np.random.default_rng(0).random((8, 3))
    return structs.Mesh(box.vertices.astype(np.float32), box.faces, colors.astype(np.float32))


def test_round_trip(tmp_path, mesh):
    export.write_glb(tmp_path / "mesh.glb", mesh)
    back = export.read_mesh(tmp_path / "mesh.glb")
    np.testing.assert_allclose(back.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_allclose(back.colors, mesh.colors, atol=0.5 / 255 + 1e-6)
    assert trimesh.Trimesh(back.vertices, back.faces).volume == pytest.approx(0.2 * 0.4 * 0.8, rel=1e-5)


def test_file_has_gltf_axes_and_outward_faces(tmp_path, mesh):
    export.write_glb(tmp_path / "mesh.glb", mesh)
    raw = trimesh.load_mesh(tmp_path / "mesh.glb", process=False)
    np.testing.assert_allclose(raw.extents, [0.4, 0.8, 0.2], atol=1e-6)
    assert raw.volume > 0


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
def test_other_formats_stay_in_world_axes(tmp_path, mesh, suffix):
    path = tmp_path / f"mesh{suffix}"
    trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(path)
    np.testing.assert_allclose(np.ptp(export.read_mesh(path).vertices, axis=0), [0.2, 0.4, 0.8], atol=1e-5)


def test_mesh_without_colors_is_gray(tmp_path, mesh):
    trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(tmp_path / "mesh.ply")
    colors = export.read_mesh(tmp_path / "mesh.ply").colors
    assert np.ptp(colors) == 0 and 0 < colors[0, 0] < 1


def test_empty_mesh_is_not_written(tmp_path, mesh):
    with pytest.raises(ValueError, match="no faces"):
        export.write_glb(tmp_path / "mesh.glb", dataclasses.replace(mesh, faces=np.zeros((0, 3), int)))
    assert not list(tmp_path.iterdir())


def test_non_finite_mesh_is_not_written(tmp_path, mesh):
    with pytest.raises(ValueError, match="non-finite"):
        export.write_glb(tmp_path / "mesh.glb", dataclasses.replace(mesh, vertices=mesh.vertices * np.nan))


def test_truncated_file(tmp_path, mesh):
    path = tmp_path / "mesh.glb"
    export.write_glb(path, mesh)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        export.read_mesh(path)


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="expected one of"):
        export.read_mesh(tmp_path / "mesh.xyz")


def test_missing_file(tmp_path):
    with pytest.raises(OSError):
        export.read_mesh(tmp_path / "mesh.glb")


@pytest.fixture
def textured(mesh):
    """The box, with a separate triangle of the texture for each face."""
    image = np.random.default_rng(1).random((8, 8, 3)).astype(np.float32)
    uv = np.random.default_rng(2).random((len(mesh.faces), 3, 2)).astype(np.float32)
    return dataclasses.replace(mesh, texture=structs.Texture(image, uv))


@pytest.mark.parametrize(("name", "write"), [("mesh.glb", export.write_glb), ("mesh.obj", export.write_obj)])
def test_texture_round_trip(tmp_path, textured, name, write):
    write(tmp_path / name, textured)
    back = export.read_mesh(tmp_path / name)
    assert len(back.vertices) == 8 and trimesh.Trimesh(back.vertices, back.faces, process=False).is_watertight
    np.testing.assert_allclose(back.texture.image, textured.texture.image, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(back.texture.corner_uv, textured.texture.corner_uv, atol=1e-6)
    np.testing.assert_allclose(np.ptp(back.vertices, axis=0), [0.2, 0.4, 0.8], atol=1e-5)


def test_obj_has_its_material_beside_it(tmp_path, textured):
    export.write_obj(tmp_path / "chair.obj", textured)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"chair.obj", "chair.mtl"} < names and len(names) == 3
    assert "mtllib chair.mtl" in (tmp_path / "chair.obj").read_text()


def test_material_is_not_metallic_and_normals_are_smooth_across_seams(tmp_path, textured):
    export.write_glb(tmp_path / "mesh.glb", textured)
    (raw,) = trimesh.load_scene(tmp_path / "mesh.glb", process=False).geometry.values()
    assert raw.visual.material.metallicFactor == 0 and raw.visual.material.roughnessFactor == 1
    corner = np.isclose(raw.vertices, raw.vertices[0]).all(1)
    assert corner.sum() > 1
    assert np.ptp(raw.vertex_normals[corner], axis=0).max() < 1e-5


def test_vertex_colors_of_glb_files_are_linear_light(tmp_path, mesh):
    export.write_glb(tmp_path / "mesh.glb", dataclasses.replace(mesh, colors=np.full((8, 3), 0.7354, np.float32)))
    document = gltf_document.Document(tmp_path / "mesh.glb", [])
    (primitive,) = document.json["meshes"][0]["primitives"]
    colors = document.accessor(primitive["attributes"]["COLOR_0"])
    np.testing.assert_allclose(colors, [[0.5, 0.5, 0.5, 1]] * 8, atol=1e-4)


def red_tetrahedron():
    """Four vertices, and a color of the material that has four values."""
    file = gltf_files.File()
    points = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = np.uint16([0, 2, 1, 0, 1, 3, 0, 3, 2, 1, 2, 3])
    file.mesh(file.primitive(points, faces, file.material((1, 0, 0, 1)), TEXCOORD_0=None))
    return file


def test_the_color_of_a_material_is_that_of_all_vertices(tmp_path):
    mesh = export.read_mesh(red_tetrahedron().save(tmp_path / "mesh.glb"))
    np.testing.assert_allclose(mesh.colors, [[1, 0, 0]] * 4)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces).volume == pytest.approx(1 / 6)


def test_meshes_of_several_materials_have_the_colors_at_their_vertices(tmp_path):
    file = red_tetrahedron()
    file.mesh(file.primitive(material=file.material(texture=file.texture()), TEXCOORD_0=np.full((4, 2), 0.75)))
    mesh = export.read_mesh(file.save(tmp_path / "mesh.glb"))
    assert mesh.texture is None
    np.testing.assert_allclose(mesh.colors, [[1, 0, 0]] * 4 + [[1, 1, 0]] * 4, atol=1e-6)


def test_evaluation_reads_what_assets_read(tmp_path):
    file = gltf_files.File()
    skin = file.add("skins", {"joints": [file.node()]})
    weights = {"JOINTS_0": np.zeros((4, 4), np.uint8), "WEIGHTS_0": np.float32([[1, 0, 0, 0]] * 4)}
    file.mesh(file.primitive(**weights), skin=skin, scale=[9, 9, 9])
    np.testing.assert_allclose(np.ptp(export.read_mesh(file.save(tmp_path / "a.glb")).vertices, axis=0), [0, 2, 2])
