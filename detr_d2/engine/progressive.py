"""Progressive resizing: images that are smaller in the first part of a training, whose steps are then cheaper.

As in EfficientNetV2 (arXiv 2104.00298, section 4), without its changes of the augmentation.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from detr_d2.data.annotations import scaled_instances
from detr_d2.utils.errors import UserError


@dataclass(frozen=True)
class ProgressiveSize:
    """Scale of the images by iteration: it grows evenly from ``start`` to 1.

    Args:
        start: scale in the first iteration, over 0 and at most 1.
        full_from: first iteration with images of full size.
    """

    start: float
    full_from: int

    @classmethod
    def of_training(cls, start: float, until: float, max_iter: int) -> "ProgressiveSize | None":
        """Return the sizes of a training of ``max_iter`` iterations, full from this share of them on; None: always.

        Raises:
            UserError: a value is out of range.
        """
        if not (0 < start <= 1 and 0 <= until <= 1):
            raise UserError(
                f"Progressive resizing starts at {start} and ends at {until}: set a scale over 0, at most 1, and a "
                "share of the training from 0 to 1."
            )
        return cls(start, round(until * max_iter)) if start < 1 else None

    def scale(self, iteration: int) -> float:
        """Return the scale of images in an iteration."""
        if iteration >= self.full_from:
            return 1.0
        return self.start + (1 - self.start) * iteration / self.full_from

    def __call__(self, batched_inputs: list[dict], iteration: int, device: torch.device) -> list[dict]:
        """Return the inputs of an iteration with images, boxes and masks in its scale.

        Images are resized on ``device``, that of the model.
        """
        scale = self.scale(iteration)
        return batched_inputs if scale == 1 else [_scaled(x, scale, device) for x in batched_inputs]


def _scaled(x: dict, scale: float, device: torch.device) -> dict:
    image = x["image"].to(device, non_blocking=True)
    height, width = image.shape[-2:]
    size = max(1, round(height * scale)), max(1, round(width * scale))
    image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    scaled = {**x, "image": image}
    if "instances" in x:
        scaled["instances"] = scaled_instances(x["instances"], size)
    return scaled
