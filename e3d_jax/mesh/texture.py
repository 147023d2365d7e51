"""An atlas for a mesh, painted from the views that see it.

Symbols: n texels, v views, k the views that look at a texel most directly.
"""

import functools
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
import xatlas
from jaxtyping import Array, Float
from scipy import ndimage, sparse
from scipy.sparse import csgraph, linalg

from e3d_jax import raycast, structs
from e3d_jax.mesh import extract

PADDING = 4  # texels between charts
LOOKS = 8  # views that paint a texel
SHARPNESS = 4.0  # power of the cosine by which views that look straight at a texel count more
PRIOR = 0.02  # weight of the fitted colour beside a view that looks straight
UNSEEN = 0.1  # weight of all views below which a point is taken as unseen
TOLERANCE = 0.15  # difference of colours at which a view begins to count as an outlier
CHART_FACES = 400  # about the most in one chart; flattening takes more than twice as long for twice the faces


def paint(
    mesh: structs.Mesh,
    color_fn: extract.ColorFn,
    views: structs.ViewSet,
    size: int,
    *,
    view_weights: Float[structs.ArrayLike, " v"] | None = None,
) -> structs.Mesh:
    """The mesh with a texture.

    A texel is the mean of what the views show there, weighted by how directly they look, less those that disagree with
    the others; the fitted colour is one more voice. What no view sees continues the colours around it. Texels between
    the charts continue the nearest chart, so that no seam shows when the texture is filtered or shrunk.

    Args:
      mesh: a closed mesh.
      color_fn: fitted display-encoded RGB of points on the surface, see :func:`extract.extract_mesh`.
      views: the pictures.
      size: width and height of the texture in pixels.
      view_weights: trust in each view; all alike when not given.

    Raises:
      ValueError: ``size`` is below 16.
    """
    if size < 16:
        raise ValueError(f"a texture of {size} pixels holds nothing; use at least 16")
    corner_uv = unwrap(mesh, size)
    smooth = extract.vertex_normals(mesh)
    texels, hits, points, normals = _surface_of(mesh, smooth, corner_uv, size)
    weights = np.ones(len(views.rgba)) if view_weights is None else np.asarray(view_weights)
    pictures = jnp.asarray(views.rgba), jnp.asarray(depth_maps(mesh, views.cameras))
    cameras = jax.tree.map(jnp.asarray, views.cameras)

    def look(points, normals, fitted):
        """What the views show, and how much they say."""
        see = functools.partial(_look, *pictures, cameras, jnp.asarray(weights))
        return np.split(extract.in_chunks(see, np.concatenate([points, normals, fitted], -1)), [3], -1)

    # The fit knows colours only where views look; its guesses elsewhere are noise.
    unseen, calm = _continued(mesh, smooth, look)
    share = raycast.corner_values(unseen[mesh.faces[hits.face]], hits)
    fitted = extract.in_chunks(color_fn, points)
    fitted = (1 - share) * fitted + share * raycast.corner_values(calm[mesh.faces[hits.face]], hits)
    image, covered = np.zeros((size, size, 3), np.float32), np.zeros((size, size), bool)
    image[texels], _ = look(points, normals, fitted.astype(np.float32))
    covered[texels] = True
    row, column = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return structs.Mesh(mesh.vertices, mesh.faces, mesh.colors, structs.Texture(image[row, column], corner_uv))


def _continued(mesh, smooth, look):
    """Which vertices no view sees, ``[p, 1]``, and colours of all vertices, ``[p, 3]``, that go on smoothly there.

    Harmonic on the graph of the edges between what is seen, and fading to the fitted colour far from it.
    """
    colors, weights = look(mesh.vertices, smooth.astype(np.float32), mesh.colors.astype(np.float32))
    unseen = weights[:, 0] < UNSEEN
    edges = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    count = len(mesh.vertices)
    adjacency = sparse.coo_array((np.ones(len(edges)), edges.T), (count, count)).tocsr()
    _, part = csgraph.connected_components(adjacency, directed=False)
    unseen &= (np.bincount(part, ~unseen) > 0)[part]  # A part that nobody sees has nothing to continue.
    hold = np.where(unseen, 1e-4, 1e4)
    system = sparse.diags_array(adjacency.sum(1) + hold) - adjacency
    calm = linalg.splu(system.tocsc()).solve(hold[:, None] * colors.astype(np.float64))
    return unseen[:, None].astype(np.float32), calm.astype(np.float32).clip(0, 1)


def unwrap(mesh: structs.Mesh, size: int) -> Float[np.ndarray, "f 3 2"]:
    """Corners of the faces in an atlas of charts that do not overlap (xatlas), in [0, 1]."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    chart.max_iterations = 1  # More of them triple the time and hardly change the charts of smooth surfaces.
    area = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).area
    chart.max_chart_area = area * CHART_FACES / len(mesh.faces)
    pack.padding, pack.resolution, pack.bilinear = PADDING, size, True
    atlas.generate(chart, pack)
    _, faces, uv = atlas[0]
    return np.asarray(uv, np.float32)[np.asarray(faces, np.int64)]


def _surface_of(mesh, smooth, corner_uv, size):
    """Texels that charts cover as (rows, columns), what of the mesh is there, its points and unit normals."""
    flat = corner_uv.reshape(-1, 2)
    sheet = raycast.Surface(np.pad(flat, ((0, 0), (0, 1))), np.arange(len(flat)).reshape(-1, 3))
    row, column = np.divmod(np.arange(size * size), size)
    above = np.stack([(column + 0.5) / size, 1 - (row + 0.5) / size, np.ones(size * size)], -1)
    hit, hits = sheet.cast(above, np.broadcast_to([0.0, 0, -1], above.shape))
    corners = mesh.faces[hits.face]
    points = raycast.corner_values(mesh.vertices[corners], hits).astype(np.float32)
    normals = raycast.corner_values(smooth[corners], hits)
    normals = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    return (row[hit], column[hit]), hits, points, normals.astype(np.float32)


def depth_maps(mesh: structs.Mesh, cameras: structs.Cameras) -> Float[np.ndarray, "v h w"]:
    """Distance of the mesh along the optical axis at pixel centres, infinite where nothing is seen."""
    surface, poses = raycast.Surface(mesh.vertices, mesh.faces), np.asarray(cameras.world_from_cam)

    def draw(view):
        along = lambda hits: (hits.depth * (hits.directions @ poses[view, :3, 2]))[:, None]  # noqa: E731
        depth, alpha = surface.draw(cameras[[view]], along, supersampling=1)
        return np.where(alpha > 0, depth[..., 0], np.inf)

    # Not too many at once: each holds the rays of a view.
    with futures.ThreadPoolExecutor(8) as pool:
        return np.stack(list(pool.map(draw, range(len(poses))))).astype(np.float32)


@jax.jit
def _look(
    rgba: Float[Array, "v h w 4"],
    depths: Float[Array, "v h w"],
    cameras: structs.Cameras,
    trust: Float[Array, " v"],
    surface: Float[structs.ArrayLike, "n 9"],
) -> Float[Array, "n 4"]:
    """Colours of points of the surface (position, normal, fitted colour), and how much the views say about them."""
    points, normals, fitted = jnp.split(jnp.asarray(surface), 3, -1)
    pose = cameras.world_from_cam
    toward = pose[:, :3, 3] - points[:, None]
    distance = jnp.linalg.norm(toward, axis=-1)
    cosine = (toward * normals[:, None]).sum(-1) / distance
    best, view = jax.lax.top_k(cosine * jnp.where(trust > 0, 1.0, 0.0), min(LOOKS, len(trust)))
    # Elementwise products: matrix products have reduced precision on accelerators.
    turned = -(jnp.take_along_axis(toward, view[..., None], 1)[..., None] * pose[view, :3, :3]).sum(-2)
    pixel = turned[..., :2] / turned[..., 2:] * cameras.focal[view] + cameras.center[view] - 0.5
    colors, alpha, nearest = _bilinear(rgba, depths, view, pixel)
    # A pixel's worth of the surface is deeper at its far side, the more so where it is seen at a slant.
    slack = turned[..., 2] / cameras.focal[view, 0] * (1 + 1.5 / jnp.maximum(best, 0.05))
    seen = (best > 0.1) & (turned[..., 2] < nearest + slack)
    weights = jnp.where(seen, jnp.maximum(best, 0.0) ** SHARPNESS * alpha**2 * trust[view], 0.0)
    return jnp.concatenate([_consensus(colors, weights, fitted), weights.sum(1, keepdims=True)], -1)


def _consensus(colors, weights, fitted):
    """Weighted mean of ``[n, k]`` colours and the fitted one, with Welsch's weights against outliers."""
    agreed, believed = fitted, weights[..., None]
    # From a plain mean to a strict one, so that no first guess decides who is an outlier.
    for tolerance in (4 * TOLERANCE, 2 * TOLERANCE, TOLERANCE):
        agreed = ((believed * colors).sum(1) + PRIOR * fitted) / (believed.sum(1) + PRIOR)
        error = ((colors - agreed[:, None]) ** 2).sum(-1)
        believed = (weights * jnp.exp(-error / (2 * tolerance**2)))[..., None]
    return ((believed * colors).sum(1) + PRIOR * fitted) / (believed.sum(1) + PRIOR)


def _bilinear(rgba, depths, view, pixel):
    """Colour and coverage of views at points of their images, and the nearest depth of the four pixels around."""
    height, width = depths.shape[1:]
    low = jnp.floor(pixel)
    colors, nearest = 0.0, jnp.inf
    for down in (0, 1):
        for right in (0, 1):
            at = (low + jnp.array([right, down])).astype(jnp.int32)
            share = jnp.prod(1 - jnp.abs(pixel - low - jnp.array([right, down])), -1, keepdims=True)
            x, y = jnp.clip(at[..., 0], 0, width - 1), jnp.clip(at[..., 1], 0, height - 1)
            inside = ((at >= 0) & (at < jnp.array([width, height]))).all(-1)
            sample = rgba[view, y, x]
            # Premultiplied, so that the white behind the object does not bleed in.
            covered = sample[..., 3:] * share * inside[..., None]
            colors += jnp.concatenate([sample[..., :3] * covered, covered], -1)
            nearest = jnp.minimum(nearest, depths[view, y, x])
    return colors[..., :3] / jnp.maximum(colors[..., 3:], 1e-6), colors[..., 3], nearest
