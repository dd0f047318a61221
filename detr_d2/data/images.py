"""Reading image files into arrays of a defined format, and those into tensors."""

import io
import struct

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from detr_d2.utils.errors import UserError

IMAGE_FORMATS = ("RGB", "BGR", "L", "YUV-BT.601")

_EXIF_ORIENTATION = 0x0112

# What Pillow's decoders raise, depending on the format, for a damaged file.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """Read an image file, upright.

    The orientation in its EXIF data is applied. Grayscale is repeated over the channels, a palette is
    looked up, alpha is dropped, and 16 bits are scaled to 8.

    Args:
        file_name: a path, or an address that Detectron2's ``PathManager`` knows.
        image_format: one of ``IMAGE_FORMATS``.

    Returns:
        (H, W, C) array; uint8 in [0, 255], or float for "YUV-BT.601".

    Raises:
        UserError: the file is missing, damaged or of a kind that can't be read.
    """
    try:
        with PathManager.open(file_name, "rb") as file:
            content = file.read()
        image = Image.open(io.BytesIO(content))
        if image_format in ("RGB", "BGR") and (pixels := _decode_jpeg(image, content)) is not None:
            return pixels if image_format == "RGB" else pixels[:, :, ::-1]
        image.load()
        # Pillow's public exif_transpose fails on damaged EXIF data, for which Detectron2 has a way round.
        image = detection_utils._apply_exif_orientation(image)
    except FileNotFoundError as error:
        raise UserError(f"Image {file_name} does not exist: check the dataset's image folder.") from error
    except DECODING_ERRORS as error:
        raise UserError(
            f"Image {file_name} can't be read ({error}): replace the file or remove it from the dataset."
        ) from error
    return detection_utils.convert_PIL_to_numpy(_to_8_bits(image, file_name), image_format)


def _decode_jpeg(image: Image.Image, content: bytes) -> np.ndarray | None:
    """The (H, W, 3) pixels that Pillow would decode, which spends half as long again on it.

    Args:
        image: what Pillow has opened, but not loaded, from ``content``.

    Returns:
        None for what is left to Pillow: other formats, other colours, images to turn, and files with a fault.
    """
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    try:
        if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            return None
        decoded = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except Exception:
        # Damaged EXIF data raise whatever they like, and Pillow says best what is wrong with a file.
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
    """An (H, W, C) array as a (C, H, W) tensor, which shares the array's memory if it can."""
    # PyTorch knows no reversed axes, and reverses many times faster than NumPy; nor does it know read-only memory.
    axes = tuple(axis for axis, stride in enumerate(image.strides) if stride < 0)
    forward = np.flip(image, axes)
    tensor = torch.from_numpy(forward if forward.flags.writeable else forward.copy())
    return tensor.flip(axes).permute(2, 0, 1) if axes else tensor.permute(2, 0, 1)


def check_image_size(record: dict, image: np.ndarray) -> None:
    """Compare an image with the "height" and "width" of its dataset record, and set those if missing.

    Args:
        record: dataset record with "file_name"; changed in place.
        image: (H, W, C), as ``read_image`` returns it.

    Raises:
        UserError: the sizes differ.
    """
    height, width = image.shape[:2]
    expected_height, expected_width = record.setdefault("height", height), record.setdefault("width", width)
    if (expected_height, expected_width) == (height, width):
        return
    hint = ""
    if (expected_height, expected_width) == (width, height):
        hint = " The sides are swapped: perhaps the boxes were drawn without the file's EXIF rotation."
    raise UserError(
        f"Image {record['file_name']} is {width} x {height} pixels (EXIF rotation applied) but its dataset "
        f"says {expected_width} x {expected_height}: correct width and height, or replace the file.{hint}"
    )
