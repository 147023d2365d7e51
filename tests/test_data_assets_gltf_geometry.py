"""Shapes of glTF as its specification says, each fact on a file of a few triangles."""

import gltf_files
import numpy as np
import pytest
from gltf_files import SQUARE, extents

from e3d_jax.data.assets import reading


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.glb"


def add_skin(file, joints, inverse=None):
    matrices = {} if inverse is None else {"inverseBindMatrices": file.accessor(np.float32(inverse))}
    return file.add("skins", {"joints": joints, **matrices})


def skinned(joints, weights=(1, 0, 0, 0)):
    return {
        "JOINTS_0": np.uint8([[*joints, *(4 - len(joints)) * [0]]] * 4),
        "WEIGHTS_0": np.float32([weights] * 4),
    }


def test_the_transform_of_a_skinned_node_counts_for_nothing(path):
    file = gltf_files.File()
    joint = file.node()
    skin = add_skin(file, [joint])
    file.mesh(file.primitive(**skinned([0])), skin=skin, scale=[0.01, 0.01, 0.01])
    file.mesh(file.primitive(), translation=[2, 0, 0])
    np.testing.assert_allclose(extents(file.save(path)), [1, 0.5, 0], atol=1e-6)


def test_skins_have_the_scale_of_their_armature(path):
    file = gltf_files.File()
    joint = file.node(root=False)
    skin = add_skin(file, [joint])
    file.mesh(file.primitive(points=SQUARE * 100, **skinned([0])), skin=skin, root=False)
    file.node(scale=[0.01] * 3, children=[joint, joint + 1])
    file.mesh(file.primitive(), translation=[2, 0, 0])
    np.testing.assert_allclose(extents(file.save(path)), [1, 0.5, 0], atol=1e-6)


def test_inverse_bind_matrices_and_weights_of_several_joints(path):
    file = gltf_files.File()
    joints = [file.node(translation=[0, 3, 0]), file.node(translation=[0, 5, 0])]
    inverse = np.stack([np.eye(4), np.eye(4)])
    inverse[:, 3, :3] = [[0, -3, 0], [0, -1, 0]]  # By columns: translations by -3 and -1 along y.
    skin = add_skin(file, joints, inverse.reshape(2, 16))
    file.mesh(file.primitive(**skinned([0, 1], (0.5, 0.5, 0, 0))), skin=skin)  # Moved up by (0 + 4) / 2.
    file.mesh(file.primitive())
    np.testing.assert_allclose(extents(file.save(path)), [0.5, 1, 0], atol=1e-6)


@pytest.mark.parametrize("where", ["mesh", "node", "neither"])
def test_morph_weights(path, where):
    file = gltf_files.File()
    taller = file.accessor(np.float32([[0, 0, 0], [0, 0, 0], [0, 2, 0], [0, 2, 0]]))
    file.mesh(file.primitive(primitive={"targets": [{"POSITION": taller}]}))
    if where != "neither":
        file.json["meshes" if where == "mesh" else "nodes"][0]["weights"] = [1.0]
    expected = [1, 1, 0] if where == "neither" else [0.5, 1, 0]
    np.testing.assert_allclose(extents(file.save(path)), expected, atol=1e-6)


def add_sparse(file, base):
    """Positions of a square, of which two are replaced to make it twice as high."""
    points = SQUARE if base else np.zeros_like(SQUARE)
    moved = np.uint16([2, 3] if base else [0, 1, 2, 3])
    values = SQUARE.copy()
    values[2:, 1] = 3
    sparse = {
        "count": len(moved),
        "indices": {"bufferView": file.view(moved.tobytes()), "componentType": 5123},
        "values": {"bufferView": file.view(values[moved].tobytes())},
    }
    index = file.accessor(points, sparse=sparse)
    if not base:
        del file.json["accessors"][index]["bufferView"]
    return index


@pytest.mark.parametrize("base", [True, False])
def test_sparse_accessors_with_and_without_a_base(path, base):
    file = gltf_files.File()
    file.mesh(file.primitive(POSITION=add_sparse(file, base)))
    np.testing.assert_allclose(extents(file.save(path)), [0.5, 1, 0], atol=1e-6)


@pytest.mark.parametrize(("mode", "faces"), [(4, [0, 1, 2, 0, 2, 3]), (5, [0, 1, 3, 2]), (6, [0, 1, 2, 3]), (6, None)])
def test_all_modes_of_triangles_face_outward(path, mode, faces):
    file = gltf_files.File()
    file.mesh(file.primitive(faces=None if faces is None else np.uint8(faces), primitive={"mode": mode}))
    asset = reading.read_asset(file.save(path))
    assert len(asset.faces) == 2
    a, b, c = np.moveaxis(asset.vertices[asset.faces], 1, 0)
    assert (np.cross(b - a, c - a)[:, 0] > 0).all()


def test_lines_and_points_are_left_out(path):
    file = gltf_files.File()
    file.mesh(file.primitive(), file.primitive(points=SQUARE * 9, primitive={"mode": 1}))
    np.testing.assert_allclose(len(reading.read_asset(file.save(path)).faces), 2)


def test_instances(path):
    file = gltf_files.File(extensionsRequired=["EXT_mesh_gpu_instancing"])
    file.mesh(file.primitive())
    attributes = {
        "TRANSLATION": file.accessor(np.float32([[0, 0, 0], [3, 0, 0], [6, 0, 0]])),
        "ROTATION": file.accessor(np.int8([[0, 0, 0, 127]] * 2 + [[0, 0, 127, 0]]), normalized=True),
        "SCALE": file.accessor(np.float32([[1, 1, 1], [1, 1, 1], [1, 2, 1]])),
    }
    file.json["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    asset = reading.read_asset(file.save(path))
    assert len(asset.faces) == 6
    np.testing.assert_allclose(extents(path), [1, 0.5, 0], atol=1e-6)


def test_mirrored_nodes_keep_their_outside(path):
    file = gltf_files.File()
    file.mesh(file.primitive(), scale=[-1, 1, 1])
    asset = reading.read_asset(file.save(path))
    a, b, c = np.moveaxis(asset.vertices[asset.faces], 1, 0)
    assert (np.cross(b - a, c - a)[:, 0] > 0).all()


def test_only_the_default_scene_is_read_and_hidden_nodes_are_not(path):
    file = gltf_files.File()
    file.mesh(file.primitive())
    file.mesh(file.primitive(points=SQUARE * 9), root=False)
    file.mesh(file.primitive(points=SQUARE * 9), extensions={"KHR_node_visibility": {"visible": False}})
    assert len(reading.read_asset(file.save(path)).faces) == 2


def test_positions_of_normalized_integers(path):
    file = gltf_files.File(extensionsRequired=["KHR_mesh_quantization"])
    short = (SQUARE * 32767).astype(np.int16)
    for at in (0, 3):
        points = file.accessor(short, normalized=True)
        file.mesh(file.primitive(POSITION=points), translation=[at, 0, 0])
    np.testing.assert_allclose(extents(file.save(path)), [1, 0.4, 0], atol=1e-4)
