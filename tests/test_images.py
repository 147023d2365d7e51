"""Reading, cutting out, framing and encoding of images."""

import struct
import sys
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from e3d_jax import images


def framed(rgba, size):
    return images.crop(rgba, images.object_box(rgba[..., 3]), size)


def disc(size=64, radius=20.0, center=None, color=(0.8, 0.2, 0.1), background=None):
    """An antialiased disc: RGBA with alpha, or opaque over a background color."""
    center = center or (size / 2, size / 2)
    y, x = np.mgrid[:size, :size] + 0.5
    alpha = (radius + 0.5 - np.hypot(x - center[0], y - center[1])).clip(0, 1)[..., None].astype(np.float32)
    rgb = np.broadcast_to(np.float32(color), (size, size, 3))
    if background is None:
        return np.concatenate([rgb, alpha], -1)
    rgb = rgb * alpha + np.asarray(background, np.float32) * (1 - alpha)
    return np.concatenate([rgb, np.ones_like(alpha)], -1)


def write_pixels(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.fixture
def red(tmp_path):
    """A function that writes a red 32 x 24 image in a given mode and returns its path."""
    pixels = np.broadcast_to(np.uint8([200, 30, 10]), (24, 32, 3))
    return lambda name, mode="RGB", **options: write_pixels(tmp_path / name, pixels, mode, **options)


# -- Reading: the right result ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_rgb_is_read_opaque(red, name):
    rgba = images.read_image(red(name))
    assert rgba.shape == (24, 32, 4) and rgba.dtype == np.float32
    np.testing.assert_allclose(rgba[12, 16], [200 / 255, 30 / 255, 10 / 255, 1], atol=0.02)


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "CMYK"), ("a.jpg", "YCbCr"), ("a.webp", "RGBA")])
def test_other_modes_keep_their_color(red, name, mode):
    np.testing.assert_allclose(
        images.read_image(red(name, mode))[12, 16, :3], [200 / 255, 30 / 255, 10 / 255], atol=0.03
    )


def test_gray_becomes_rgb(tmp_path):
    path = write_pixels(tmp_path / "a.png", np.full((20, 20), 51, np.uint8))
    np.testing.assert_allclose(images.read_image(path)[0, 0], [0.2, 0.2, 0.2, 1], atol=1e-6)


def test_16_bit_is_scaled_not_clipped(tmp_path):
    path = write_pixels(tmp_path / "a.png", np.full((20, 20), 65535 // 4, np.uint16))
    np.testing.assert_allclose(images.read_image(path)[0, 0], [0.25, 0.25, 0.25, 1], atol=0.003)


def test_gray_with_alpha_keeps_alpha(tmp_path):
    pixels = np.stack([np.full((20, 20), 255, np.uint8), np.full((20, 20), 102, np.uint8)], -1)
    np.testing.assert_allclose(images.read_image(write_pixels(tmp_path / "a.png", pixels))[0, 0, 3], 0.4, atol=1e-6)


def test_palette_becomes_rgb(tmp_path):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 51, 102, 204])
    image.save(tmp_path / "a.png")
    np.testing.assert_allclose(images.read_image(tmp_path / "a.png")[0, 0], [0.2, 0.4, 0.8, 1], atol=1e-6)


def test_palette_transparency_becomes_alpha(tmp_path):
    image = Image.fromarray((np.arange(400).reshape(20, 20) % 2).astype(np.uint8)).convert("P")
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png")[0, :2, 3], [0, 1])


def test_exif_orientation_is_applied(red):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored sideways, shown rotated by 90 degrees
    assert images.read_image(red("a.jpg", exif=exif)).shape == (32, 24, 4)


def test_animation_gives_its_first_frame_with_a_warning(tmp_path):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="animated"):
        rgba = images.read_image(tmp_path / "a.gif")
    np.testing.assert_array_equal(rgba[0, 0], [1, 0, 0, 1])


def test_large_images_are_shrunk(tmp_path):
    path = write_pixels(tmp_path / "a.png", np.zeros((32, 4096), np.uint8))
    assert images.read_image(path).shape == (16, 2048, 4)


# -- Reading: a clear error -------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist"):
        images.read_image(tmp_path / "none.png")


def test_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        images.read_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello " * 50])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is not a picture"):
        images.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_truncated(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = write_pixels(tmp_path / name, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        images.read_image(path)


def test_one_pixel(tmp_path):
    with pytest.raises(ValueError, match="1 x 1 px, too small"):
        images.read_image(write_pixels(tmp_path / "a.png", np.zeros((1, 1, 3), np.uint8)))


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (20_000, 100), (9_000, 9_000)])
def test_bomb_is_refused_by_its_header(tmp_path, width, height):
    # Only a header, without any pixels: reading further would be a different error.
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(ValueError, match=r"megapixels"):
        images.read_image(tmp_path / "a.png")


def test_fully_transparent(tmp_path):
    with pytest.raises(ValueError, match="fully transparent"):
        images.read_image(write_pixels(tmp_path / "a.png", np.zeros((20, 20, 4), np.uint8)))


# -- Cut-out ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_rembg(monkeypatch):
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)


def test_alpha_is_kept():
    picture = disc()
    assert images.matte(picture) is picture


@pytest.mark.parametrize("background", [(1, 1, 1), (0.3, 0.5, 0.7), (0.05, 0.05, 0.05)])
def test_plain_background_is_removed(no_rembg, background):
    cut = images.matte(disc(background=background))
    assert np.abs(cut[..., 3] - disc()[..., 3]).max() < 0.15


def test_shaded_noisy_background_is_removed(no_rembg):
    rng = np.random.default_rng(0)
    shade = 0.7 + 0.2 * np.linspace(-1, 1, 64)[:, None, None] + rng.normal(0, 0.01, (64, 64, 3))
    cut = images.matte(disc(background=shade))
    assert ((cut[..., 3] > 0.5) != (disc()[..., 3] > 0.5)).mean() < 0.01


def test_outline_loses_the_background_color(no_rembg):
    cut = images.matte(disc(color=(0.9, 0.1, 0.1), background=(0, 1, 0)))
    edge = (cut[..., 3] > 0.3) & (cut[..., 3] < 0.9)
    assert edge.any()
    np.testing.assert_allclose(cut[edge][:, :3], np.broadcast_to([0.9, 0.1, 0.1], (edge.sum(), 3)), atol=0.1)


def test_enclosed_background_color_stays_opaque(no_rembg):
    picture = disc(background=(1, 1, 1))
    picture[29:35, 29:35, :3] = 1
    assert images.matte(picture)[32, 32, 3] == 1


def test_object_may_touch_the_border(no_rembg):
    cut = images.matte(disc(center=(32, 52), background=(1, 1, 1)))
    assert cut[62, 32, 3] == 1 and cut[5, 5, 3] == 0


def test_a_tolerance_decides_what_is_background(no_rembg):
    picture = disc(background=(1, 1, 1))
    picture[5:15, 5:15, :3] = 0.8  # 0.35 from the background
    kept, removed = images.matte(picture), images.matte(picture, 0.5)
    assert kept[10, 10, 3] == 1 and removed[10, 10, 3] == 0 and removed[32, 32, 3] == 1


def test_busy_background_is_refused(no_rembg):
    picture = np.random.default_rng(0).random((64, 64, 4), np.float32)
    picture[..., 3] = 1
    with pytest.raises(ValueError, match=r"not plain.*rembg"):
        images.matte(picture)


def test_blank_picture_is_refused(no_rembg):
    with pytest.raises(ValueError, match="nothing stands out"):
        images.matte(np.ones((64, 64, 4), np.float32))


def fake_rembg(monkeypatch, remove):
    monkeypatch.setitem(sys.modules, "rembg", types.SimpleNamespace(remove=remove, __spec__=types.SimpleNamespace()))


def test_rembg_is_preferred(monkeypatch):
    fake_rembg(monkeypatch, lambda image: Image.new("RGBA", image.size, (0, 0, 255, 255)))
    np.testing.assert_array_equal(images.matte(disc(background=(1, 1, 1)))[0, 0], [0, 0, 1, 1])


def test_rembg_without_its_network_falls_back(monkeypatch):
    def remove(image):
        raise OSError("no connection")

    fake_rembg(monkeypatch, remove)
    with pytest.warns(UserWarning, match="no connection"):
        cut = images.matte(disc(background=(1, 1, 1)))
    assert cut[0, 0, 3] == 0


def test_rembg_that_finds_nothing_is_an_error(monkeypatch):
    fake_rembg(monkeypatch, lambda image: Image.new("RGBA", image.size))
    with pytest.raises(ValueError, match="rembg found no object"):
        images.matte(disc(background=(1, 1, 1)))


# -- Framing ----------------------------------------------------------------------------------------------------------


def extents(rgba):
    mask = rgba[..., 3] > 0.5
    return np.flatnonzero(mask.any(0))[[0, -1]], np.flatnonzero(mask.any(1))[[0, -1]]


def test_longer_side_spans_seven_eighths():
    picture = np.zeros((100, 90, 4), np.float32)
    picture[10:50, 20:40] = 1
    columns, rows = extents(framed(picture, 256))
    assert rows[1] - rows[0] + 1 == 224
    assert columns[1] - columns[0] + 1 == 112


def test_object_is_centered():
    columns, rows = extents(framed(disc(center=(20, 45), radius=12), 128))
    np.testing.assert_allclose([columns.mean(), rows.mean()], 63.5, atol=0.5)


def test_small_and_large_images_are_framed_alike():
    small, large = disc(64, 14, (30, 34)), disc(512, 112, (240, 272))
    boxes = [np.array(images.object_box(picture[..., 3])) for picture in (small, large)]
    np.testing.assert_allclose(boxes[0], boxes[1] / 8, atol=0.5)


def test_stray_specks_are_ignored():
    picture = disc()
    picture[0, 0] = 1
    assert images.object_box(picture[..., 3]) == images.object_box(disc()[..., 3])


def test_box_by_hand():
    alpha = np.zeros((40, 40), np.float32)
    alpha[10:24, 5:12] = 1
    assert images.object_box(alpha) == (8.5 - 8, 17 - 8, 16)


def test_no_object_is_an_error():
    with pytest.raises(ValueError, match="shows no object"):
        images.object_box(np.zeros((20, 20), np.float32))


def test_crop_of_the_whole_image_is_the_image():
    picture = disc()
    picture[picture[..., 3] == 0, :3] = 1
    np.testing.assert_allclose(images.crop(picture, (0.0, 0.0, 64.0), 64), picture, atol=1e-5)


def test_transparent_pixels_are_white():
    cut = framed(disc(), 32)
    np.testing.assert_array_equal(cut[cut[..., 3] == 0][:, :3], 1)


def test_color_under_transparency_does_not_bleed():
    cut = images.crop(disc(color=(1, 0, 0)), (3.3, 2.7, 60.0), 21)
    np.testing.assert_allclose(
        cut[cut[..., 3] > 0.1][:, :3], np.broadcast_to([1, 0, 0], ((cut[..., 3] > 0.1).sum(), 3)), atol=1e-4
    )


def test_outside_of_the_image_is_transparent():
    cut = images.crop(np.full((16, 16, 4), 0.5, np.float32) + np.float32([0, 0, 0, 0.5]), (-16.0, -16.0, 48.0), 48)
    assert cut[8, 8, 3] == 0 and cut[24, 24, 3] == 1


def test_rgb_is_cropped_over_white():
    picture = disc()
    box = images.object_box(picture[..., 3])
    expected = images.composite(images.crop(picture, box, 48))
    np.testing.assert_allclose(images.crop(images.composite(picture), box, 48), expected, atol=0.02)


def test_shrinking_is_antialiased():
    noise = np.random.default_rng(0).random((128, 128, 3), np.float32)
    assert images.crop(noise, (0.0, 0.0, 128.0), 32)[4:-4, 4:-4].std() < 0.4 * noise.std()


# -- Values -----------------------------------------------------------------------------------------------------------


def test_composite_over_white():
    np.testing.assert_allclose(images.composite(np.float32([0.2, 0.4, 0.6, 0.25])), [0.8, 0.85, 0.9], atol=1e-6)


def test_normals_survive_their_encoding():
    normal = np.float32([[0.6, 0, -0.8], [0, 1, 0]])
    np.testing.assert_allclose(images.decode_normal(images.encode_normal(normal, np.ones(2))), normal, atol=1e-6)


@pytest.mark.parametrize("lib", [np, jnp])
def test_encoded_normals_are_half_of_n_plus_1_with_alpha_and_white_background(lib):
    normals = lib.array([[0.6, 0, -0.8], [0, 1, 0], [0, 0, 0]])
    encoded = images.encode_normal(normals, lib.array([1.0, 0.25, 0.0]))
    assert isinstance(encoded, type(normals))
    np.testing.assert_allclose(encoded, [[0.8, 0.5, 0.1, 1], [0.5, 1, 0.5, 0.25], [1, 1, 1, 0]], atol=1e-6)


@pytest.mark.parametrize("lib", [np, jnp])
def test_decoded_normals_are_unit_vectors_or_zero_where_unknown(lib):
    rgba = lib.array([[0.8, 0.5, 0.5, 1], [0.8, 0.5, 0.5, 0.5], [0.502, 0.5, 0.5, 1]])
    np.testing.assert_allclose(images.decode_normal(rgba), [[1, 0, 0], [0, 0, 0], [0, 0, 0]], atol=1e-6)


def test_short_vectors_are_unknown_if_asked():
    rgba = np.float32([[0.7, 0.5, 0.5, 1], [0.8, 0.5, 0.5, 1]])
    np.testing.assert_allclose(images.decode_normal(rgba, shortest=0.5), [[0, 0, 0], [1, 0, 0]], atol=1e-6)


def test_decoding_has_a_finite_gradient_at_gray():
    gradient = jax.jit(jax.grad(lambda rgba: images.decode_normal(rgba).sum()))(np.float32([0.5, 0.5, 0.5, 1.0]))
    assert np.isfinite(gradient).all()


def test_bytes_are_rounded_and_clipped():
    np.testing.assert_array_equal(images.to_uint8(np.float32([-1, 0.5, 0.999, 2])), [0, 128, 255, 255])


def test_png_round_trip(tmp_path):
    picture = disc()
    images.write_png(tmp_path / "a.png", picture)
    np.testing.assert_allclose(images.read_image(tmp_path / "a.png"), picture, atol=0.5 / 255 + 1e-6)


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(images.files.os, "replace", fail)
    with pytest.raises(OSError, match="cannot write"):
        images.write_png(tmp_path / "a.png", disc())
    assert not list(tmp_path.iterdir())


def test_unwritable_folder(tmp_path):
    with pytest.raises(OSError, match="cannot write"):
        images.write_png(tmp_path / "none" / "a.png", disc())


def test_views_get_the_exposure_of_an_image():
    views = np.stack([disc(color=(0.4, 0.3, 0.2)), disc(color=(0.2, 0.3, 0.4), radius=9)])
    exposed = images.exposed_as(views, disc(color=(0.6, 0.3, 0.15), radius=12))
    gain = np.array([0.65 / 0.45, 1, 0.2 / 0.25])
    for view, rgba in zip(views, exposed, strict=True):
        inside = rgba[..., 3] > 0
        np.testing.assert_allclose(rgba[inside][:, :3], view[inside][:, :3] * gain, rtol=1e-5)
        np.testing.assert_array_equal(rgba[~inside], view[~inside])


def test_an_image_of_something_else_changes_the_exposure_of_views_only_so_far():
    exposed = images.exposed_as(disc(color=(0.5, 0.5, 0.5))[None], disc(color=(1, 1, 0)))
    np.testing.assert_allclose(exposed[0, 32, 32, :3], 0.5 * np.array([1.7, 1.7, 0.6]), rtol=1e-5)
