"""The mapper: from a dataset record to what the model takes."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

from detr_d2.data.annotations import DroppedBoxes, build_instances, read_targets
from detr_d2.data.augmentation import build_augmentation
from detr_d2.data.images import IMAGE_FORMATS, check_image_size, read_image
from detr_d2.errors import UserError

logger = logging.getLogger(__name__)


class DetrDatasetMapper:
    """Reads the image of a dataset record, augments it as DETR does, and builds its targets.

    A drop-in for Detectron2's ``DatasetMapper``, in training and in inference:
    ``build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, is_train=True))``.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | Transform],
        image_format: str = "RGB",
    ):
        """
        Args:
            is_train: whether to build targets; in inference annotations are removed.
            augmentations: applied in order.
            image_format: "RGB" or "BGR", as the backbone's weights expect it; "L" and "YUV-BT.601" as
                in Detectron2.
        """
        if image_format not in IMAGE_FORMATS:
            raise UserError(f"INPUT.FORMAT is {image_format!r}: set it to one of {', '.join(IMAGE_FORMATS)}.")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.dropped_boxes = DroppedBoxes()
        logger.info("Augmentations in %s: %s", "training" if is_train else "inference", self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        if cfg.MODEL.MASK_ON:
            raise UserError("MODEL.MASK_ON is True but masks are not available yet: set MODEL.MASK_ON False.")
        return {
            "is_train": is_train,
            "augmentations": build_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: a record in Detectron2's dataset format; left as it is.

        Returns:
            the record, without "annotations", with

            - "image": (C, H, W) uint8 tensor, augmented;
            - "height", "width": of the file, before augmentation;
            - "instances", in training: ``gt_boxes``, absolute XYXY in the augmented image, and
              ``gt_classes``; empty where nothing is annotated.

        Raises:
            UserError: an image or an annotation that can't be used; the message names it.
        """
        sample = dict(dataset_dict)
        annotations = sample.pop("annotations", None) or []
        image = read_image(sample["file_name"], self.image_format)
        check_image_size(sample, image)
        if not self.is_train:
            sample["image"] = _to_tensor(self._augment(image).image)
            return sample
        targets = read_targets(annotations, sample["file_name"], image.shape[:2], self.dropped_boxes)
        augmented = self._augment(image, targets.boxes)
        sample["image"] = _to_tensor(augmented.image)
        sample["instances"] = build_instances(augmented.boxes, targets.classes, augmented.image.shape[:2])
        return sample

    def _augment(self, image: np.ndarray, boxes: np.ndarray | None = None) -> T.AugInput:
        augmented = T.AugInput(image, boxes=boxes)
        self.augmentations(augmented)
        return augmented


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
