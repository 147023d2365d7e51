"""ComfyUI node: an image, and its mask if there is one, become the path of a textured GLB, by an `e3d app` server.

Copy this file into ComfyUI/custom_nodes. "Preview 3D" shows the mesh. Interrupting the queue cancels the job.
"""

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request

import numpy as np
from PIL import Image

SECONDS = 0.5  # between looks at the job


def ask(address: str, path: str, body: dict | None = None, method: str | None = None) -> bytes:
    """Return a server's answer; a refusal becomes a RuntimeError with the server's sentence."""
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("E3D_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address.rstrip('/')}/api{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["detail"]) from error
    except OSError as error:
        raise RuntimeError(f"no server at {address} ({error}); start one with 'e3d app'") from error


def encoded(image: np.ndarray, mask: np.ndarray | None) -> str:
    """Return an image [h, w, 3] in [0, 1] as a PNG in base64; transparent where the mask [h, w] is 1, as in ComfyUI."""
    rgb = (np.asarray(image)[..., :3] * 255).round().clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(rgb)
    if mask is not None and np.asarray(mask).any():
        alpha = ((1 - np.asarray(mask)) * 255).round().clip(0, 255).astype(np.uint8)
        picture.putalpha(Image.fromarray(alpha).resize(picture.size))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class ImageToMesh:
    """The node."""

    CATEGORY = "3d"
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("mesh_path",)
    FUNCTION = "make"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        """Return the inputs in ComfyUI's terms."""
        return {
            "required": {
                "image": ("IMAGE",),
                "server": ("STRING", {"default": "http://127.0.0.1:7860"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32 - 1}),
                "quality": (["weights", "fast", "standard", "best"],),
                "filename_prefix": ("STRING", {"default": "e3d"}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def make(self, image, server, seed, quality, filename_prefix, mask=None):
        """Return the path of the mesh of the first image, in ComfyUI's output folder."""
        import folder_paths
        from comfy import model_management, utils

        picture = {"data": encoded(image[0], None if mask is None else mask[0])}
        body = {"pictures": [picture], "seed": seed, "quality": quality}
        job, bar = json.loads(ask(server, "/jobs", body))["id"], utils.ProgressBar(100)
        try:
            while (progress := json.loads(ask(server, f"/jobs/{job}"))["progress"])["state"] in ("waiting", "running"):
                bar.update_absolute(round(100 * progress["done"] / max(progress["total"], 1)), 100)
                model_management.throw_exception_if_processing_interrupted()
                time.sleep(SECONDS)
        except BaseException:
            ask(server, f"/jobs/{job}", method="DELETE")
            raise
        if progress["state"] != "done":
            raise RuntimeError(progress["message"] or "the job was canceled")
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        path = os.path.join(folder, f"{name}_{counter:05}.glb")
        with open(path, "wb") as file:
            file.write(ask(server, f"/jobs/{job}/files/mesh.glb"))
        return (path,)


NODE_CLASS_MAPPINGS = {"E3DImageToMesh": ImageToMesh}
NODE_DISPLAY_NAME_MAPPINGS = {"E3DImageToMesh": "Image to mesh (e3d_jax)"}
