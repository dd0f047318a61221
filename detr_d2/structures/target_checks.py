"""What the mapper should have refused, found before it is trained on."""

import logging

import torch
from detectron2.structures import Instances, PolygonMasks
from detectron2.utils.logger import log_first_n

from detr_d2.utils.errors import UserError


def check_instances(instances: Instances, name: str, *, num_classes: int, num_queries: int, masks: bool) -> None:
    """Refuse targets that no loss can be computed of. What lies on a device is not looked at: that would stop it.

    Args:
        instances: ``gt_classes``, ``gt_boxes`` and, where ``masks``, ``gt_masks`` of one image.
        name: what to call the image.

    Raises:
        UserError: names the image and what is wrong.
    """
    if masks:
        _check_masks(instances, name)
    boxes, classes = instances.gt_boxes.tensor, instances.gt_classes
    if len(classes) > num_queries:
        log_first_n(
            logging.WARNING,
            f"{name} has {len(classes)} objects, more than MODEL.DETR.NUM_OBJECT_QUERIES {num_queries}: as many "
            "as there are queries are learned.",
            key="caller",
        )
    if not len(classes) or boxes.device.type != "cpu" or classes.device.type != "cpu":
        return
    if classes.min() < 0 or classes.max() >= num_classes:
        raise UserError(
            f"{name} has an object of class {classes.max() if classes.min() >= 0 else classes.min()}, but "
            f"MODEL.DETR.NUM_CLASSES {num_classes} allows 0 to {num_classes - 1}."
        )
    if not (torch.isfinite(boxes).all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
        raise UserError(f"{name} has a ground-truth box that is not finite or ends before it starts: {boxes}")


def _check_masks(instances: Instances, name: str) -> None:
    if not instances.has("gt_masks"):
        raise UserError(
            f"MODEL.MASK_ON True: training needs 'gt_masks' in every input's instances; those of {name} have none. "
            "Use DetrDatasetMapper, or set MODEL.MASK_ON False to train on boxes alone."
        )
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        raise UserError(
            f"The masks of {name} are polygons: training takes them as bitmaps, which the loader's workers draw. Use "
            "DetrDatasetMapper, or set INPUT.MASK_FORMAT bitmask where Detectron2's DatasetMapper is used."
        )
    shape = tuple(getattr(masks, "tensor", masks).shape)
    expected = (len(instances), *instances.image_size)
    if shape != expected:
        raise UserError(
            f"The masks of {name} have the shape {shape}; its objects and its size in pixels (height, width) want "
            f"{expected}."
        )
