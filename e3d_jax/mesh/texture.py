"""A texture atlas for a mesh, painted from the views and photos that see it.

Symbols: n texels, v views, k the views that see a texel most directly.
"""

import functools
import math
from collections.abc import Sequence
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
import xatlas
from jaxtyping import Array, Float
from scipy import ndimage, sparse
from scipy.sparse import csgraph, linalg

from e3d_jax import cameras as cameras_lib
from e3d_jax import images, raycast, structs
from e3d_jax.mesh import extract

PADDING = 4  # texels between charts
LOOKS = 8  # views per texel
SHARPNESS = 4.0  # power of the cosine that weights views which see a texel directly more
PRIOR = 0.02  # weight of the fitted color; a view that sees a texel straight on has weight 1
UNSEEN = 0.1  # a point counts as unseen if the total weight of the views is below this
TOLERANCE = 0.15  # color difference at which a view starts to count as an outlier
# Photos: cosines between which they begin to be used; distances from the outlines that they show, as fractions of their
# width; and over which length, in object units, their difference from the views is averaged, and carried on.
COSINES, OUTLINES = (0.1, 0.4), (1 / 400, 1 / 80)
AVERAGED, CARRIED = 0.03, 1.0
DARK = 0.1  # added to colors before their ratio is taken, which light and exposure change alike everywhere
CHART_FACES = 400  # approximate maximum per chart; flattening time grows faster than linearly with it


def paint(
    mesh: structs.Mesh,
    color_fn: extract.ColorFn,
    views: structs.ViewSet,
    size: int,
    *,
    view_weights: Float[structs.ArrayLike, " v"] | None = None,
    photos: Sequence[structs.Photo] = (),
) -> structs.Mesh:
    """Add a texture to a mesh.

    A texel is the mean of the colors that the views show there, weighted by how directly they see it, without views
    that disagree with the others; the fitted color contributes as well. Parts that no view sees continue the colors
    around them. Where photos see the surface, texels have their colors. Elsewhere the views are changed by what the
    photos differ from them nearby, so that there is no step at the border. Texels between the charts continue the
    nearest chart, so that no seams appear when the texture is filtered or shrunk.

    Args:
      mesh: a closed mesh.
      color_fn: fitted display-encoded RGB of points on the surface, see :func:`extract.extract_mesh`.
      views: the images.
      size: width and height of the texture in pixels.
      view_weights: trust in each view; equal by default.
      photos: images that count more than the views.

    Raises:
      ValueError: ``size`` is below 16.
    """
    if size < 16:
        raise ValueError(f"a texture of {size} pixels is too small; use at least 16")
    corner_uv = unwrap(mesh, size)
    smooth = extract.vertex_normals(mesh)
    texels, hits, points, normals = _surface_of(mesh, smooth, corner_uv, size)
    weights = np.ones(len(views.rgba)) if view_weights is None else np.asarray(view_weights)
    rgba_and_depths = jnp.asarray(views.rgba), jnp.asarray(depth_maps(mesh, views.cameras))
    cameras = jax.tree.map(jnp.asarray, views.cameras)

    def look(points, normals, fitted):
        """Return the colors that the views show, and their total weight."""
        see = functools.partial(_look, *rgba_and_depths, cameras, jnp.asarray(weights))
        return np.split(extract.in_chunks(see, np.concatenate([points, normals, fitted], -1)), [3], -1)

    # The fit knows colors only where views see the surface; elsewhere its guesses are noise.
    calm = _continued(mesh, smooth, look)
    continued = raycast.corner_values(calm[mesh.faces[hits.face]], hits).astype(np.float32)
    colors, weight = look(points, normals, extract.in_chunks(color_fn, points))
    colors = continued + (weight / UNSEEN).clip(0, 1) * (colors - continued)
    if photos:
        texel = math.sqrt(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).area / max(len(points), 1))
        shown = [_Shown(mesh, photo, texel) for photo in photos]
        own, share = _seen(shown, mesh.vertices, smooth)
        step = _carried(mesh, np.log((own + DARK) / (calm + DARK)), share)
        own, share = _seen(shown, points, normals)
        changed = (colors + DARK) * np.exp(raycast.corner_values(step[mesh.faces[hits.face]], hits)) - DARK
        colors = (1 - share) * changed.clip(0, 1) + share * own
    image, covered = np.zeros((size, size, 3), np.float32), np.zeros((size, size), bool)
    image[texels] = colors
    covered[texels] = True
    row, column = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return structs.Mesh(mesh.vertices, mesh.faces, mesh.colors, structs.Texture(image[row, column], corner_uv))


class _Shown:
    """A photo, and how far each of its pixels can be trusted to show the mesh."""

    def __init__(self, mesh: structs.Mesh, photo: structs.Photo, texel: float):
        pose, width = np.asarray(photo.camera.world_from_cam)[0], photo.camera.width
        pixel = float(np.linalg.norm(pose[:3, 3]) / np.asarray(photo.camera.focal)[0, 0])
        size = min(width, math.ceil(width * pixel / texel))  # More pixels than texels would alias.
        self._pose = pose
        self._camera = cameras_lib.cropped(photo.camera, np.zeros((1, 2)), np.full(1, float(width)), size)
        rgba = images.crop(photo.rgba, (0.0, 0.0, float(width)), size)
        depth = depth_maps(mesh, self._camera)[0]
        footprint = depth / np.asarray(self._camera.focal)[0, 0]
        nearest, farthest = ndimage.minimum_filter(depth, 3), ndimage.maximum_filter(depth, 3)
        steep = 3 / COSINES[0]  # Where depths differ more within three pixels, one part of the mesh hides another.
        with np.errstate(invalid="ignore"):
            inner = (rgba[..., 3] > 0.9) & (farthest - nearest < steep * footprint)
        away = ndimage.distance_transform_edt(np.pad(inner, 1))[1:-1, 1:-1] / size
        self._nearest = np.where(np.isfinite(nearest), nearest, -1.0)
        trust = _ramp(away, OUTLINES)
        self._maps = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:], trust[..., None]], -1)

    def look(self, points: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]):
        """Return the colors ``[n, 3]`` of surface points, how far they can be trusted ``[n, 1]``, and the cosines."""
        toward = self._pose[:3, 3] - points
        cosine = (toward * normals).sum(-1) / np.linalg.norm(toward, axis=-1)
        cam = -toward @ self._pose[:3, :3]
        pixel = cam[:, :2] / np.maximum(cam[:, 2:], 1e-6) * np.asarray(self._camera.focal) + self._camera.center - 0.5
        at = pixel[:, 1], pixel[:, 0]
        sample = functools.partial(ndimage.map_coordinates, coordinates=at, mode="constant")
        red, green, blue, alpha, trust = (sample(each, order=1) for each in np.moveaxis(self._maps, -1, 0))
        slack = cam[:, 2] / np.asarray(self._camera.focal)[0, 0] * (1 + 1.5 / np.maximum(cosine, 0.05))
        visible = cam[:, 2] < sample(self._nearest, order=0, cval=-1.0) + slack
        colors = np.stack([red, green, blue], -1) / np.maximum(alpha, 1e-6)[:, None]
        return colors, np.where(visible, trust * _ramp(cosine, COSINES), 0.0)[:, None], cosine[:, None]


def _ramp(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return a smooth step from 0 at the lower limit to 1 at the upper one."""
    x = ((values - limits[0]) / (limits[1] - limits[0])).clip(0, 1)
    return x * x * (3 - 2 * x)


def _seen(shown: list[_Shown], points, normals):
    """Return the colors that photos show, those that look straight on first, and the share of texels they have."""
    looks = [each.look(points, normals) for each in shown]
    weights = np.stack([trust * np.maximum(cosine, 0.0) ** (2 * SHARPNESS) for _, trust, cosine in looks])
    colors = (weights * np.stack([color for color, _, _ in looks])).sum(0) / np.maximum(weights.sum(0), 1e-12)
    return colors.astype(np.float32), np.max([trust for _, trust, _ in looks], 0).astype(np.float32)


def _carried(mesh: structs.Mesh, step: Float[np.ndarray, "p 3"], share: Float[np.ndarray, "p 1"]):
    """Return differences at the vertices, made smooth where the photos see the mesh, and fading from there."""
    start, end = mesh.faces, np.roll(mesh.faces, -1, 1)
    length = np.linalg.norm(mesh.vertices[start] - mesh.vertices[end], axis=-1).mean()
    hold = (length / AVERAGED) ** 2 * share
    return _smoothed(_adjacency(mesh), hold * step, hold + (length / CARRIED) ** 2)


def _adjacency(mesh: structs.Mesh) -> sparse.csr_array:
    """Return the graph of the edges of a mesh."""
    edges = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    return sparse.coo_array((np.ones(len(edges)), edges.T), 2 * (len(mesh.vertices),)).tocsr()


def _smoothed(graph: sparse.csr_array, pull: Float[np.ndarray, "p 3"], hold: Float[np.ndarray, "p 1"]):
    """Return the values x that minimize the squared differences along edges and ``hold * (x - pull / hold)**2``."""
    system = sparse.diags_array(graph.sum(1) + hold[:, 0]) - graph
    return linalg.splu(system.tocsc()).solve(pull.astype(np.float64)).astype(np.float32)


def _continued(mesh, smooth, look):
    """Return vertex colors, ``[p, 3]``, that continue smoothly where no view sees the mesh.

    The colors of unseen vertices are harmonic on the graph of the edges, and fade to the fitted color far from seen
    vertices.
    """
    colors, weights = look(mesh.vertices, smooth.astype(np.float32), mesh.colors.astype(np.float32))
    unseen = weights[:, 0] < UNSEEN
    graph = _adjacency(mesh)
    _, part = csgraph.connected_components(graph, directed=False)
    unseen &= (np.bincount(part, ~unseen) > 0)[part]  # A part without any seen vertex has nothing to continue.
    hold = np.where(unseen, 1e-4, 1e4)[:, None]
    return _smoothed(graph, hold * colors, hold).clip(0, 1)


def unwrap(mesh: structs.Mesh, size: int) -> Float[np.ndarray, "f 3 2"]:
    """Return the corners of the faces in an atlas of charts that do not overlap (xatlas), in [0, 1]."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.uint32))
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    chart.max_iterations = 1  # More iterations triple the time and hardly change the charts of smooth surfaces.
    area = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).area
    chart.max_chart_area = area * CHART_FACES / len(mesh.faces)
    pack.padding, pack.resolution, pack.bilinear = PADDING, size, True
    atlas.generate(chart, pack)
    _, faces, uv = atlas[0]
    return np.asarray(uv, np.float32)[np.asarray(faces, np.int64)]


def _surface_of(mesh, smooth, corner_uv, size):
    """Return the covered texels as (rows, columns), the hits on the mesh there, their points and unit normals."""
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
    """Return distances of the mesh along the optical axes at pixel centers, infinite where no ray hits."""
    surface, poses = raycast.Surface(mesh.vertices, mesh.faces), np.asarray(cameras.world_from_cam)

    def depth_map(view):
        along = lambda hits: (hits.depth * (hits.directions @ poses[view, :3, 2]))[:, None]  # noqa: E731
        depth, alpha = surface.render(cameras[[view]], along, supersampling=1)
        return np.where(alpha > 0, depth[..., 0], np.inf)

    # Few threads, because each one holds the rays of a view in memory.
    with futures.ThreadPoolExecutor(8) as pool:
        return np.stack(list(pool.map(depth_map, range(len(poses))))).astype(np.float32)


@jax.jit
def _look(
    rgba: Float[Array, "v h w 4"],
    depths: Float[Array, "v h w"],
    cameras: structs.Cameras,
    trust: Float[Array, " v"],
    surface: Float[structs.ArrayLike, "n 9"],
) -> Float[Array, "n 4"]:
    """Return colors of surface points (position, normal, fitted color), and the total weight of the views there."""
    points, normals, fitted = jnp.split(jnp.asarray(surface), 3, -1)
    pose = cameras.world_from_cam
    toward = pose[:, :3, 3] - points[:, None]
    distance = jnp.linalg.norm(toward, axis=-1)
    cosine = (toward * normals[:, None]).sum(-1) / distance
    best, view = jax.lax.top_k(cosine * jnp.where(trust > 0, 1.0, 0.0), min(LOOKS, len(trust)))
    # Elementwise products, because matrix products have reduced precision on accelerators.
    turned = -(jnp.take_along_axis(toward, view[..., None], 1)[..., None] * pose[view, :3, :3]).sum(-2)
    pixel = turned[..., :2] / turned[..., 2:] * cameras.focal[view] + cameras.center[view] - 0.5
    colors, alpha, nearest = _bilinear(rgba, depths, view, pixel)
    # Within a pixel, the depth of the surface varies, more so at grazing angles.
    slack = turned[..., 2] / cameras.focal[view, 0] * (1 + 1.5 / jnp.maximum(best, 0.05))
    visible = (best > 0.1) & (turned[..., 2] < nearest + slack)
    weights = jnp.where(visible, jnp.maximum(best, 0.0) ** SHARPNESS * alpha**2 * trust[view], 0.0)
    return jnp.concatenate([_consensus(colors, weights, fitted), weights.sum(1, keepdims=True)], -1)


def _consensus(colors, weights, fitted):
    """Return the weighted mean of ``[n, k]`` colors and the fitted color, with Welsch weights against outliers."""
    mean, trust = fitted, weights[..., None]
    # From a plain mean to a strict one, so that the outliers do not depend on a first guess.
    for tolerance in (4 * TOLERANCE, 2 * TOLERANCE, TOLERANCE):
        mean = ((trust * colors).sum(1) + PRIOR * fitted) / (trust.sum(1) + PRIOR)
        error = ((colors - mean[:, None]) ** 2).sum(-1)
        trust = (weights * jnp.exp(-error / (2 * tolerance**2)))[..., None]
    return ((trust * colors).sum(1) + PRIOR * fitted) / (trust.sum(1) + PRIOR)


def _bilinear(rgba, depths, view, pixel):
    """Return color and coverage of views at image points, and the smallest depth of the four pixels around."""
    height, width = depths.shape[1:]
    low = jnp.floor(pixel)
    colors, nearest = 0.0, jnp.inf
    for down in (0, 1):
        for right in (0, 1):
            at = (low + jnp.array([right, down])).astype(jnp.int32)
            fraction = jnp.prod(1 - jnp.abs(pixel - low - jnp.array([right, down])), -1, keepdims=True)
            x, y = jnp.clip(at[..., 0], 0, width - 1), jnp.clip(at[..., 1], 0, height - 1)
            inside = ((at >= 0) & (at < jnp.array([width, height]))).all(-1)
            sample = rgba[view, y, x]
            # Premultiplied, so that the white behind the object does not bleed in.
            covered = sample[..., 3:] * fraction * inside[..., None]
            colors += jnp.concatenate([sample[..., :3] * covered, covered], -1)
            nearest = jnp.minimum(nearest, depths[view, y, x])
    return colors[..., :3] / jnp.maximum(colors[..., 3:], 1e-6), colors[..., 3], nearest
