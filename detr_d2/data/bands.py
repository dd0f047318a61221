"""Image files of any number of bands (grayscale, multispectral) as arrays of their own values, and for display."""

import importlib
import io

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_d2.utils.errors import UserError

EXIF_ORIENTATION = 0x0112
"""Number of the tag of EXIF and TIFF that tells how to turn an image upright."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLES_PER_PIXEL = 277
_PNG = b"\x89PNG\r\n\x1a\n"
# Of a PNG of 16 bits, by its color type: the order of the bands in what OpenCV returns. Pillow reads 8 of the 16 bits.
_PNG_BANDS = {2: (2, 1, 0), 4: (2, 3), 6: (2, 1, 0, 3)}
# Modes of Pillow whose bands are those of the file. Others, such as palettes, are converted to RGB or RGBA.
_MODES = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I", "F")
_UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


def is_tiff(content: bytes) -> bool:
    """Check whether a file is a TIFF, by its first four bytes or more."""
    return content.startswith(_TIFF)


def decode_bands(content: bytes) -> np.ndarray:
    """Decode an image file, upright, with the values that it holds.

    Returns:
        (H, W, N) uint8 if the file has 8 bits or 1 bit per value, where 1 becomes 255; float32 otherwise, unscaled: 0
        to 65535 of 16 bits. Bands are in the order of the file, alpha included.

    Raises:
        UserError: tifffile, which reads several bands of a TIFF, is missing.
        OSError, ValueError, SyntaxError: the file is damaged, of a format that can't be read, or has values that are
            not finite.
    """
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if not is_tiff(content):
            raise
        return _decode_tiff(content)
    is_multi_band = image.format == "TIFF" and (
        getattr(image, "n_frames", 1) > 1 or image.tag_v2.get(_SAMPLES_PER_PIXEL, 1) > 1
    )
    return _decode_tiff(content) if is_multi_band else _upright(_decode(image, content), _orientation(image))


def tiff_size(content: bytes) -> tuple[int, int]:
    """Return height and width, upright, of a TIFF that Pillow can't open; errors are those of :func:`decode_bands`."""
    # Decodes the whole file: callers nearly always need the pixels as well.
    return decode_bands(content).shape[:2]


def check_bands(name: str, found: int, channels: int) -> None:
    """Raise a UserError if an image, described by ``name``, has not as many bands as ``INPUT.CHANNELS``."""
    if found == channels:
        return
    gray = ", or INPUT.FORMAT L to convert colors to gray" if channels == 1 and found in (3, 4) else ""
    raise UserError(
        f"{name} has {found} band{'s' if found > 1 else ''}, but INPUT.CHANNELS is {channels}: set INPUT.CHANNELS "
        f"{found}, with as many values of MODEL.PIXEL_MEAN and MODEL.PIXEL_STD{gray}; or replace the file."
    )


def to_display(image: np.ndarray) -> np.ndarray:
    """Return an (H, W, N) image as (H, W, 3) uint8 RGB: the first three bands, or if there are fewer the first as gray.

    Values of more than 8 bits are stretched, each band from its 1st to its 99th percentile.
    """
    if image.shape[2] == 3 and image.dtype == np.uint8:
        return image
    shown = image[:, :, : 3 if image.shape[2] >= 3 else 1]
    if shown.dtype != np.uint8:
        low, high = np.percentile(shown, (1, 99), axis=(0, 1))
        shown = (255 * ((shown - low) / np.maximum(high - low, 1e-12)).clip(0, 1)).round().astype(np.uint8)
    return np.repeat(shown, 3 // shown.shape[2], axis=2)


def _decode(image: Image.Image, content: bytes) -> np.ndarray:
    # The header's chunk comes first; its bytes 8 and 9 are the bits and the color type.
    bits, color_type = content[24:26] if content.startswith(_PNG) else (8, 0)
    if bits == 16 and color_type in _PNG_BANDS:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise OSError("damaged PNG")
        return _as_values(pixels[:, :, _PNG_BANDS[color_type]])
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    pixels = np.asarray(image)
    return _as_values(pixels[:, :, None] if pixels.ndim == 2 else pixels)


def _decode_tiff(content: bytes) -> np.ndarray:
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as e:
        raise UserError(
            "TIFF files of several bands need tifffile: pip install 'detr_d2[multispectral]' (or tifffile, and "
            "imagecodecs for compressed files)."
        ) from e
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series, orientation = file.series[0], file.pages.first.tags.valueof(EXIF_ORIENTATION, 1)
            pixels, axes = series.asarray(), series.axes
    except Exception as e:  # It has errors of many kinds for damaged files.
        hint = "; pip install imagecodecs" if "imagecodecs" in str(e) else ""
        raise OSError(f"{e}{hint}") from e
    # Bands are samples of a pixel, planes, or pages of one size.
    pixels = np.moveaxis(pixels, (axes.index("Y"), axes.index("X")), (0, 1))
    return _upright(_as_values(pixels.reshape(*pixels.shape[:2], -1)), orientation)


def _as_values(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == bool:
        return 255 * pixels.astype(np.uint8)
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    return values


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        # Damaged EXIF data can raise any error; then nothing is rotated.
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(_UPRIGHT.get(orientation, lambda x: x)(pixels))
