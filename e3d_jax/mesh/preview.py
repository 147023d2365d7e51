"""Pictures of meshes, by Embree ray casting on the CPU."""

import numpy as np
import trimesh
from jaxtyping import Float
from trimesh.ray.ray_pyembree import RayMeshIntersector

from e3d_jax import cameras as camera_ring
from e3d_jax import structs

SHADINGS = ("color", "normal")


def render_mesh(
    mesh: structs.Mesh, cameras: structs.Cameras, shading: str = "color", *, supersampling: int = 2
) -> Float[np.ndarray, "v h w 4"]:
    """Render vertex colours as they stand (no light added), or smooth world normals stored as (n + 1) / 2.

    Args:
      mesh: the mesh.
      cameras: from where.
      shading: "color" or "normal".
      supersampling: rays a pixel and axis; alpha is the share of them that hit.

    Returns:
      RGBA in [0, 1], straight alpha, white where nothing is hit.

    Raises:
      ValueError: unknown shading.
    """
    if shading not in SHADINGS:
        raise ValueError(f"{shading=} is unknown; choose one of {SHADINGS}")
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    values = np.asarray(mesh.colors) if shading == "color" else np.asarray(shape.vertex_normals)
    intersector = RayMeshIntersector(shape)
    views = [_render_view(shape, values, intersector, cameras[[v]], supersampling) for v in range(len(cameras))]
    rgba = np.stack(views)
    if shading == "normal":
        length = np.maximum(np.linalg.norm(rgba[..., :3], axis=-1, keepdims=True), 1e-9)
        rgba[..., :3] = np.where(rgba[..., 3:] > 0, rgba[..., :3] / length * 0.5 + 0.5, 1.0)
    return rgba.clip(0, 1)


def _render_view(shape, values, intersector, camera: structs.Cameras, supersampling: int):
    fine = structs.Cameras(
        world_from_cam=camera.world_from_cam,
        focal=np.asarray(camera.focal) * supersampling,
        center=np.asarray(camera.center) * supersampling,
        width=camera.width * supersampling,
        height=camera.height * supersampling,
    )
    rays = camera_ring.image_rays(fine)
    origins = np.asarray(rays.origins, np.float64).reshape(-1, 3)
    directions = np.asarray(rays.directions, np.float64).reshape(-1, 3)
    faces = intersector.intersects_first(origins, directions)
    hit = faces >= 0
    triangles, faces = shape.triangles[faces[hit]], faces[hit]
    normals = shape.face_normals[faces]
    slope = (normals * directions[hit]).sum(1)
    slope = np.where(np.abs(slope) < 1e-12, 1e-12, slope)
    depth = (normals * (triangles[:, 0] - origins[hit])).sum(1) / slope
    points = origins[hit] + depth[:, None] * directions[hit]
    weights = trimesh.triangles.points_to_barycentric(triangles, points, method="cross").clip(0, 1)
    out = np.zeros((len(hit), 4), np.float32)
    out[hit, :3] = (values[shape.faces[faces]] * weights[..., None]).sum(1)
    out[hit, 3] = 1
    out = out.reshape(camera.height, supersampling, camera.width, supersampling, 4).mean((1, 3))
    alpha = out[..., 3:]
    return np.concatenate([np.where(alpha > 0, out[..., :3] / np.maximum(alpha, 1e-9), 1.0), alpha], -1)
