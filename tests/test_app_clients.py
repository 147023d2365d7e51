"""The programs that use the server: Blender's add-on and ComfyUI's node."""

import base64
import importlib.util
import io
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.app_server import serving

ROOT = pathlib.Path(__file__).parents[1]
CLIENTS = sorted((ROOT / "clients").glob("*.py"))
BLENDER = """
import sys
import bpy

bpy.ops.preferences.addon_install(filepath=sys.argv[1])
bpy.ops.preferences.addon_enable(module="blender_e3d")
bpy.context.preferences.addons["blender_e3d"].preferences.address = sys.argv[2]
before = set(bpy.data.objects)
print("ended", bpy.ops.import_mesh.e3d_image(filepath=sys.argv[3], quality="fast", size=0.5))
(mesh,) = set(bpy.data.objects) - before
print("mesh", len(mesh.data.polygons), max(mesh.dimensions), len(mesh.data.materials))
"""


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.stem)
def test_clients_are_short(path):
    assert len(path.read_text().splitlines()) < 150


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("app") / "jobs", 0.0) as address:
        yield address


def blender(server, picture, folder):
    """What Blender prints when it imports a picture."""
    if importlib.util.find_spec("bpy") is None:
        pytest.skip("Blender's package bpy is not installed")
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "BLENDER_USER_RESOURCES": str(folder)}
    command = [sys.executable, "-c", BLENDER, str(ROOT / "clients/blender_e3d.py"), server, str(picture)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_blender_imports_the_mesh_of_an_image(server, tmp_path):
    said = blender(server, ROOT / "examples/cake.png", tmp_path)
    assert "ended {'FINISHED'}" in said.stdout, said.stderr
    faces, size, materials = said.stdout.partition("mesh ")[2].split()[:3]
    assert (int(faces), int(materials)) == (1280, 1) and float(size) == pytest.approx(0.5, rel=0.01)


@pytest.mark.slow
def test_blender_shows_why_an_image_is_refused(server, tmp_path):
    (tmp_path / "a.png").write_bytes(b"text")
    said = blender(server, tmp_path / "a.png", tmp_path)
    assert "picture 1 is not a picture, or is damaged" in said.stdout + said.stderr


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """The node's module, with the parts of ComfyUI that it uses."""
    bars = []

    class Bar:
        def __init__(self, total):
            bars.append(0)

        def update_absolute(self, value, total):
            bars.append(value)

    class Interrupted(Exception):
        pass

    state = types.SimpleNamespace(bars=bars, interrupt=False, Interrupted=Interrupted)

    def throw():
        if state.interrupt:
            raise Interrupted

    folders = types.ModuleType("folder_paths")
    folders.get_output_directory = lambda: str(tmp_path)
    folders.get_save_image_path = lambda prefix, folder: (folder, prefix, 1, "", prefix)
    package = types.ModuleType("comfy")
    package.model_management = types.SimpleNamespace(throw_exception_if_processing_interrupted=throw)
    package.utils = types.SimpleNamespace(ProgressBar=Bar)
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    monkeypatch.setitem(sys.modules, "comfy", package)
    spec = importlib.util.spec_from_file_location("comfyui_e3d", ROOT / "clients/comfyui_e3d.py")
    state.module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(state.module)
    return state


def square():
    """A red square on white, as ComfyUI passes images, and the mask of what surrounds it."""
    image, mask = np.ones((1, 64, 64, 3), np.float32), np.ones((1, 64, 64), np.float32)
    image[:, 16:48, 16:48], mask[:, 16:48, 16:48] = [0.8, 0.1, 0.1], 0
    return image, mask


@pytest.mark.slow
def test_the_node_writes_the_mesh_of_an_image(comfy, server, tmp_path):
    image, mask = square()
    node = comfy.module.NODE_CLASS_MAPPINGS["E3DImageToMesh"]()
    (path,) = node.make(image, server, 0, "fast", "e3d", mask)
    assert pathlib.Path(path) == tmp_path / "e3d_00001.glb"
    assert trimesh.load_mesh(path).volume > 0.2


@pytest.mark.slow
def test_an_interrupted_node_cancels_its_job(comfy, server, monkeypatch):
    asked, ask = [], comfy.module.ask
    monkeypatch.setattr(comfy.module, "ask", lambda *a, **k: asked.append((a[1], k.get("method"))) or ask(*a, **k))
    comfy.interrupt = True
    with pytest.raises(comfy.Interrupted):
        comfy.module.ImageToMesh().make(square()[0], server, 0, "fast", "e3d")
    assert asked[-1][1] == "DELETE"


def test_the_mask_of_a_node_is_the_transparency_of_its_picture(comfy):
    image, mask = square()
    picture = Image.open(io.BytesIO(base64.b64decode(comfy.module.encoded(image[0], mask[0]))))
    assert picture.mode == "RGBA"
    assert picture.getpixel((32, 32)) == (204, 26, 26, 255) and picture.getpixel((2, 2))[3] == 0


def test_a_missing_server_is_named(comfy):
    with pytest.raises(RuntimeError, match=r"no server at http://127\.0\.0\.1:9 .*; start one with 'e3d app'"):
        comfy.module.ask("http://127.0.0.1:9", "/jobs/x")
