"""Reading images: the conversion of each kind of file, errors of files that can't be read, and the cache."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from detr_d2.data import DetrDatasetMapper, images
from detr_d2.data.images import ImageCache, check_image_size, read_image, to_tensor
from detr_d2.utils.errors import UserError

RAMP = np.linspace(0, 255, 12 * 8).reshape(8, 12).astype(np.uint8)


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize("extension", ["png", "bmp"])
def test_rgb_and_bgr(tmp_path, rgb, extension):
    path = str(tmp_path / f"image.{extension}")
    Image.fromarray(rgb).save(path)
    np.testing.assert_array_equal(read_image(path, "RGB"), rgb)
    np.testing.assert_array_equal(read_image(path, "BGR"), rgb[:, :, ::-1])
    assert read_image(path, "L").shape == (8, 12, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """The expected array follows the EXIF standard's definition of each orientation."""
    stored = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12)
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / "image.png")
    image.save(path, exif=exif)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored[::-1].T,
        7: stored[::-1, ::-1].T,
        8: stored[:, ::-1].T,
    }[orientation]
    np.testing.assert_array_equal(read_image(path, "L")[:, :, 0], upright)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
def test_jpeg_pixels_are_pillows(tmp_path, options):
    """Bit by bit, though another library decodes them; sides that are no multiple of a block's."""
    smooth = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = str(tmp_path / "image.jpg")
    Image.fromarray(smooth).resize((75, 93)).save(path, **options)
    expected = np.asarray(Image.open(path))
    np.testing.assert_array_equal(read_image(path, "RGB"), expected)
    np.testing.assert_array_equal(read_image(path, "BGR"), expected[:, :, ::-1])
    np.testing.assert_array_equal(read_image(path, "L")[:, :, 0], np.asarray(Image.open(path).convert("L")))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_colors(tmp_path, rgb, mode):
    path = str(tmp_path / "image.jpg")
    Image.fromarray(rgb).convert(mode).save(path)
    np.testing.assert_array_equal(read_image(path, "RGB"), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_jpeg_is_rotated(tmp_path, orientation):
    """As cameras write them."""
    path = str(tmp_path / "image.jpg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Left half black, right half white.
    Image.fromarray(np.repeat([[[0] * 3] * 32 + [[255] * 3] * 32], 16, axis=0).astype(np.uint8)).save(path, exif=exif)
    image = read_image(path, "RGB")
    dark_half = {1: image[:, :32], 3: image[:, 32:], 6: image[:32]}[orientation]
    assert image.shape == ((64, 16, 3) if orientation == 6 else (16, 64, 3))
    assert dark_half.max() < 10
    assert image.mean() == pytest.approx(127, abs=5)


def test_jpeg_with_damaged_exif_data_is_read(tmp_path, rgb):
    path = str(tmp_path / "image.jpg")
    Image.fromarray(rgb).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_image(path, "RGB").shape == (8, 12, 3)


def test_jpegs_are_read_without_torchvisions_decoder(tmp_path, rgb, monkeypatch):
    """Builds of torchvision may lack it; Pillow has one."""

    def decode_jpeg(*_):
        raise RuntimeError("No such operator image::decode_jpeg")

    path = str(tmp_path / "image.jpg")
    Image.fromarray(rgb).save(path)
    expected = read_image(path, "RGB")
    monkeypatch.setattr(images, "decode_jpeg", decode_jpeg)
    np.testing.assert_array_equal(read_image(path, "RGB"), expected)


@pytest.mark.parametrize("view", [np.s_[:], np.s_[:, ::-1], np.s_[::-1, ::-1], np.s_[:, :, ::-1], np.s_[2:5, 3:9]])
def test_tensor_of_any_view(rgb, view):
    for array in (rgb, np.asarray(Image.fromarray(rgb))):
        np.testing.assert_array_equal(to_tensor(array[view]).permute(1, 2, 0).numpy(), rgb[view])


def test_grayscale_is_repeated(tmp_path):
    path = str(tmp_path / "image.png")
    Image.fromarray(RAMP).save(path)
    np.testing.assert_array_equal(read_image(path, "BGR"), np.repeat(RAMP[:, :, None], 3, axis=2))


def test_alpha_is_dropped(tmp_path, rgb):
    """Colors stay the same, as in the original, also of transparent pixels."""
    path = str(tmp_path / "image.png")
    Image.fromarray(np.concatenate([rgb, RAMP[:, :, None]], axis=2)).save(path)
    np.testing.assert_array_equal(read_image(path, "RGB"), rgb)


def test_palette_is_looked_up(tmp_path):
    path = str(tmp_path / "image.png")
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(path)
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    np.testing.assert_array_equal(read_image(path, "RGB"), expected)


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bits_are_scaled(tmp_path, extension):
    """Scaled to 8 bits, where Pillow's conversion clips everything over 255."""
    path = str(tmp_path / f"image.{extension}")
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(read_image(path, "RGB"), np.repeat(RAMP[:, :, None], 3, axis=2))


def test_32_bits_are_refused(tmp_path):
    for values in (RAMP.astype(np.float32), RAMP.astype(np.int32) * 100_000):
        path = str(tmp_path / "image.tif")
        Image.fromarray(values).save(path)
        with pytest.raises(UserError, match=r"image\.tif holds .* 8 or 16 bits"):
            read_image(path, "RGB")


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_truncated_file_is_named(tmp_path, extension, share):
    path = tmp_path / f"image.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"image\.{extension} can't be read"):
        read_image(str(path), "RGB")


def test_damaged_files_never_end_in_another_error(tmp_path):
    """Bytes overwritten at random give an image or a UserError."""
    rng = np.random.default_rng(0)
    named = []
    for extension in ("png", "jpg", "tif", "gif", "webp"):
        path = tmp_path / f"image.{extension}"
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(path)
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[rng.integers(0, len(content), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                pixels = read_image(str(path), "RGB")
            except UserError as error:
                named.append(str(path) in str(error))
            else:
                assert pixels.dtype == np.uint8
    assert all(named)
    assert len(named) > 20


def test_every_kind_of_decoding_error_is_reported(tmp_path):
    """Pillow raises a SyntaxError, a ValueError and a DecompressionBombError for these."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(buffer, "png")
    png = buffer.getvalue()
    start = png.index(b"IDAT") - 4
    short_chunk = png[:start] + (10).to_bytes(4, "big") + png[start + 4 :]
    for content in (short_chunk, b"P6 3 x 255 ", b"P6 100000 100000 255 "):
        (tmp_path / "image").write_bytes(content)
        with pytest.raises(UserError, match="image can't be read"):
            read_image(str(tmp_path / "image"), "RGB")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.jpg does not exist"):
        read_image(str(tmp_path / "nothing.jpg"), "RGB")


def test_text_file_is_named(tmp_path):
    (tmp_path / "image.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"image\.jpg can't be read"):
        read_image(str(tmp_path / "image.jpg"), "RGB")


def test_size_mismatch_names_both_sizes():
    record = {"file_name": "a.jpg", "height": 40, "width": 50}
    with pytest.raises(UserError, match=r"a\.jpg is 60 x 40 pixels .* says 50 x 40") as caught:
        check_image_size(record, np.zeros((40, 60, 3)))
    assert "swapped" not in str(caught.value)
    with pytest.raises(UserError, match=r"sides are swapped: .* EXIF"):
        check_image_size(record, np.zeros((50, 40, 3)))


def test_missing_size_is_set():
    """Records may lack height and width."""
    record = {"file_name": "a.jpg"}
    check_image_size(record, np.zeros((40, 60, 3)))
    assert (record["height"], record["width"]) == (40, 60)


@pytest.fixture
def paths(make_image):
    """Three images of 40 x 60 x 3 = 7200 bytes."""
    return [make_image(name=f"{i}.png") for i in range(3)]


def overwrite(path):
    Image.new("RGB", (60, 40), (9, 9, 9)).save(path)


def test_images_are_cached_until_the_limit(paths):
    cache = ImageCache("BGR", megabytes=0.0144)
    first = [cache.read(path) for path in paths]
    for path, image in zip(paths, first, strict=True):
        np.testing.assert_array_equal(image, read_image(path, "BGR"))
        overwrite(path)
    again = [cache.read(path) for path in paths]
    assert [(image == 9).all() for image in again] == [False, False, True]
    np.testing.assert_array_equal(again[0], first[0])
    assert not first[0].flags.writeable


def test_nothing_is_cached_by_default(make_cfg, paths):
    mapper = DetrDatasetMapper(make_cfg("INPUT.MIN_SIZE_TRAIN", (0,)), is_train=True)
    mapper({"file_name": paths[0]})
    overwrite(paths[0])
    assert (mapper({"file_name": paths[0]})["image"] == 9).all()


def test_nothing_is_cached_in_inference(make_cfg, paths):
    mapper = DetrDatasetMapper(make_cfg("DATALOADER.CACHE_MEGABYTES", 10), is_train=False)
    mapper({"file_name": paths[0]})
    overwrite(paths[0])
    assert (mapper({"file_name": paths[0]})["image"] == 9).all()


def test_writing_to_a_sample_leaves_the_cached_image_unchanged(paths):
    mapper = DetrDatasetMapper(is_train=True, augmentations=[], cache_megabytes=1)
    sample = mapper({"file_name": paths[0]})["image"]
    expected = sample.clone()
    sample.zero_()
    assert torch.equal(mapper({"file_name": paths[0]})["image"], expected)


def test_same_samples_with_and_without_cache(make_cfg, coco_records):
    """Real images, twice each, with the same random numbers."""
    samples = []
    for megabytes in (0, 100):
        mapper = DetrDatasetMapper(make_cfg("DATALOADER.CACHE_MEGABYTES", megabytes), is_train=True)
        np.random.seed(0)
        samples.append([mapper(record)["image"] for record in coco_records[0][:4] * 2])
    assert all(map(torch.equal, *samples))


def test_copies_start_empty(paths):
    cache = ImageCache("RGB", megabytes=0.0150)
    cache.read(paths[0])
    assert len(pickle.dumps(cache)) < 1000
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.free_bytes == 15000
    overwrite(paths[0])
    assert (copy.read(paths[0]) == 9).all()
    assert not (cache.read(paths[0]) == 9).all()
