"""Blender add-on: File > Import > Image as mesh (e3d_jax); the mesh is made by an `e3d app` server.

Install this file in Preferences > Add-ons, and enter the server's address and token there. Escape cancels.
"""

import base64
import json
import pathlib
import tempfile
import time
import urllib.error
import urllib.request

import bpy
from bpy_extras.io_utils import ImportHelper

bl_info = {
    "name": "Image as mesh (e3d_jax)",
    "blender": (4, 2, 0),
    "category": "Import-Export",
    "location": "File > Import",
    "description": "Makes a textured mesh of an image with an e3d app server",
}
SECONDS = 0.5  # between looks at the job


class Server:
    """The HTTP interface of `e3d app`."""

    def __init__(self, address: str, token: str = ""):
        self._address = address.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def ask(self, path: str, body: dict | None = None, method: str | None = None) -> bytes:
        """Return the answer to a request; a refusal becomes a RuntimeError with the server's sentence."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._address}/api{path}", data, self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["detail"]) from error
        except OSError as error:
            raise RuntimeError(f"no server at {self._address} ({error}); start one with 'e3d app'") from error

    def submit(self, image: pathlib.Path, **options: object) -> str:
        """Begin a job, and return its id."""
        picture = {"data": base64.b64encode(image.read_bytes()).decode()}
        return json.loads(self.ask("/jobs", {"pictures": [picture], **options}))["id"]

    def progress(self, job: str) -> dict:
        """Return where a job is."""
        return json.loads(self.ask(f"/jobs/{job}"))["progress"]


class Preferences(bpy.types.AddonPreferences):
    bl_idname = __name__

    address: bpy.props.StringProperty(name="Server", default="http://127.0.0.1:7860")
    token: bpy.props.StringProperty(name="Token", subtype="PASSWORD")

    def draw(self, context):
        self.layout.prop(self, "address")
        self.layout.prop(self, "token")


class ImportImage(bpy.types.Operator, ImportHelper):
    """Make a textured mesh of an image."""

    bl_idname = "import_mesh.e3d_image"
    bl_label = "Make mesh"
    bl_options = {"UNDO"}

    filter_glob: bpy.props.StringProperty(default="*.png;*.jpg;*.jpeg;*.webp", options={"HIDDEN"})
    quality: bpy.props.EnumProperty(
        name="Quality", items=[(name, name.capitalize(), "") for name in ("weights", "fast", "standard", "best")]
    )
    seed: bpy.props.IntProperty(name="Seed", min=0)
    size: bpy.props.FloatProperty(name="Longest side", default=1.0, min=0.001, unit="LENGTH")

    def execute(self, context):
        chosen = context.preferences.addons[__name__].preferences
        self._server = Server(chosen.address, chosen.token)
        path = pathlib.Path(self.filepath)
        try:
            self._job = self._server.submit(path, seed=self.seed, quality=self.quality, size=self.size)
            if bpy.app.background:
                while (ended := self._step(context)) is None:
                    time.sleep(SECONDS)
                return ended
        except (RuntimeError, OSError) as error:
            return self._fail(str(error))
        self._timer = context.window_manager.event_timer_add(SECONDS, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context, event):
        ended = None
        try:
            if event.type == "ESC":
                self._server.ask(f"/jobs/{self._job}", method="DELETE")
                ended = {"CANCELLED"}
            elif event.type == "TIMER":
                ended = self._step(context)
        except RuntimeError as error:
            ended = self._fail(str(error))
        if ended is None:
            return {"PASS_THROUGH"}
        context.window_manager.event_timer_remove(self._timer)
        context.workspace.status_text_set(None)
        return ended

    def _step(self, context):
        """Look at the job; return what the operator ends with, or None while it goes on."""
        progress = self._server.progress(self._job)
        if progress["state"] == "done":
            with tempfile.TemporaryDirectory() as folder:
                mesh = pathlib.Path(folder, pathlib.Path(self.filepath).stem).with_suffix(".glb")
                mesh.write_bytes(self._server.ask(f"/jobs/{self._job}/files/mesh.glb"))
                return bpy.ops.import_scene.gltf(filepath=str(mesh))
        if progress["state"] in ("failed", "cancelled"):
            return self._fail(progress["message"] or "the job was canceled")
        if context.workspace:
            step = f"{progress['stage']}: {progress['done']} of {progress['total']}" if progress["total"] else "waiting"
            context.workspace.status_text_set(f"Make mesh: {step}, Escape cancels")
        return None

    def _fail(self, message):
        self.report({"ERROR"}, message)
        return {"CANCELLED"}


def _menu(menu, context):
    menu.layout.operator(ImportImage.bl_idname, text="Image as mesh (e3d_jax)")


def register():
    bpy.utils.register_class(Preferences)
    bpy.utils.register_class(ImportImage)
    bpy.types.TOPBAR_MT_file_import.append(_menu)


def unregister():
    bpy.types.TOPBAR_MT_file_import.remove(_menu)
    bpy.utils.unregister_class(ImportImage)
    bpy.utils.unregister_class(Preferences)
