"""Augmentation of training images: DETR's (arXiv 2005.12872, appendix A.4) and others, as Detectron2 augmentations."""

import sys
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import BlendTransform, NoOpTransform, Transform
from PIL import Image
from torch.nn.functional import interpolate

from detr_d2.config import choice, file_channels
from detr_d2.data.images import to_tensor
from detr_d2.utils.errors import UserError

# DETR uses the first; the others are Detectron2's.
CROP_TYPES = ("absolute_range", "absolute", "relative_range", "relative")


class FastResizeTransform(T.ResizeTransform):
    """Resize of images with PyTorch, three times as fast as Pillow; masks are resized as by Detectron2's class.

    The filter is Pillow's antialiased bilinear one, in integers of fewer bits: a value between two gray levels may be
    rounded to the other one.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        method = self.interp if interp is None else interp
        if img.ndim != 3 or method != Image.BILINEAR or (img.dtype != np.uint8 and img.shape[2] == 3):
            return super().apply_image(img, interp)
        size = (self.new_h, self.new_w)
        resized = interpolate(to_tensor(img)[None], size=size, mode="bilinear", antialias=True)[0]
        return resized.permute(1, 2, 0).numpy()


class DetrResizeShortestEdge(T.ResizeShortestEdge):
    """Resize of the shortest edge to one of the given lengths, to the same size as the original DETR.

    Detectron2's class rounds the longer edge; here it is truncated, and if it would exceed ``max_size``, the shortest
    edge is first reduced and rounded, which may leave the longer edge slightly over ``max_size``.

    The arguments are those of Detectron2's class, and ``fast``: resize with PyTorch, see :class:`FastResizeTransform`,
    instead of Pillow like the original.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
        fast: bool = False,
    ):
        super().__init__(short_edge_length, max_size, sample_style, interp)
        self.fast = fast

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        new_height, new_width = self.get_output_shape(height, width, int(size), self.max_size)
        if (new_height, new_width) == (height, width):
            return NoOpTransform()
        # Pillow takes a fourth band for alpha, and reads neither five nor more than 8 bits.
        is_rgb = image.shape[2:] in ((), (3,))
        transform = FastResizeTransform if self.fast or not is_rgb else T.ResizeTransform
        return transform(height, width, new_height, new_width, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return the height and width, in pixels, of an ``oldh`` x ``oldw`` image after resizing."""
        size, shortest, longest = short_edge_length, min(oldh, oldw), max(oldh, oldw)
        if longest / shortest * size > max_size:
            size = round(max_size * shortest / longest)
        if size == 0:
            # The original fails here: the shortest edge of a very long image would vanish.
            return (1, max_size) if oldh < oldw else (max_size, 1)
        if oldw < oldh:
            return int(size * oldh / oldw), size
        return size, int(size * oldw / oldh)


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build the augmentation from the keys under ``INPUT``.

    In training: a flip, the entry of :data:`AUGMENTATIONS` that ``AUGMENTATION`` names, then changes of colors by up to
    ``COLOR_JITTER``. In inference: a resize to ``MIN_SIZE_TEST``; 0 leaves the image as it is.

    Raises:
        UserError: a key has an invalid value.
    """
    keys = cfg.INPUT
    if not is_train:
        return [DetrResizeShortestEdge(keys.MIN_SIZE_TEST, keys.MAX_SIZE_TEST, "choice", fast=keys.FAST_RESIZE_TEST)]
    augmentations, flip = [], keys.RANDOM_FLIP
    if flip not in ("horizontal", "vertical", "none"):
        raise UserError(f"INPUT.RANDOM_FLIP is {flip!r}: set it to horizontal, vertical or none.")
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    is_rgb = file_channels(cfg) == 3
    if keys.AUGMENTATION == "lsj" and not is_rgb:
        raise UserError(
            f"INPUT.AUGMENTATION lsj resizes and pads RGB images, but INPUT.CHANNELS is {keys.CHANNELS}: set detr or "
            "light."
        )
    augmentations += choice(AUGMENTATIONS, "INPUT.AUGMENTATION", keys.AUGMENTATION)(keys)
    return augmentations + _build_color_jitter(keys.COLOR_JITTER, is_rgb)


def _build_detr(keys: CfgNode) -> list[T.Augmentation]:
    """Build DETR's: with probability 0.5 (``CROP.ENABLED``) a resize and a crop, then a resize."""
    crop = [T.RandomApply(_build_crop(keys), prob=0.5)] if keys.CROP.ENABLED else []
    return [*crop, _build_multi_scale_resize(keys)]


def _build_light(keys: CfgNode) -> list[T.Augmentation]:
    """Build the one for small datasets: random vertical flips, and for half of the images a crop to 2/3 or more."""
    flip = [T.RandomFlip(horizontal=False, vertical=True)] if keys.RANDOM_FLIP == "horizontal" else []
    return [
        *flip,
        T.RandomApply(T.RandomCrop("relative_range", (2 / 3, 2 / 3)), prob=0.5),
        _build_multi_scale_resize(keys),
    ]


def _build_large_scale_jitter(keys: CfgNode) -> list[T.Augmentation]:
    """Build large scale jitter (arXiv 2012.07177, section 3): 0.1 to 2 times the size, then a crop of one size."""
    size = max(_lengths_of_resize(keys))
    return [
        T.ResizeScale(min_scale=0.1, max_scale=2.0, target_height=size, target_width=size),
        # What is padded has no mask.
        T.FixedSizeCrop(crop_size=(size, size), seg_pad_value=0),
    ]


AUGMENTATIONS = {"detr": _build_detr, "light": _build_light, "lsj": _build_large_scale_jitter}
"""Values of ``INPUT.AUGMENTATION``: from the node ``INPUT`` to what follows the flip."""


class BandContrast(T.RandomContrast):
    """Change of the contrast of every band around its own mean, by one random factor."""

    def get_transform(self, image: np.ndarray) -> Transform:
        factor = np.random.uniform(self.intensity_min, self.intensity_max)
        means = image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
        return BlendTransform(src_image=means, src_weight=1 - factor, dst_weight=factor)


def _build_color_jitter(strength: float, is_rgb: bool) -> list[T.Augmentation]:
    """Return changes of brightness, contrast and saturation by factors from 1 - strength to 1 + strength.

    Bands other than RGB have no saturation.
    """
    if not 0 <= strength < 1:
        raise UserError(f"INPUT.COLOR_JITTER is {strength}: set a share of at least 0 and less than 1.")
    contrast = (T.RandomContrast, T.RandomSaturation) if is_rgb else (BandContrast,)
    return [kind(1 - strength, 1 + strength) for kind in (T.RandomBrightness, *contrast)] if strength else []


def _build_crop(keys: CfgNode) -> T.AugmentationList:
    """Build the resize, if any, and the crop after it."""
    kind, size = keys.CROP.TYPE, tuple(keys.CROP.SIZE)
    lengths = _check_lengths("INPUT.CROP.RESIZE_SIZES", keys.CROP.RESIZE_SIZES)
    resize = [DetrResizeShortestEdge(lengths, sample_style="choice", fast=keys.FAST_RESIZE_TRAIN)] if lengths else []
    if kind not in CROP_TYPES:
        raise UserError(f"INPUT.CROP.TYPE is {kind!r}: set it to one of {', '.join(CROP_TYPES)}.")
    if len(size) != 2:
        raise UserError(f"INPUT.CROP.SIZE is {size}: set two numbers, e.g. (384, 600).")
    if kind.startswith("absolute"):
        size = _check_lengths("INPUT.CROP.SIZE", size, hint=f" (INPUT.CROP.TYPE is {kind})")
    elif not all(0 < share <= 1 for share in size):
        raise UserError(f"INPUT.CROP.SIZE is {size}: with INPUT.CROP.TYPE {kind} both lie in (0, 1].")
    if kind == "absolute_range" and size[0] > size[1]:
        raise UserError(f"INPUT.CROP.SIZE is {size}: set the smallest side first, then the largest.")
    return T.AugmentationList([*resize, T.RandomCrop(kind, size)])


def _lengths_of_resize(keys: CfgNode) -> tuple[int, ...]:
    lengths = keys.MIN_SIZE_TRAIN
    return _check_lengths("INPUT.MIN_SIZE_TRAIN", (lengths,) if isinstance(lengths, int) else lengths, minimum=0)


def _build_multi_scale_resize(keys: CfgNode) -> DetrResizeShortestEdge:
    lengths, style = _lengths_of_resize(keys), keys.MIN_SIZE_TRAIN_SAMPLING
    if style not in ("choice", "range"):
        raise UserError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {style!r}: set it to choice or range.")
    if not lengths or (style == "range" and len(lengths) != 2):
        expected = "two lengths, the ends of the range" if style == "range" else "one length or more"
        raise UserError(f"INPUT.MIN_SIZE_TRAIN is {lengths}: with sampling {style!r} set {expected}.")
    return DetrResizeShortestEdge(lengths, keys.MAX_SIZE_TRAIN, style, fast=keys.FAST_RESIZE_TRAIN)


def _check_lengths(key: str, values: Sequence[float], minimum: int = 1, hint: str = "") -> tuple[int, ...]:
    if any(value != int(value) or value < minimum for value in values):
        raise UserError(f"{key} is {tuple(values)}: set integers, in pixels, of at least {minimum}{hint}.")
    return tuple(int(value) for value in values)
