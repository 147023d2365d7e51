"""OBJ files and their material libraries as programs of all kinds write them."""

import gltf_files
import numpy as np
import pytest
import test_color_profiles
from gltf_files import QUARTERS
from PIL import Image

from e3d_jax import cameras, images
from e3d_jax.data import assets, lighting
from e3d_jax.data.assets import polygons, reading

LIGHT = lighting.brightness(np.array([[1.0, 0, 0]]))[0, 0]
RED, GREEN, BLUE, YELLOW = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))
ALL = [RED, GREEN, BLUE, YELLOW]
WHITE = [(1, 1, 1)] * 4
SQUARE = "v 0 -1 -1\nv 0 1 -1\nv 0 1 1\nv 0 -1 1\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3 4/4\n"


@pytest.fixture
def write(tmp_path):
    """Write a square with a material, read it back."""

    def write(mtl="map_Kd tex.png\n", obj="mtllib a.mtl\n" + SQUARE + "usemtl m\n" + FACE, *, texture="tex.png"):
        texture_path = tmp_path / texture
        texture_path.parent.mkdir(exist_ok=True)
        texture_path.write_bytes(gltf_files.png(QUARTERS))
        mtl = mtl if isinstance(mtl, bytes) else mtl.encode()
        named = b"newmtl" in mtl.replace(b"\0", b"")
        (tmp_path / "a.mtl").write_bytes(mtl if named else b"newmtl m\nKd 1 1 1\n" + mtl)
        (tmp_path / "a.obj").write_bytes(obj if isinstance(obj, bytes) else obj.encode())
        return reading.read_asset(tmp_path / "a.obj")

    return write


def front(asset):
    return assets.render(asset, cameras.ring(32)[:1], np.arange(1)).views.rgba[0]


def quarters(asset):
    """Unshaded colors: upper left and right, lower left and right."""
    rgba = front(asset)
    y, x = np.nonzero(rgba[..., 3] > 0.5)
    at = [
        (int(y.min() + v * (np.ptp(y) + 1)), int(x.min() + u * (np.ptp(x) + 1)))
        for v in (0.25, 0.75)
        for u in (0.25, 0.75)
    ]
    return np.stack([rgba[place][:3] for place in at]) / LIGHT


@pytest.mark.parametrize(
    ("mtl", "texture"),
    [
        ("map_Kd tex.png\n", "tex.png"),
        ("map_Kd textures\\tex.png\n", "textures/tex.png"),
        ("map_Kd .\\textures\\tex.png\r\n", "textures/tex.png"),
        ("map_Kd C:\\Users\\me\\maps\\tex.png\n", "tex.png"),
        ("map_Kd C:\\Users\\me\\maps\\tex.png\n", "maps/tex.png"),
        ("map_Kd /home/somebody/tex.png\n", "tex.png"),
        ("map_Kd my wood.png  \n", "my wood.png"),
        ('map_Kd "my wood.png"\n', "my wood.png"),
        ("MAP_KD tex.png\n", "tex.png"),
        ("\tmap_Kd\ttex.png\n", "tex.png"),
        ("map_Kd -blendu on -bm 0.5 -mm 0 1 -clamp off -o 0 0 0 -s 1 1 1 tex.png\n", "tex.png"),
        ("map_Kd -s 1 1 1 2.png\n", "2.png"),
        ("map_Kd -s\t1\t1\t1\t-o 0\ttex.png\n", "tex.png"),
        ("\N{BYTE ORDER MARK}newmtl m\nmap_Kd tex.png\n", "tex.png"),
        ("# \u6750\u8d28\n".encode("gbk") + b"map_Kd tex.png\n", "tex.png"),
        ("# gr\u00fcn\n".encode("latin-1") + b"map_Kd tex.png\n", "tex.png"),
        ("map_Kd \u7eb9\u7406.png\n".encode("gbk"), "\u7eb9\u7406.png"),
        ("map_Kd gr\u00fcn.png\n".encode("cp1252"), "gr\u00fcn.png"),
        ("map_Kd \u8868\u2460.png\n".encode("cp932"), "\u8868\u2460.png"),
        ("map_Kd \u0434\u0443\u0431.png\n".encode("cp1251"), "\u0434\u0443\u0431.png"),
        (b"map_Kd \xc4\xbe\xb2.png\n", b"\xc4\xbe\xb2.png".decode("utf-8", "surrogateescape")),
        ("newmtl m\nmap_Kd tex.png\n".encode("utf-16"), "tex.png"),
        ("newmtl m\nmap_Kd tex.png\n".encode("utf-16-le"), "tex.png"),
    ],
)
def test_textures_are_found(write, mtl, texture):
    asset = write(mtl, texture=texture)
    assert not asset.warnings
    np.testing.assert_allclose(quarters(asset), ALL, atol=0.02)


@pytest.mark.parametrize("name", ["gone.png", "maps\\gone.png"])
def test_a_missing_texture_is_a_warning(write, tmp_path, name):
    asset = write(f"map_Kd {name}\n")
    assert asset.warnings == (f"{tmp_path / 'a.obj'}: texture {name!r} is not there",)
    np.testing.assert_allclose(quarters(asset), WHITE, atol=0.02)


@pytest.mark.parametrize(("name", "texture"), [("TEX.PNG", "tex.png"), ("\u00e9.png", "e\u0301.png")])
def test_a_name_in_other_letters_is_found_with_a_warning(write, name, texture):
    asset = write(f"map_Kd {name}\n", texture=texture)
    (warning,) = asset.warnings
    assert f"{name} is not there; {texture}, spelled differently, was taken" in warning
    np.testing.assert_allclose(quarters(asset), ALL, atol=0.02)


def test_scale_and_offset_of_textures(write):
    np.testing.assert_allclose(quarters(write("map_Kd -s .5 .5 1 -o .5 0 0 tex.png\n")), [YELLOW] * 4, atol=0.02)


def test_clamped_textures(write):
    asset = write("map_Kd -s 4 4 -clamp on tex.png\n")
    np.testing.assert_allclose(quarters(asset), [GREEN] * 4, atol=0.02)


@pytest.mark.parametrize("names", ["b.mtl a.mtl", "my b.mtl a.mtl", '"my b.mtl" "a.mtl"', "a.mtl\nmtllib b.mtl"])
def test_several_libraries(write, tmp_path, names):
    for name in ("b.mtl", "my b.mtl"):
        (tmp_path / name).write_text("newmtl n\nKd 0 0 1\n")
    asset = write(obj=f"mtllib {names}\n" + SQUARE + "usemtl m\n" + FACE)
    assert not asset.warnings
    np.testing.assert_allclose(quarters(asset), ALL, atol=0.02)


def test_libraries_with_blanks_in_their_names(write, tmp_path):
    (tmp_path / "my materials.mtl").write_text("newmtl m\nKd 0 0 1\n")
    asset = write(obj="mtllib my materials.mtl\n" + SQUARE + "usemtl m\n" + FACE)
    np.testing.assert_allclose(quarters(asset), [BLUE] * 4, atol=0.02)


def test_a_missing_library_is_a_warning(write, tmp_path):
    asset = write(obj="mtllib gone.mtl\n" + SQUARE + "usemtl m\n" + FACE)
    assert asset.warnings == (f"{tmp_path / 'a.obj'}: material library 'gone.mtl' is not there",)
    np.testing.assert_allclose(quarters(asset), 0.8, atol=0.02)


@pytest.mark.parametrize("face", [FACE, "f 1 2 3 4\n"])
def test_surfaces_without_a_material_are_one_gray(write, face):
    np.testing.assert_allclose(quarters(write(obj=SQUARE + face)), 0.8, atol=0.01)


BEHIND = "v -0.5 -0.5 -0.5\nv -0.5 0.5 -0.5\nv -0.5 0.5 0.5\nv -0.5 -0.5 0.5\n"
OVER_RED = "mtllib a.mtl\n" + SQUARE + BEHIND + "usemtl m\n" + FACE + "usemtl red\nf 5 6 7 8\n"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("Kd 0 1 0\nd 0\n", RED),
        ("Kd 0 1 0\nTr 1\n", RED),
        ("Kd 0 1 0\nd 1\nTr 1\n", GREEN),
        ("Kd 0 1 0\nTr 0.0\n", GREEN),
        ("Kd 0 1 0\nd -halo 0\n", RED),
        ("Kd 0 1 0\nd 0.5\n", (0.5, 0.5, 0)),
        ("Kd 0 1 0\nmap_d black.png\n", RED),
        ("Kd 0 1 0\n", GREEN),
    ],
)
def test_opacity_of_materials(write, tmp_path, entries, expected):
    Image.new("L", (2, 2)).save(tmp_path / "black.png")
    asset = write(f"newmtl m\n{entries}newmtl red\nKd 1 0 0\n", OVER_RED)
    np.testing.assert_allclose(front(asset)[16, 16, :3] / LIGHT, expected, atol=0.02)


def test_emission_of_materials(write):
    glow = front(write("newmtl m\nKd 0 0 0\nKe 0 0 0.5\n"))[16, 16]
    np.testing.assert_allclose(glow, [0, 0, 0.5, 1], atol=0.01)
    np.testing.assert_allclose(quarters(write("newmtl m\nKd 0 0 0\nmap_Ke tex.png\n")) * LIGHT, ALL, atol=0.02)


LETTER_L = [(0, 3, 0), (0, 3, 1), (0, 1, 1), (0, 1, 3), (0, 0, 3), (0, 0, 0)]


def area(asset):
    """Area in the units of the file, of which the longest extent is 3."""
    a, b, c = np.moveaxis(asset.vertices[asset.faces] * 3 / np.ptp(asset.vertices, axis=0).max(), 1, 0)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("step", [1, -1])
def test_concave_polygons(write, first, step):
    corners = np.roll(LETTER_L, first, axis=0)[::step]
    lines = [f"v {x} {y} {z}" for x, y, z in corners]
    asset = write(obj="\n".join([*lines, "f -6 -5 -4 -3 -2 -1"]))
    assert area(asset) == pytest.approx(5, abs=1e-5)
    a, b, c = np.moveaxis(asset.vertices[asset.faces], 1, 0)
    assert (np.sign(np.cross(b - a, c - a)[:, 0]) == step).all()


def test_concave_quads():
    points = np.float64([[0, 0, 0], [2, 0, 0], [0.5, 0.5, 0], [0, 2, 0]])
    for first in range(4):
        triangles, _ = polygons.triangulate(np.roll(points, first, 0), np.arange(4), np.array([4]))
        a, b, c = np.moveaxis(np.roll(points, first, 0)[triangles], 1, 0)
        assert np.cross(b - a, c - a)[:, 2].min() > 0 and np.cross(b - a, c - a)[:, 2].sum() == pytest.approx(2)


def test_polygons_keep_their_order_and_convex_ones_are_fans():
    points = np.float64([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 2, 0]])
    triangles, polygon = polygons.triangulate(points, np.array([0, 1, 2, 3, 3, 2, 4, 0, 1]), np.array([4, 3, 2]))
    assert triangles.tolist() == [[0, 1, 2], [0, 2, 3], [4, 5, 6]] and polygon.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "faces", ["f 1 2 3/3 4\n", "f 1//1 2//1 3//1 4//1\n", "f 1/1/1 2/2/1 3/3/1 4/4/1\n", "f 1/ 2/ 3/ 4/\n"]
)
def test_all_kinds_of_corners(write, faces):
    assert len(write(obj=SQUARE + "vn 1 0 0\n" + faces).faces) == 2


def test_lines_that_go_on_and_negative_indices(write):
    asset = write(obj="mtllib a.mtl\n" + SQUARE + "usemtl m\nf -4/-4 -3/-3 \\\n -2/-2 -1/-1\n")
    np.testing.assert_allclose(quarters(asset), ALL, atol=0.02)


def test_tabs_separate_like_blanks(write):
    obj = "mtllib\ta.mtl\n" + SQUARE.replace("v ", "v\t") + "usemtl\tmy m\nf\t1/1 2/2 3/3 4/4\n"
    asset = write("newmtl my m\nKd 1 1 1\nmap_Kd tex.png\n", obj)
    np.testing.assert_allclose(quarters(asset), ALL, atol=0.02)


def test_a_backslash_joins_no_line_to_a_comment_or_to_a_shift_jis_name(write):
    obj = b"# C:\\maps\\\n" + f"mtllib a.mtl\n{SQUARE}usemtl \u8868\n{FACE}".encode("cp932")
    asset = write("newmtl \u8868\nmap_Kd tex.png\n".encode("cp932"), obj)
    np.testing.assert_allclose(quarters(asset), ALL, atol=0.02)


def test_comments_after_vertices(write):
    obj = "mtllib a.mtl\n" + SQUARE.replace("\n", " # 1 2 3\n") + "usemtl m\n" + FACE
    np.testing.assert_allclose(quarters(write(obj=obj)), ALL, atol=0.02)


def test_the_color_profile_of_a_texture_is_applied(write, tmp_path):
    Image.new("RGB", (16, 16), (186, 71, 50)).save(tmp_path / "photo.png", icc_profile=test_color_profiles.ADOBE)
    expected = images.read_image(tmp_path / "photo.png")[8, 8, :3]
    assert expected[0] > 0.8
    np.testing.assert_allclose(quarters(write("map_Kd photo.png\n")), [expected] * 4, atol=0.01)


@pytest.mark.parametrize("more", ["", " 0.25"])
def test_vertex_colors(write, more):
    asset = write(obj="".join(f"v 0 {y} {z} 1 0.5 0{more}\n" for y, z in ((-1, -1), (1, -1), (1, 1))) + "f 1 2 3\n")
    np.testing.assert_allclose(asset.corner_colors[0, 0], [1, 0.5, 0])


def test_faces_of_vertices_that_are_not_there_are_damage(write):
    with pytest.raises(ValueError, match=r"damaged .* not one of the 4"):
        write(obj=SQUARE + "f 1 2 9\n")
