"""Materials, textures, and files of glTF as its specification says, each fact on a file of a few triangles."""

import base64
import functools
import io
import urllib.parse

import DracoPy
import gltf_files
import numpy as np
import pytest
from gltf_files import QUARTERS, SQUARE, SQUARE_FACES, SQUARE_UV, extents
from PIL import Image

from e3d_jax import cameras
from e3d_jax.data import assets, lighting, records
from e3d_jax.data.assets import reading

RED, GREEN, BLUE, YELLOW = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0))
LIGHT = lighting.brightness(np.array([[1.0, 0, 0]]))[0, 0]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.glb"


def front(asset, size=32):
    """Color (shaded) and alpha from the front, and the depth and normals of the same pixels."""
    drawn = assets.render(asset, cameras.ring(size)[:1], np.arange(1))
    return drawn.views.rgba[0], drawn.depths[0], drawn.views.normals[0]


def show(file, path):
    return front(reading.read_asset(file.save(path)))[0]


def quarters(rgba):
    """Unshaded colors in the four quarters of a square in the middle: upper left and right, lower left and right."""
    y, x = np.nonzero(rgba[..., 3] > 0.5)
    (top, left), high, wide = (y.min(), x.min()), np.ptp(y) + 1, np.ptp(x) + 1
    at = [(int(top + v * high), int(left + u * wide)) for v in (0.25, 0.75) for u in (0.25, 0.75)]
    return np.stack([rgba[place][:3] for place in at]) / LIGHT


def square(path, material=None, **attributes):
    """A file of one square."""
    file = gltf_files.File()
    file.mesh(file.primitive(material=material(file) if callable(material) else material, **attributes))
    return file


def over_red(top, path):
    """What is seen of a square before a red one of half its size; ``top`` makes its material."""
    file = gltf_files.File()
    red = file.material((1, 0, 0, 1))
    file.mesh(file.primitive(material=top(file)), file.primitive(SQUARE * 0.5 - [0, 0, np.float32(0.5)], material=red))
    file.save(path)
    return front(reading.read_asset(path))


LEAF = np.dstack([np.zeros((8, 8)), np.full((8, 8), 255), np.zeros((8, 8)), np.arange(8) // 4 * 255 + np.zeros((8, 8))])
LEAF = LEAF.astype(np.uint8)  # Green; its left half is not there.


@pytest.mark.parametrize("mode", ["MASK", "BLEND"])
def test_what_a_texture_leaves_out_shows_what_is_behind_it(path, mode):
    rgba, depth, normals = over_red(lambda file: file.material(texture=file.texture(LEAF), alphaMode=mode), path)
    nearer, farther = depth[16, 20], depth[16, 13]
    np.testing.assert_allclose(rgba[16, 13] / [LIGHT, LIGHT, LIGHT, 1], [*RED, 1], atol=0.02)
    np.testing.assert_allclose(rgba[16, 20] / [LIGHT, LIGHT, LIGHT, 1], [*GREEN, 1], atol=0.02)
    assert farther > nearer + 0.05 and rgba[16, 8, 3] == depth[16, 8] == 0 and rgba[16, 23, 3] == 1
    np.testing.assert_allclose(normals[16, [13, 20]], [[1, 0, 0]] * 2, atol=1e-5)
    assert not normals[16, 8].any()


@pytest.mark.parametrize(("color", "right"), [(None, (1, 1, 1)), (QUARTERS, YELLOW)])
def test_what_a_transmission_texture_lets_through(path, color, right):
    clear = np.zeros((2, 16, 3), np.uint8)
    clear[:, :8] = 255

    def glass(file):
        transmission = {"transmissionFactor": 1, "transmissionTexture": file.texture(clear, wrapS=33071, wrapT=33071)}
        texture = None if color is None else file.texture(color, wrapS=33071, wrapT=33071)
        return file.material(texture=texture, extensions={"KHR_materials_transmission": transmission})

    rgba, *_ = over_red(glass, path)
    np.testing.assert_allclose(rgba[19, [12, 20], :3] / LIGHT, [RED, right], atol=0.02)
    assert rgba[19, 8, 3] == 0 and rgba[19, 23, 3] == 1


def test_opaque_materials_ignore_alpha(path):
    rgba, *_ = over_red(lambda file: file.material((0, 1, 0, 0), texture=file.texture(LEAF)), path)
    np.testing.assert_allclose(rgba[16, [9, 13, 20], 3], 1)
    np.testing.assert_allclose(rgba[16, 13, :3] / LIGHT, GREEN, atol=0.02)


@pytest.mark.parametrize(
    ("material", "expected"),
    [
        ({"color": (0, 1, 0, 0), "alphaMode": "BLEND"}, RED),
        ({"color": (0, 1, 0, 0.4), "alphaMode": "MASK"}, RED),
        ({"color": (0, 1, 0, 0.4), "alphaMode": "MASK", "alphaCutoff": 0.3}, GREEN),
        ({"color": (0, 1, 0, 0.5), "alphaMode": "BLEND"}, (0.5, 0.5, 0)),
        ({"color": (0, 1, 0, 1), "extensions": {"KHR_materials_transmission": {"transmissionFactor": 1}}}, RED),
    ],
)
def test_opacity_of_factors(path, material, expected):
    rgba, *_ = over_red(lambda file: file.material(**material), path)
    np.testing.assert_allclose(rgba[16, 16] / [LIGHT, LIGHT, LIGHT, 1], [*expected, 1], atol=0.02)


def test_blended_surfaces_share_the_ray_from_front_to_back(path):
    file = gltf_files.File()
    for at, color in enumerate([(1, 0, 0, 0.5), (0, 1, 0, 0.5), (0, 0, 1, 0.5)]):
        material = file.material(color, alphaMode="BLEND")
        file.mesh(file.primitive(SQUARE - [0, 0, np.float32(0.3 * at)], material=material))
    rgba = show(file, path)[16, 16]
    assert rgba[3] == pytest.approx(0.875, abs=1e-3)
    np.testing.assert_allclose(rgba[:3] * rgba[3] / LIGHT, [0.5, 0.25, 0.125], atol=0.01)


def test_depth_of_glass_is_that_of_what_takes_half_the_light(path):
    _, depth, _ = over_red(lambda file: file.material((1, 1, 1, 0.2), alphaMode="BLEND"), path)
    _, solid, _ = over_red(lambda file: file.material((1, 1, 1, 0.6), alphaMode="BLEND"), path)
    assert depth[16, 16] > solid[16, 16] + 0.05
    assert depth[16, 9] == pytest.approx(solid[16, 9])  # There is nothing behind it.


def test_opacity_of_vertex_colors(path):
    colors = np.float32([[0, 1, 0, 0]] * 4)
    file = gltf_files.File()
    glass, red = file.material(alphaMode="BLEND"), file.material((1, 0, 0, 1))
    file.mesh(
        file.primitive(material=glass, COLOR_0=colors),
        file.primitive(SQUARE * 0.5 - [0, 0, np.float32(0.5)], material=red),
    )
    rgba = show(file, path)
    np.testing.assert_allclose(rgba[16, 16, :3] / LIGHT, RED, atol=0.02)
    assert rgba[16, 9, 3] == 0


@pytest.mark.parametrize("mode", ["P", "LA"])
def test_opacity_of_palette_and_gray_textures(path, mode):
    image, out = Image.fromarray(np.uint8([[0, 0, 1, 1]])), io.BytesIO()
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 255, 0])
        image.save(out, "PNG", transparency=0)
    else:
        Image.merge("LA", [image, image.point(lambda value: 255 * value)]).save(out, "PNG")
    file = gltf_files.File()
    image = file.add("images", {"bufferView": file.view(out.getvalue()), "mimeType": "image/png"})
    texture = {"index": file.add("textures", {"source": image})}
    file.mesh(file.primitive(material=file.material(texture=texture, alphaMode="MASK")))
    np.testing.assert_array_equal(show(file, path)[16, [10, 20], 3], [0, 1])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("width", [3, 4])
def test_vertex_colors_are_linear_light_of_any_type(path, kind, width):
    colors = np.float32([[0.2, 0.5, 0.9, 1]] * 4)[:, :width]
    if kind != np.float32:
        colors = (colors * np.iinfo(kind).max).round().astype(kind)
    rgba = show(square(path, COLOR_0=colors), path)
    np.testing.assert_allclose(rgba[16, 16, :3] / LIGHT, [0.484, 0.735, 0.955], atol=6e-3)


def test_gradients_of_vertex_colors_are_linear(path):
    colors = np.float32([[0] * 3, [1] * 3, [1] * 3, [0] * 3])
    np.testing.assert_allclose(show(square(path, COLOR_0=colors), path)[16, 16, :3] / LIGHT, 0.735, atol=0.03)


def test_vertex_colors_are_multiplied_with_the_factor(path):
    white = np.ones((4, 3), np.float32)
    rgba = show(square(path, lambda file: file.material((0, 0, 0.5, 1)), COLOR_0=white), path)
    np.testing.assert_allclose(rgba[16, 16, :3] / LIGHT, [0, 0, 0.735], atol=4e-3)


def test_vertex_colors_are_multiplied_with_the_texture_in_linear_light(path):
    gray = np.full((4, 4, 3), 128, np.uint8)
    colors = np.float32([[0.5, 0, 0]] * 4)
    rgba = show(square(path, lambda file: file.material(texture=file.texture(gray)), COLOR_0=colors), path)
    np.testing.assert_allclose(rgba[16, 16, 0] / LIGHT, 0.361, atol=5e-3)
    np.testing.assert_allclose(rgba[16, 16, 1:3], 0, atol=1e-3)


def draco_square(file, with_uv=True):
    data = DracoPy.encode(
        SQUARE, SQUARE_FACES.reshape(2, 3).astype(np.uint32), preserve_order=True, quantization_bits=14,
        tex_coord=SQUARE_UV.astype(np.float64) if with_uv else None,
    )  # fmt: skip
    decoded = {each["attribute_type"]: each["unique_id"] for each in DracoPy.decode(data).attributes}
    ids = {"POSITION": decoded[0], **({"TEXCOORD_0": decoded[3]} if with_uv else {})}
    return {"bufferView": file.view(data), "attributes": ids}


def test_draco(path):
    file = gltf_files.File(extensionsRequired=["KHR_draco_mesh_compression"])
    extension = draco_square(file)
    points = file.add("accessors", {"componentType": 5126, "count": 4, "type": "VEC3"})
    uv = file.add("accessors", {"componentType": 5126, "count": 4, "type": "VEC2"})
    faces = file.add("accessors", {"componentType": 5125, "count": 6, "type": "SCALAR"})
    primitive = {
        "attributes": {"POSITION": points, "TEXCOORD_0": uv},
        "indices": faces,
        "material": file.material(texture=file.texture()),
        "extensions": {"KHR_draco_mesh_compression": extension},
    }
    file.mesh(primitive)
    np.testing.assert_allclose(quarters(show(file, path)), [RED, GREEN, BLUE, YELLOW], atol=0.02)


def test_draco_with_a_skin(path):
    file = gltf_files.File()
    file.add("skins", {"joints": [file.node(scale=[1, 2, 1])]})
    points = file.add("accessors", {"componentType": 5126, "count": 4, "type": "VEC3"})
    skin = {"JOINTS_0": np.zeros((4, 4), np.uint8), "WEIGHTS_0": np.float32([[1, 0, 0, 0]] * 4)}
    primitive = file.primitive(POSITION=points, **skin)
    primitive["extensions"] = {"KHR_draco_mesh_compression": draco_square(file, with_uv=False)}
    file.mesh(primitive, skin=0)
    np.testing.assert_allclose(extents(file.save(path)), [0.5, 1, 0], atol=0.01)


@pytest.mark.parametrize(("kind", "most"), [(np.uint8, 255), (np.uint16, 65535)])
def test_texture_coordinates_of_normalized_integers(path, kind, most):
    file = gltf_files.File(extensionsRequired=["KHR_mesh_quantization"])
    uv = file.accessor((SQUARE_UV * most).astype(kind), normalized=True)
    file.mesh(file.primitive(material=file.material(texture=file.texture()), TEXCOORD_0=uv))
    np.testing.assert_allclose(quarters(show(file, path)), [RED, GREEN, BLUE, YELLOW], atol=0.02)


def textured(path, info=(), uv=None, sampler=(), pixels=QUARTERS, **attributes):
    file = gltf_files.File()
    texture = {**file.texture(pixels, **dict(sampler)), **dict(info)}
    uv = SQUARE_UV if uv is None else uv
    file.mesh(file.primitive(material=file.material(texture=texture), TEXCOORD_0=np.float32(uv), **attributes))
    return quarters(show(file, path))


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({"offset": [0.5, 0.5], "scale": [0.5, 0.5]}, [YELLOW] * 4),
        ({"rotation": np.pi / 2, "offset": [0, 1]}, [BLUE, RED, YELLOW, GREEN]),  # (u, v) -> (v, 1 - u)
    ],
)
def test_texture_transforms(path, transform, expected):
    found = textured(path, {"extensions": {"KHR_texture_transform": transform}})
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_the_second_set_of_texture_coordinates(path):
    found = textured(path, {"texCoord": 1}, SQUARE_UV * 0, TEXCOORD_1=SQUARE_UV)
    np.testing.assert_allclose(found, [RED, GREEN, BLUE, YELLOW], atol=0.02)


@pytest.mark.parametrize(("wrap", "expected"), [(10497, [RED, GREEN]), (33648, [GREEN, RED]), (33071, [GREEN, GREEN])])
def test_wrap_modes(path, wrap, expected):
    columns = QUARTERS[:1].repeat(4, 0)  # Red left, green right.
    found = textured(path, (), SQUARE_UV + np.array([1, 0]), {"wrapS": wrap}, columns)
    np.testing.assert_allclose(found, expected * 2, atol=0.02)


def test_emission_is_added_and_not_shaded(path):
    rgba = show(
        square(
            path,
            lambda file: file.material((0, 0, 0, 1), emissiveFactor=[1, 1, 1], emissiveTexture=file.texture()),
        ),
        path,
    )
    np.testing.assert_allclose(quarters(rgba) * LIGHT, [RED, GREEN, BLUE, YELLOW], atol=0.02)


def test_emission_of_a_factor_and_its_strength(path):
    extension = {"KHR_materials_emissive_strength": {"emissiveStrength": 2}}
    glowing = functools.partial(dict, emissiveFactor=[0.25, 0, 0], extensions=extension)
    rgba = show(square(path, lambda file: file.material((0, 0, 0, 1), **glowing())), path)
    np.testing.assert_allclose(rgba[16, 16, :3], [0.735, 0, 0], atol=4e-3)


def test_emission_is_added_in_linear_light(path):
    rgba = show(square(path, lambda file: file.material((0.5, 0, 0, 1), emissiveFactor=[0.2, 0, 0])), path)
    reflected = ((0.7354 * LIGHT + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(rgba[16, 16, 0], 1.055 * (reflected + 0.2) ** (1 / 2.4) - 0.055, atol=4e-3)


def test_unlit_materials_are_not_shaded(path):
    rgba = show(square(path, lambda file: file.material((1, 0, 0, 1), extensions={"KHR_materials_unlit": {}})), path)
    np.testing.assert_allclose(rgba[16, 16, :3], RED, atol=4e-3)


def test_sixteen_bit_gray_textures(path):
    gray = np.full((4, 4), 30000, np.uint16)
    rgba = show(square(path, lambda file: file.material(texture=file.texture(gray))), path)
    np.testing.assert_allclose(rgba[16, 16, :3] / LIGHT, 30000 / 65535, atol=4e-3)


@pytest.mark.parametrize("name", ["base color.png", "grün#1.png", "100%.png"])
def test_uris_are_percent_encoded(tmp_path, name):
    (tmp_path / name).write_bytes(gltf_files.png(QUARTERS))
    file = gltf_files.File(images=[{"uri": urllib.parse.quote(name)}], textures=[{"source": 0}])
    file.mesh(file.primitive(material=file.material(texture={"index": 0})))
    asset = reading.read_asset(file.save(tmp_path / "file.gltf"))
    assert not asset.warnings
    np.testing.assert_allclose(quarters(front(asset)[0]), [RED, GREEN, BLUE, YELLOW], atol=0.02)


def test_a_uri_in_other_letters_is_found_with_a_warning(tmp_path):
    (tmp_path / "wood.png").write_bytes(gltf_files.png(QUARTERS))
    file = gltf_files.File(images=[{"uri": "Wood.PNG"}], textures=[{"source": 0}])
    file.mesh(file.primitive(material=file.material(texture={"index": 0})))
    (warning,) = reading.read_asset(file.save(tmp_path / "file.gltf")).warnings
    assert "Wood.PNG is not there; wood.png, spelled differently, was taken" in warning


def test_percent_encoded_data(tmp_path):
    file = gltf_files.File()
    file.mesh(file.primitive())
    data = urllib.parse.quote(base64.b64encode(file.binary), safe="")
    file.json["buffers"] = [{"uri": f"data:;base64,{data}", "byteLength": len(file.binary)}]
    assert len(reading.read_asset(file.save(tmp_path / "file.gltf")).faces) == 2


def test_buffers_with_percent_encoded_uris(tmp_path):
    file = gltf_files.File()
    file.mesh(file.primitive())
    (tmp_path / "my box.bin").write_bytes(file.binary)
    file.json["buffers"] = [{"uri": "my%20box.bin", "byteLength": len(file.binary)}]
    assert len(reading.read_asset(file.save(tmp_path / "file.gltf")).faces) == 2


@pytest.mark.parametrize(
    ("image", "message"),
    [({"uri": "gone.png"}, "gone.png"), ({"uri": "data:image/png;base64,AAAA"}, "not an image")],
)
def test_a_texture_that_cannot_be_loaded_is_a_warning(path, image, message):
    file = gltf_files.File(images=[image], textures=[{"source": 0}])
    file.mesh(file.primitive(material=file.material((1, 0, 0, 1), texture={"index": 0})))
    asset = reading.read_asset(file.save(path))
    (warning,) = asset.warnings
    assert message in warning and str(path) in warning
    np.testing.assert_allclose(front(asset)[0][16, 16, :3] / LIGHT, RED, atol=0.02)


def test_ktx2_textures_are_refused_by_name(path):
    file = gltf_files.File(textures=[{"extensions": {"KHR_texture_basisu": {"source": 0}}}])
    file.mesh(file.primitive(material=file.material(texture={"index": 0})))
    (warning,) = reading.read_asset(file.save(path)).warnings
    assert "KHR_texture_basisu" in warning and str(path) in warning


def test_a_required_extension_that_cannot_be_read_is_named(path):
    file = gltf_files.File(extensionsRequired=["KHR_texture_basisu", "KHR_mesh_quantization", "ACME_fur"])
    file.mesh(file.primitive())
    with pytest.raises(ValueError, match="requires ACME_fur, KHR_texture_basisu, which cannot be read") as error:
        reading.read_asset(file.save(path))
    assert str(path) in str(error.value)


def test_later_versions_are_refused(path):
    file = gltf_files.File()
    file.json["asset"]["version"] = "1.0"
    with pytest.raises(ValueError, match=r"is of glTF 1\.0"):
        reading.read_asset(file.save(path))


def test_warnings_are_counted_and_printed(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    file = gltf_files.File(images=[{"uri": "gone.png"}], textures=[{"source": 0}])
    file.mesh(file.primitive(material=file.material(texture={"index": 0})))
    file.save(tmp_path / "in" / "file.glb")
    square(None).save(tmp_path / "in" / "good.glb")
    rig = records.Rig.of_layout(cameras.ViewLayout(num_views=8), 16, normals=False)
    counts = assets.write_folders(tmp_path / "in", tmp_path / "out", assets.RenderSettings(rig), workers=0)
    assert counts == (2, 0, 0, 1)
    assert f"warning: {tmp_path / 'in' / 'file.glb'}: texture 'gone.png'" in capsys.readouterr().err


def test_an_object_that_lets_all_light_pass_is_skipped(tmp_path, capsys):
    square(None, lambda file: file.material((1, 1, 1, 0), alphaMode="BLEND")).save(tmp_path / "file.glb")
    rig = records.Rig.of_layout(cameras.ViewLayout(num_views=8), 16, normals=False)
    counts = assets.write_folders(tmp_path, tmp_path / "out", assets.RenderSettings(rig), workers=0)
    assert counts == (0, 0, 1, 0)
    assert "file.glb shows nothing" in capsys.readouterr().err
