"""Mapper from a dataset record to the model's input."""

import functools
import logging
from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

from detr_d2.config import file_channels
from detr_d2.data.annotations import ImageTargets, annotations_of, build_instances, is_panoptic, read_targets
from detr_d2.data.augmentation import build_augmentation
from detr_d2.data.images import IMAGE_FORMATS, ImageCache, check_image_size, to_tensor
from detr_d2.data.masks import RleMasks, read_masks
from detr_d2.data.panoptic.segments import SegmentMasks, read_segments
from detr_d2.utils.errors import ExampleCounter, UserError

logger = logging.getLogger(__name__)


class DetrDatasetMapper:
    """Mapper that reads the image of a dataset record, augments it as DETR does, and builds its targets.

    A replacement of Detectron2's ``DatasetMapper``, in training and in inference:
    ``build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, is_train=True))``.

    The objects of an image are its "annotations". A record without them but with a "pan_seg_file_name" is panoptic:
    its objects are the things and stuff of "segments_info", read from the PNG.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | Transform],
        image_format: str = "RGB",
        with_masks: bool = False,
        cache_megabytes: float = 0,
        channels: int = 3,
    ):
        """Store the values, which ``DetrDatasetMapper(cfg, is_train)`` reads from a config.

        Args:
            is_train: whether to build targets; in inference annotations are removed.
            augmentations: applied in order.
            image_format: one of Detectron2's, as the backbone's weights expect it.
            with_masks: whether targets have masks.
            cache_megabytes: the memory for decoded images in each process, in 10^6 bytes.
            channels: number of bands that files must have; 3: any, converted to ``image_format``.
        """
        if image_format not in IMAGE_FORMATS:
            raise UserError(f"INPUT.FORMAT is {image_format!r}: set it to one of {', '.join(IMAGE_FORMATS)}.")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.images = ImageCache(image_format, cache_megabytes, channels)
        self.dropped = ExampleCounter()
        self.with_masks = with_masks
        logger.info("Augmentations in %s: %s", "training" if is_train else "inference", self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "with_masks": cfg.MODEL.MASK_ON,
            "cache_megabytes": cfg.DATALOADER.CACHE_MEGABYTES if is_train else 0,
            "channels": file_channels(cfg),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Map one record, which is not changed.

        Args:
            dataset_dict: a record in Detectron2's dataset format.

        Returns:
            The record, without "annotations" and "segments_info", with

            - "image": (C, H, W) tensor, augmented; uint8, or float if the file has other bands than RGB and more
              than 8 bits;
            - "height", "width": of the file, before augmentation;
            - "instances", in training: ``gt_boxes``, absolute XYXY in the augmented image, ``gt_classes`` and,
              with masks, ``gt_masks``, (N, H, W) ``BitMasks``; empty if nothing is annotated.

        Raises:
            UserError: an image or an annotation that can't be used; the message names it.
        """
        sample = {key: dataset_dict[key] for key in dataset_dict if key not in ("annotations", "segments_info")}
        image = self.images.read(sample["file_name"])
        check_image_size(sample, image)
        targets, masks = self._read_objects(dataset_dict, image.shape[:2]) if self.is_train else (None, None)
        augmented = T.AugInput(image, boxes=targets.boxes if self.is_train else None)
        transforms = self.augmentations(augmented)
        sample["image"] = to_tensor(augmented.image).contiguous()
        if self.is_train:
            rasterize = None if masks is None else functools.partial(masks.rasterize, transforms=transforms)
            instances = build_instances(augmented.boxes, targets.classes, augmented.image.shape[:2], rasterize)
            if not self.with_masks and instances.has("gt_masks"):
                instances.remove("gt_masks")
            sample["instances"] = instances
        return sample

    def _read_objects(self, record: dict, size: tuple[int, int]) -> tuple[ImageTargets, RleMasks | SegmentMasks | None]:
        if is_panoptic(record):
            return read_segments(record, size)
        targets = read_targets(annotations_of(record), record["file_name"], size, self.dropped)
        if not self.with_masks:
            return targets, None
        kept, masks = read_masks(targets.annotations, targets.names, size, self.dropped)
        return targets.select(kept), masks
