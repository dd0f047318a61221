"""Images of any number of bands: their values, their display, and files of another number of bands."""

import io
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from detr_d2.data.bands import to_display
from detr_d2.data.images import read_image, read_image_size
from detr_d2.utils.errors import UserError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def read(path, channels: int) -> np.ndarray:
    return read_image(str(path), "RGB", channels=channels)


def write_tiff(path, pixels: np.ndarray, **options) -> None:
    pytest.importorskip("tifffile").imwrite(path, pixels, **{"photometric": "minisblack"} | options)


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (16, np.float32)])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_grayscale_keeps_its_values(tmp_path, rng, bits, kind, extension):
    pixels = rng.integers(0, 2**bits, (7, 9), dtype=f"u{bits // 8}")
    Image.fromarray(pixels).save(tmp_path / f"a.{extension}")
    image = read(tmp_path / f"a.{extension}", 1)
    assert image.dtype == kind
    np.testing.assert_array_equal(image[:, :, 0], pixels)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "CMYK"])
def test_bands_that_rgb_images_lack_are_kept(tmp_path, rng, mode):
    count = len(mode)
    pixels = rng.integers(0, 256, (7, 9, count), dtype=np.uint8)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "CMYK":
        pytest.importorskip("tifffile")
    Image.fromarray(pixels, mode=None if count == 2 else mode).save(path)
    np.testing.assert_array_equal(read(path, count), pixels)


def test_a_png_of_four_bands_and_16_bits(tmp_path, rng):
    pixels = rng.integers(0, 65536, (7, 9, 4), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[:, :, [2, 1, 0, 3]])
    np.testing.assert_array_equal(read(tmp_path / "a.png", 4), pixels.astype(np.float32))
    np.testing.assert_array_equal(read(tmp_path / "a.png", 3), pixels[:, :, :3] >> 8)


def test_a_png_of_gray_and_alpha_and_16_bits(tmp_path, rng):
    """Written by hand after the PNG specification, since neither library writes it."""
    pixels = rng.integers(0, 65536, (7, 9, 2), dtype=np.uint16)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 9, 7, 16, 4, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(read(tmp_path / "a.png", 2), pixels.astype(np.float32))


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_a_tiff_of_six_bands(tmp_path, rng, kind, layout):
    pixels = (rng.random((7, 9, 6)) * 250 - (100 if kind in ("i2", "f4") else 0)).astype(kind)
    stored = pixels if layout == "contig" else pixels.transpose(2, 0, 1)
    write_tiff(tmp_path / "a.tif", stored, planarconfig=None if layout == "pages" else layout)
    image = read(tmp_path / "a.tif", 6)
    assert image.dtype == (np.uint8 if kind == "u1" else np.float32)
    np.testing.assert_array_equal(image, pixels)
    assert read_image_size(str(tmp_path / "a.tif")) == (7, 9)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(tmp_path, rng, orientation):
    """As Pillow applies it, to files that Pillow decodes and to those that it does not."""
    pixels = rng.integers(0, 256, (7, 9, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    np.testing.assert_array_equal(read(tmp_path / "a.png", 4), expected)
    tag = (0x0112, "H", 1, orientation, True)
    write_tiff(tmp_path / "a.tif", pixels, planarconfig="contig", extratags=[tag])
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 4), expected)


def test_another_number_of_bands_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 7)).save(path)
    with pytest.raises(UserError, match=r"Image .*a\.png has 3 bands, but INPUT\.CHANNELS is 4: set INPUT\.CHANNELS 3"):
        read(path, 4)
    with pytest.raises(UserError, match=r"has 3 bands, but INPUT\.CHANNELS is 1.*INPUT\.FORMAT L"):
        read(path, 1)
    Image.new("L", (9, 7)).save(path)
    with pytest.raises(UserError, match=r"has 1 band, but INPUT\.CHANNELS is 4"):
        read(path, 4)


def test_without_the_key_the_error_names_it(tmp_path):
    write_tiff(tmp_path / "a.tif", np.zeros((6, 7, 9), np.uint8), planarconfig="separate")
    with pytest.raises(UserError, match=r"a\.tif can't be read.*set INPUT\.CHANNELS"):
        read(tmp_path / "a.tif", 3)


def test_damaged_files_are_named(tmp_path):
    write_tiff(tmp_path / "whole.tif", np.ones((6, 70, 90), np.uint8), planarconfig="separate")
    content = (tmp_path / "whole.tif").read_bytes()
    png = io.BytesIO()
    Image.fromarray(np.ones((70, 90), np.uint8)).save(png, "PNG")
    for damaged in (content[:100], content[: len(content) // 2], png.getvalue()[:60], b"no image", b""):
        (tmp_path / "a.tif").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.tif"):
            read(tmp_path / "a.tif", 6)
    write_tiff(tmp_path / "a.tif", np.full((6, 7, 9), np.nan, np.float32), planarconfig="separate")
    with pytest.raises(UserError, match=r"a\.tif.*not finite"):
        read(tmp_path / "a.tif", 6)


def test_tifffile_is_named_where_it_is_missing(tmp_path, monkeypatch):
    write_tiff(tmp_path / "a.tif", np.zeros((6, 7, 9), np.uint8), planarconfig="separate")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r"pip install 'detr_d2\[multispectral\]'") as error:
        read(tmp_path / "a.tif", 6)
    assert "replace the file" not in str(error.value)


def test_display(rng):
    rgb = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert to_display(rgb) is rgb
    bands = np.concatenate((rgb, rgb), axis=2)
    np.testing.assert_array_equal(to_display(bands), rgb)
    np.testing.assert_array_equal(to_display(bands[:, :, :1]), np.repeat(rgb[:, :, :1], 3, axis=2))
    ramp = np.linspace(1000, 2000, 101, dtype=np.float32).reshape(1, 101, 1)
    shown = to_display(ramp)[0, :, 0]
    assert shown[[0, 1, 50, 99, 100]].tolist() == [0, 0, 128, 255, 255]
