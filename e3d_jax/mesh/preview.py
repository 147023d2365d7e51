"""Images of meshes, by ray casting on the CPU."""

import io
import os

import numpy as np
from jaxtyping import Float
from PIL import Image

from e3d_jax import cameras, files, images, raycast, structs
from e3d_jax.mesh import extract

SHADINGS = ("color", "normal")
TURNTABLE_FRAMES = 24


def render_mesh(
    mesh: structs.Mesh, views: structs.Cameras, shading: str = "color", *, supersampling: int = 2
) -> Float[np.ndarray, "v h w 4"]:
    """Render the texture or vertex colors (without lighting), or encoded smooth normals (:func:`images.encode_normal`).

    Args:
      mesh: the mesh.
      views: the cameras.
      shading: "color" or "normal".
      supersampling: rays per pixel and axis; alpha is the fraction of them that hit.

    Returns:
      RGBA in [0, 1], straight alpha, white where no ray hits.

    Raises:
      ValueError: the shading is unknown.
    """
    if shading not in SHADINGS:
        raise ValueError(f"{shading=} is unknown; choose one of {SHADINGS}")
    shade = _normal_shade(mesh) if shading == "normal" else _color_shade(mesh)
    surface = raycast.Surface(mesh.vertices, mesh.faces)
    values, alpha = zip(
        *(surface.render(views[[v]], shade, supersampling=supersampling) for v in range(len(views))), strict=True
    )
    shaded, alpha = np.stack(values), np.stack(alpha)
    if shading == "normal":
        unit = shaded / np.maximum(np.linalg.norm(shaded, axis=-1, keepdims=True), 1e-9)
        return np.asarray(images.encode_normal(unit, alpha)).clip(0, 1)
    alpha = alpha[..., None]
    return np.concatenate([np.where(alpha > 0, shaded, 1.0), alpha], -1).clip(0, 1)


def write_turntable(path: str | os.PathLike, mesh: structs.Mesh, size: int = 192) -> None:
    """Write an endless GIF of the turning mesh, in color on the left and shaded by its normals on the right.

    Raises:
      OSError: the file cannot be written.
    """
    ring = cameras.ring(size, TURNTABLE_FRAMES)
    halves = [np.asarray(images.composite(render_mesh(mesh, ring, shading))) for shading in SHADINGS]
    frames = [Image.fromarray(images.to_uint8(frame)) for frame in np.concatenate(halves, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=2500 // TURNTABLE_FRAMES, loop=0)
    files.write_atomically(path, buffer.getvalue())


def _color_shade(mesh: structs.Mesh) -> raycast.Shade:
    if mesh.texture is None:
        return lambda hits: raycast.corner_values(mesh.colors[mesh.faces[hits.face]], hits)
    image, uv = mesh.texture.image, mesh.texture.corner_uv
    return lambda hits: raycast.sample_texture(image, raycast.corner_values(uv[hits.face], hits))


def _normal_shade(mesh: structs.Mesh) -> raycast.Shade:
    normals = extract.vertex_normals(mesh)
    return lambda hits: raycast.corner_values(normals[mesh.faces[hits.face]], hits)
