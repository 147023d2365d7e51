"""Colors of images are what their profiles and chunks say; without any, they are unchanged."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from e3d_jax import color_profiles, images

COLOR = (186, 71, 50)


@pytest.fixture
def read(tmp_path):
    """Write a picture of one color, read it, and return its color in bytes."""

    def read(image, suffix=".png", chunks=(), **options):
        path = tmp_path / f"picture{suffix}"
        image.save(path, **options)
        if chunks:
            path.write_bytes(with_chunks(path.read_bytes(), chunks))
        return (images.read_image(path)[16, 16] * 255).round().astype(int).tolist()

    return read


def with_chunks(png, chunks):
    """Return a PNG file with chunks after its header."""
    for kind, data in chunks:
        chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        png = png[:33] + chunk + png[33:]
    return png


def plain(color=COLOR, mode="RGB"):
    return Image.new(mode, (32, 32), color)


def profile(red, green, blue, curve):
    """Return an ICC profile of matrix and gamma; primaries are adapted to D50."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    tags = {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue), b"wtpt": xyz((0.9642, 1, 0.82491))}
    para = b"para\0\0\0\0\0\0\0\0" + struct.pack(">i", round(curve * 65536))
    tags |= {b"rTRC": para, b"gTRC": para, b"bTRC": para}
    table, data, at = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table, data = table + struct.pack(">4sII", name, at + len(data), len(value)), data + value
    head = struct.pack(">I4s4s4s4s4s12s4s", at + len(data), b"", b"\4\0\0\0", b"mntr", b"RGB ", b"XYZ ", b"", b"acsp")
    head += bytes(28) + b"".join(struct.pack(">i", round(value * 65536)) for value in (0.9642, 1, 0.82491))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


ADOBE = profile((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457), 563 / 256)


def test_pictures_without_a_profile_stay_as_they_are(read):
    assert read(plain()) == [*COLOR, 255]


@pytest.mark.parametrize(
    ("suffix", "options"), [(".png", {}), (".webp", {"lossless": True}), (".jpg", {"quality": 98})]
)
def test_a_profile_is_applied(read, suffix, options):
    source = ImageCms.ImageCmsProfile(io.BytesIO(ADOBE))
    expected = ImageCms.profileToProfile(plain(), source, ImageCms.createProfile("sRGB")).getpixel((0, 0))
    assert np.abs(np.subtract(expected, COLOR)).max() > 15
    np.testing.assert_allclose(read(plain(), suffix, icc_profile=ADOBE, **options)[:3], expected, atol=2)


def test_a_profile_of_srgb_changes_nothing(read):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_allclose(read(plain(), icc_profile=srgb), [*COLOR, 255], atol=1)


def test_a_profile_leaves_alpha_alone(read):
    red, _, _, alpha = read(plain((*COLOR, 99), "RGBA"), icc_profile=ADOBE)
    assert alpha == 99 and red > COLOR[0]


def test_a_profile_of_a_palette_is_applied(read):
    expected = read(plain(), icc_profile=ADOBE)
    np.testing.assert_allclose(read(plain().quantize(4), icc_profile=ADOBE), expected, atol=2)


def test_a_damaged_profile_is_ignored_with_a_warning(read):
    with pytest.warns(UserWarning, match=r"picture\.png has a color profile that cannot be applied"):
        assert read(plain(), icc_profile=b"dust") == [*COLOR, 255]


def test_a_profile_of_another_kind_of_colors_is_ignored_with_a_warning(read):
    with pytest.warns(UserWarning, match="cannot be applied"):
        read(plain((0, 200, 100, 0), "CMYK"), ".jpg", icc_profile=ADOBE)


def test_the_gamma_of_a_png_is_applied(read):
    linear = [(b"gAMA", struct.pack(">I", 100_000))]
    # Linear 0.5 is 188 in sRGB.
    np.testing.assert_allclose(read(plain((128, 128, 128)), chunks=linear)[:3], 188, atol=1)


def test_the_usual_gamma_is_that_of_srgb(read):
    assert read(plain(), chunks=[(b"gAMA", struct.pack(">I", 45_455))]) == [*COLOR, 255]


def test_the_gamma_of_a_png_that_says_srgb_is_ignored(read):
    assert read(plain(), chunks=[(b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")]) == [*COLOR, 255]


def test_the_primaries_of_a_png_are_applied(read):
    p3 = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    np.testing.assert_allclose(read(plain(), chunks=[(b"cHRM", struct.pack(">8I", *p3))])[:3], [201, 60, 39], atol=2)


def test_cicp_of_display_p3_is_applied(read):
    np.testing.assert_allclose(read(plain(), chunks=[(b"cICP", b"\x0c\x0d\0\1")])[:3], [201, 60, 39], atol=2)


def test_cicp_counts_more_than_a_profile(read):
    assert read(plain(), chunks=[(b"cICP", b"\1\x0d\0\1")], icc_profile=ADOBE) == [*COLOR, 255]


@pytest.mark.parametrize(("transfer", "value"), [(16, 148), (18, 191)])
def test_white_of_high_dynamic_range_is_white(read, transfer, value):
    with pytest.warns(UserWarning, match="high dynamic range"):
        found = read(plain((value,) * 3), chunks=[(b"cICP", bytes([9, transfer, 0, 1]))])
    np.testing.assert_allclose(found[:3], 255, atol=4)


def test_unknown_cicp_is_ignored_with_a_warning(read):
    with pytest.warns(UserWarning, match=r"unknown code points of colors \(99, 13\)"):
        assert read(plain(), chunks=[(b"cICP", bytes([99, 13, 0, 1]))]) == [*COLOR, 255]


def test_primaries_keep_white():
    for primaries in color_profiles.PRIMARIES.values():
        to_srgb = np.linalg.inv(color_profiles._xyz(color_profiles.SRGB_PRIMARIES)) @ color_profiles._xyz(primaries)
        np.testing.assert_allclose(to_srgb @ np.ones(3), 1, atol=1e-6)


def test_avif_is_read(read):
    np.testing.assert_allclose(read(plain(), ".avif", quality=95), [*COLOR, 255], atol=3)


def test_the_code_points_of_an_avif_are_applied(tmp_path):
    plain().save(path := tmp_path / "picture.avif", quality=95)
    data = path.read_bytes()
    at = data.index(b"colrnclx") + 8
    path.write_bytes(data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :])
    np.testing.assert_allclose(images.read_image(path)[16, 16, :3] * 255, [201, 60, 39], atol=3)


def test_heic_is_read(read):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    np.testing.assert_allclose(read(plain(), ".heic", quality=95), [*COLOR, 255], atol=3)
    expected = read(plain(), icc_profile=ADOBE)
    np.testing.assert_allclose(read(plain(), ".heic", quality=95, icc_profile=ADOBE), expected, atol=4)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_called_by_its_name(tmp_path, monkeypatch, brand):
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "photo.jpg"
    path.write_bytes(struct.pack(">I4s4s4s4s", 24, b"ftyp", brand, b"", b"mif1") + bytes(100))
    with pytest.raises(
        ValueError, match=r"photo\.jpg is a HEIC picture.*install the 'heic' extra, or export it as JPEG"
    ):
        images.read_image(path)
