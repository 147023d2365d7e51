"""Wavefront OBJ files as parts."""

import dataclasses
import pathlib
import re

import numpy as np

from e3d_jax.data.assets import mtl, parts, polygons, textures

# A backslash at the end of a line joins it to the next, but not in a comment, where it may end the name of a folder,
# and not as the second byte of a Shift JIS character.
_COMMENT = re.compile(r"^[ \t]*#.*", re.MULTILINE)
_CONTINUED = re.compile(r"(?<![\udc80-\udcff])\\[ \t]*\r?\n")


def read(path: pathlib.Path, warnings: list[str]) -> list[parts.Part]:
    """Read a .obj with its materials; free-form surfaces, lines and points are left out.

    Args:
      path: of the file.
      warnings: gets a line for each library, material or texture that cannot be found.
    """
    lines = _CONTINUED.sub(" ", _COMMENT.sub("", mtl.text_of(path))).splitlines()
    rows: dict[str, list[str]] = {"v": [], "vt": []}
    libraries, faces, users = [], [], []
    name, known = None, 0
    groups: list[tuple[str | None, int]] = []  # Materials in use, each from which face on.
    for line in lines:
        key, rest = (*line.split(None, 1), "", "")[:2]
        if key in rows:
            rows[key].append(rest.partition("#")[0])
        elif key == "f" or key == "fo":
            # Indices below zero count from the last vertex so far.
            faces.append(rest.partition("#")[0])
            users.append((len(rows["v"]), len(rows["vt"])))
        elif key == "usemtl":
            name = rest.strip()
            groups.append((name, len(faces)))
        elif key == "mtllib":
            libraries.append(rest.strip())
    known = len(faces)
    vertices, colors = _vertices(rows["v"])
    uv = _numbers(rows["vt"], 2)
    corners, texture_corners, counts = _corners(faces, users)
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        raise ValueError(f"a face has a vertex that is not one of the {len(vertices)}")
    texture_corners = np.where(texture_corners < len(uv), texture_corners, -1)
    triangles, polygon = polygons.triangulate(vertices, corners, counts)
    materials = mtl.read(path, libraries, warnings)
    bounds = [first for _, first in groups] + [known]
    material_of = np.zeros(known, np.int64)
    names: list[str | None] = [None]
    for (each, first), end in zip(groups, bounds[1:], strict=True):
        if each not in names:
            names.append(each)
        material_of[first:end] = names.index(each)
    out = []
    for index, each in enumerate(names):
        chosen = triangles[material_of[polygon] == index]
        if not len(chosen):
            continue
        if each is not None and each not in materials and materials:
            warnings.append(f"{path}: material {textures.printable(each)!r} is in none of its libraries")
        out.append(_part(vertices, colors, uv, corners[chosen], texture_corners[chosen], materials.get(each)))
    return out


def _part(vertices, colors, uv, faces, uv_faces, look: mtl.Look | None) -> parts.Part:
    mapped = np.where(uv_faces[..., None] >= 0, uv[uv_faces], 0.0) if len(uv) else None
    used, inverse = np.unique(faces, return_inverse=True)
    faces = inverse.reshape(-1, 3)
    painted = colors[used][faces] if colors is not None and not np.isnan(colors[used]).any() else None
    if look is None:
        return parts.part(vertices[used], faces, colors=parts.GRAY if painted is None else painted)
    has_texture = look.material.texture is not None and mapped is not None
    material = look.material if has_texture else dataclasses.replace(look.material, texture=None)
    tint: np.ndarray | float = np.array(look.color)
    if has_texture:
        tint = 1.0  # As most programs do, a texture takes the place of the color.
    elif painted is not None:
        tint = painted
    return parts.part(
        vertices[used],
        faces,
        material,
        colors=tint,
        alpha=look.opacity,
        uv=None if mapped is None else look.placement.apply(mapped),
        emission_uv=None if mapped is None else look.emission_placement.apply(mapped),
    )


def _vertices(rows: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return positions, and display-encoded colors if the file has them after the positions."""
    widths = {len(row.split()) for row in rows}
    if not rows:
        return np.zeros((0, 3)), None
    if len(widths) == 1 and (width := widths.pop()) >= 3:
        values = np.array(" ".join(rows).split(), np.float64).reshape(-1, width)
    else:
        values = np.full((len(rows), 6), np.nan)
        for at, row in enumerate(rows):
            numbers = [float(token) for token in row.split()[:6]]
            values[at, : len(numbers)] = numbers
    if values.shape[1] < 6:
        return values[:, :3], None
    colors = values[:, 3:6]
    if np.isnan(colors).all():
        return values[:, :3], None
    return values[:, :3], colors / 255 if np.nanmax(colors) > 1 else colors


def _numbers(rows: list[str], width: int) -> np.ndarray:
    out = np.zeros((len(rows), width))
    if rows and len({len(row.split()) for row in rows}) == 1 and len(rows[0].split()) >= width:
        return np.array(" ".join(rows).split(), np.float64).reshape(len(rows), -1)[:, :width]
    for at, row in enumerate(rows):
        numbers = [float(token) for token in row.split()[:width]]
        out[at, : len(numbers)] = numbers
    return out


def _corners(faces: list[str], users: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vertex and texture indices (-1 for none) of all corners, and the number of corners of each face."""
    counts = np.array([len(face.split()) for face in faces], np.int64)
    tokens = " ".join(faces).split()
    slashes = tokens[0].count("/") if tokens else 0
    plain = "//" not in " ".join(tokens[:1]) and all(token.count("/") == slashes for token in tokens)
    if plain and not any(token.endswith("/") or "//" in token for token in tokens):
        numbers = np.array(" ".join(tokens).replace("/", " ").split(), np.int64).reshape(len(tokens), slashes + 1)
        vertex, texture = numbers[:, 0], numbers[:, 1] if slashes else np.zeros(len(tokens), np.int64)
    else:
        parts_of = [token.split("/") for token in tokens]
        vertex = np.array([int(each[0]) for each in parts_of], np.int64)
        texture = np.array([int(each[1]) if len(each) > 1 and each[1] else 0 for each in parts_of], np.int64)
    so_far = np.repeat(np.array(users, np.int64).reshape(-1, 2), counts, 0)
    vertex = np.where(vertex < 0, vertex + so_far[:, 0], vertex - 1)
    texture = np.where(texture < 0, np.maximum(texture + so_far[:, 1], -1), texture - 1)
    return vertex, texture, counts
