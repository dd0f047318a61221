"""Splitting of COCO annotations into training and validation."""

import logging
from typing import Any

import numpy as np

from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def split_images(coco: dict[str, Any], val_share: float, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the images at random, with their annotations, into training and validation.

    Both keep all categories, and the ids of images and annotations. Either set gets at least one image. The same seed
    splits the same images alike.

    Raises:
        UserError: the share is not in (0, 1), or there are fewer than two images.
    """
    count = len(coco["images"])
    if not 0 < val_share < 1:
        raise UserError(f"The share of images for validation is {val_share}: give a number between 0 and 1, as 0.2.")
    if count < 2:
        raise UserError(f"{count} image can't be split into training and validation.")
    num_val = min(max(round(val_share * count), 1), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    val_ids = {coco["images"][index]["id"] for index in order[:num_val]}
    train, val = (
        {
            **coco,
            "images": [x for x in coco["images"] if (x["id"] in val_ids) == is_val],
            "annotations": [x for x in coco["annotations"] if (x["image_id"] in val_ids) == is_val],
        }
        for is_val in (False, True)
    )
    unseen = {x["category_id"] for x in val["annotations"]} - {x["category_id"] for x in train["annotations"]}
    if unseen:
        logger.warning(
            "Only validation images show %s, which can't be learned: choose another seed, or annotate more images.",
            ", ".join(x["name"] for x in coco["categories"] if x["id"] in unseen),
        )
    return train, val
