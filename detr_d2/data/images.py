"""Image files as arrays of a defined format and as tensors, and a cache of decoded images."""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from detr_d2.data.bands import EXIF_ORIENTATION, check_bands, decode_bands, is_tiff, tiff_size
from detr_d2.utils.errors import UserError

IMAGE_FORMATS = ("RGB", "BGR", "L", "YUV-BT.601")

# Errors of Pillow's decoders, depending on the format, for a damaged file.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

_EXIF_QUARTER_TURNS = (5, 6, 7, 8)


def read_image(file_name: str, image_format: str, content: bytes | None = None, channels: int = 3) -> np.ndarray:
    """Read an image file, upright.

    The orientation in its EXIF data is applied. With 3 ``channels`` grayscale is repeated over the channels, a palette
    is looked up, alpha is dropped, and 16 bits are scaled to 8. With another number, values are those of the file, see
    :func:`~detr_d2.data.bands.decode_bands`.

    Args:
        file_name: a path or URL that Detectron2's ``PathManager`` supports.
        image_format: one of ``IMAGE_FORMATS``.
        content: bytes of the file, of which ``file_name`` is only the name then.
        channels: number of bands of the file, unless it is 3.

    Returns:
        (H, W, C) array; uint8 in [0, 255], or float for "YUV-BT.601" and for files of more than 8 bits with
        ``channels`` other than 3.

    Raises:
        UserError: the file is missing, damaged, of a format that can't be read, or of another number of bands.
    """
    if channels != 3:
        with explain_errors(f"Image {file_name}", "the dataset's image folder"):
            pixels = decode_bands(_read_content(file_name) if content is None else content)
        check_bands(f"Image {file_name}", pixels.shape[2], channels)
        return pixels
    with explain_errors(f"Image {file_name}", "the dataset's image folder"):
        content, image = open_image(file_name, content)
        if image_format in ("RGB", "BGR") and (pixels := _decode_jpeg(image, content)) is not None:
            return pixels if image_format == "RGB" else pixels[:, :, ::-1]
        image.load()
        # Pillow's public exif_transpose fails on damaged EXIF data, for which Detectron2 has a workaround.
        image = detection_utils._apply_exif_orientation(image)
    return detection_utils.convert_PIL_to_numpy(_to_8_bits(image, file_name), image_format)


def read_image_size(file_name: str) -> tuple[int, int]:
    """Return the height and width of an image file, upright, without decoding it if its format allows.

    Raises:
        UserError: the file is missing, is no image, or claims more pixels than Pillow's limit.
    """
    with explain_errors(f"Image {file_name}", "the dataset's image folder"), PathManager.open(file_name, "rb") as file:
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            file.seek(0)
            if not is_tiff(content := file.read()):
                raise
            return tiff_size(content)
        if image.format == "PNG":
            # Its EXIF data may follow the pixels.
            image.load()
        try:
            is_rotated = image.getexif().get(EXIF_ORIENTATION, 1) in _EXIF_QUARTER_TURNS
        except Exception:
            # Damaged EXIF data can raise any error; then nothing is rotated, as by read_image.
            is_rotated = False
    return image.size if is_rotated else image.size[::-1]


def open_image(file_name: str, content: bytes | None = None) -> tuple[bytes, Image.Image]:
    """Return the content of an image file, if not given, and the image that Pillow will decode from it."""
    if content is None:
        content = _read_content(file_name)
    try:
        return content, Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        if not is_tiff(content):
            raise
        raise OSError(f"{error}; if it has other bands than RGB, set INPUT.CHANNELS to their number") from error


def _read_content(file_name: str) -> bytes:
    with PathManager.open(file_name, "rb") as file:
        return file.read()


@contextmanager
def explain_errors(name: str, folder: str) -> Iterator[None]:
    """Turn errors of opening and decoding an image file into a UserError with its name and the folder to check."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist: check {folder}.") from error
    except _DECODING_ERRORS as error:
        raise UserError(f"{name} can't be read ({error}): replace the file or remove it from the dataset.") from error


def _decode_jpeg(image: Image.Image, content: bytes) -> np.ndarray | None:
    """Decode a JPEG to the same (H, W, 3) pixels as Pillow, in two thirds of the time.

    Return None for the files that Pillow must decode: other formats, other colors, images to rotate, damaged files.
    """
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    try:
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            return None
        decoded = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except Exception:
        # Damaged EXIF data can raise any error, and Pillow's messages about damaged files are better.
        return None
    return decoded.permute(1, 2, 0).numpy()


def _to_8_bits(image: Image.Image, file_name: str) -> Image.Image:
    """Scale 16-bit gray values to 8 bits, where Pillow's own conversion would clip them at 255."""
    if image.mode == "F":
        raise UserError(f"Image {file_name} holds floating point values: save it with 8 or 16 bits.")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"Image {file_name} holds values outside 0-65535: save it with 8 or 16 bits.")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def to_tensor(image: np.ndarray) -> Tensor:
    """Return an (H, W, C) array as a (C, H, W) tensor, which shares the array's memory if possible."""
    # PyTorch does not support reversed axes, but reverses many times faster than NumPy; nor read-only memory.
    axes = tuple(axis for axis, stride in enumerate(image.strides) if stride < 0)
    forward = np.flip(image, axes)
    tensor = torch.from_numpy(forward if forward.flags.writeable else forward.copy())
    return tensor.flip(axes).permute(2, 0, 1) if axes else tensor.permute(2, 0, 1)


def check_image_size(record: dict, image: np.ndarray) -> None:
    """Check that an (H, W, C) image has the "height" and "width" of its dataset record, and set those if missing.

    Raises:
        UserError: the sizes differ.
    """
    height, width = image.shape[:2]
    expected = record.setdefault("height", height), record.setdefault("width", width)
    if expected == (height, width):
        return
    difference = describe_size_difference((height, width), expected, "its dataset")
    raise UserError(f"Image {record['file_name']} {difference}")


def describe_size_difference(size: tuple[int, int], expected: tuple[int, int], source: str) -> str:
    """Return the end of a message about an image whose (height, width) are not those that ``source`` says."""
    swapped = " The sides are swapped: perhaps the objects were annotated without the file's EXIF rotation."
    hint = swapped if expected == size[::-1] else ""
    return (
        f"is {size[1]} x {size[0]} pixels (EXIF rotation applied) but {source} says {expected[1]} x {expected[0]}: "
        f"correct width and height, or replace the file.{hint}"
    )


class ImageCache:
    """Reader of images that keeps as many as fit in memory, so that later epochs need not decode them.

    An image stays in the cache: since every epoch reads each image once, in another order, replacing one by another
    would gain nothing. Files are assumed not to change.
    """

    def __init__(self, image_format: str, megabytes: float, channels: int = 3) -> None:
        """Create an empty cache, limited to 10^6 bytes times ``megabytes`` in this process; 0 turns it off."""
        self.image_format = image_format
        self.channels = channels
        self.free_bytes = megabytes * 1e6
        self._images: dict[str, np.ndarray] = {}

    def read(self, file_name: str) -> np.ndarray:
        """Read an image as :func:`read_image` does; a cached image is read-only."""
        if file_name in self._images:
            return self._images[file_name]
        image = read_image(file_name, self.image_format, channels=self.channels)
        if image.nbytes <= self.free_bytes:
            self.free_bytes -= image.nbytes
            image.flags.writeable = False
            self._images[file_name] = image
        return image

    def __getstate__(self) -> dict:
        # Another process receives an empty cache, instead of many megabytes that it can read itself.
        used_bytes = sum(image.nbytes for image in self._images.values())
        return self.__dict__ | {"_images": {}, "free_bytes": self.free_bytes + used_bytes}
