"""Training images that are made of several: mosaics, and objects that are pasted into other images."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor
from torch.nn.functional import interpolate

from detr_d2.config import file_channels, reads_masks
from detr_d2.data.annotations import scaled_instances
from detr_d2.data.mapper import DetrDatasetMapper
from detr_d2.utils.errors import UserError

# Around the images of a mosaic, as in YOLOv5.
_GRAY = (114,)
# Probability with which each object is pasted.
_PASTED_SHARE = 0.5


class MixingMapper:
    """Mapper that mixes the samples of a training mapper with those of random other records.

    Args:
        mapper: mapper from a record to a sample with "image" and "instances".
        records: records of the dataset.
        mosaic: probability with which a sample becomes a mosaic of four, each at half its size (arXiv 2004.10934).
        copy_paste: probability with which about half of the objects of another image are pasted over those of a sample
            (arXiv 2012.07177); requires masks.
        keep_masks: whether samples keep their masks.
        background: value of every channel, or one for all, around the images of a mosaic.
    """

    def __init__(
        self,
        mapper: Callable[[dict], dict],
        records: Sequence[dict],
        *,
        mosaic: float = 0.0,
        copy_paste: float = 0.0,
        keep_masks: bool = True,
        background: Sequence[float] = _GRAY,
    ):
        self.mapper = mapper
        self.records = records
        self.mosaic = mosaic
        self.copy_paste = copy_paste
        self.keep_masks = keep_masks
        self.background = background

    def __call__(self, record: dict) -> dict:
        """Map one record; the sample keeps its file name."""
        sample = self.mapper(record)
        if np.random.random() < self.copy_paste:
            sample = paste_objects(sample, self._map_another())
        if np.random.random() < self.mosaic:
            sample = make_mosaic([sample, *(self._map_another() for _ in range(3))], self.background)
        if not self.keep_masks and sample["instances"].has("gt_masks"):
            sample["instances"].remove("gt_masks")
        return sample

    def unmixed(self) -> Callable[[dict], dict]:
        """Return a mapper to samples that are not mixed; it shares the cache of images."""
        if self.keep_masks:
            return self.mapper
        mapper = copy.copy(self.mapper)
        mapper.with_masks = False
        return mapper

    def _map_another(self) -> dict:
        return self.mapper(self.records[np.random.randint(len(self.records))])


def build_training_mapper(cfg: CfgNode, records: Sequence[dict]) -> DetrDatasetMapper | MixingMapper:
    """Build the mapper of a training on records, with ``INPUT.MOSAIC`` and ``INPUT.COPY_PASTE``."""
    keys = cfg.INPUT
    for name in ("MOSAIC", "COPY_PASTE"):
        if not 0 <= keys[name] <= 1:
            raise UserError(f"INPUT.{name} is {keys[name]}: set a probability from 0 to 1.")
    mapper = DetrDatasetMapper(cfg, is_train=True, with_masks=reads_masks(cfg))
    if not keys.MOSAIC and not keys.COPY_PASTE:
        return mapper
    return MixingMapper(
        mapper,
        records,
        mosaic=keys.MOSAIC,
        copy_paste=keys.COPY_PASTE,
        keep_masks=cfg.MODEL.MASK_ON,
        background=_GRAY if file_channels(cfg) == 3 else tuple(cfg.MODEL.PIXEL_MEAN),
    )


def make_mosaic(samples: Sequence[dict], background: Sequence[float] = _GRAY) -> dict:
    """Return the first of four samples with the images of all, at half their size, in two rows of two.

    Rows and columns are as large as their largest image. Images meet in one point; what they leave free has the
    ``background``'s values.
    """
    images = [_resize(x["image"], 0.5) for x in samples]
    sizes = [tuple(x.shape[1:]) for x in images]
    top, left = (max(sizes[i][0] for i in (0, 1)), max(sizes[i][1] for i in (0, 2)))
    size = top + max(sizes[i][0] for i in (2, 3)), left + max(sizes[i][1] for i in (1, 3))
    canvas = images[0].new_empty((len(images[0]), *size))
    canvas[:] = images[0].new_tensor(background)[:, None, None]
    parts = []
    for i, (sample, image, (height, width)) in enumerate(zip(samples, images, sizes, strict=True)):
        y, x = (top if i >= 2 else top - height), (left if i % 2 else left - width)
        canvas[:, y : y + height, x : x + width] = image
        parts.append(_moved(sample["instances"], size, (y, x), (height, width)))
    return {**samples[0], "image": canvas, "instances": _nonempty(Instances.cat(parts))}


def paste_objects(sample: dict, other: dict) -> dict:
    """Return the sample with random objects of another one pasted at their place, as far as they lie in the image.

    Boxes of objects that are partly hidden then are those of their visible masks; hidden ones are removed.
    """
    height, width = sample["image"].shape[1:]
    chosen = np.random.random(len(other["instances"])) < _PASTED_SHARE
    pasted = _moved(other["instances"][torch.from_numpy(chosen)], (height, width), (0, 0), other["image"].shape[1:])
    covered = pasted.gt_masks.tensor.any(dim=0)
    image = sample["image"].clone()
    rows, columns = (min(x, y) for x, y in zip((height, width), other["image"].shape[1:], strict=True))
    region = covered[:rows, :columns]
    image[:, :rows, :columns][:, region] = other["image"][:, :rows, :columns][:, region]

    own = sample["instances"]
    visible = own.gt_masks.tensor & ~covered
    hidden = (visible != own.gt_masks.tensor).flatten(1).any(dim=1)
    boxes = own.gt_boxes.tensor.clone()
    boxes[hidden] = BitMasks(visible[hidden]).get_bounding_boxes().tensor
    kept = Instances(own.image_size, gt_boxes=Boxes(boxes), gt_classes=own.gt_classes, gt_masks=BitMasks(visible))
    return {**sample, "image": image, "instances": _nonempty(Instances.cat([kept, pasted]))}


def _moved(instances: Instances, size: tuple[int, int], corner: tuple[int, int], area: Sequence[int]) -> Instances:
    """Scale objects to an area (height, width) at a corner (y, x) of an image of another size, which clips them."""
    (height, width), (y, x) = area, corner
    scaled = scaled_instances(instances, (height, width))
    boxes = Boxes(scaled.gt_boxes.tensor + torch.tensor([x, y, x, y], dtype=torch.float32))
    boxes.clip(size)
    moved = Instances(size, gt_boxes=boxes, gt_classes=instances.gt_classes)
    if instances.has("gt_masks"):
        masks = scaled.gt_masks.tensor
        whole = torch.zeros(len(masks), *size, dtype=torch.bool)
        part = whole[:, y : y + height, x : x + width]
        part.copy_(masks[:, : part.shape[1], : part.shape[2]])
        moved.gt_masks = BitMasks(whole)
    return moved


def _nonempty(instances: Instances) -> Instances:
    """Remove objects of which nothing is left."""
    kept = instances.gt_boxes.nonempty()
    if instances.has("gt_masks"):
        kept &= instances.gt_masks.nonempty()
    return instances[kept]


def _resize(image: Tensor, scale: float) -> Tensor:
    """Resize a (C, H, W) image."""
    size = [max(1, round(scale * x)) for x in image.shape[1:]]
    return interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
