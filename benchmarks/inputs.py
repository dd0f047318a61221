"""Random images with objects, as a mapper makes them."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances


def random_batch(
    sizes: list[tuple[int, int]], num_classes: int, objects: int, *, masks: bool = False, seed: int = 0
) -> list[dict]:
    """The same for the same arguments.

    Args:
        sizes: height and width of each image in pixels.
        objects: how many each image has, rectangles anywhere, of any class.
        masks: whether they have masks, too.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for height, width in sizes:
        image = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        corners = torch.rand(objects, 2, 2, generator=generator).sort(1).values.flatten(1)
        boxes = corners * torch.tensor([width, height, width, height])
        instances = Instances((height, width), gt_boxes=Boxes(boxes))
        instances.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
        if masks:
            instances.gt_masks = BitMasks(_rectangles(boxes, height, width))
        # Results are made for the size that an image had before it was resized: 480 x 640 for 800 x 1066.
        wanted = {"height": round(0.6 * height), "width": round(0.6 * width)}
        batch.append({"image": image, "instances": instances, "file_name": "random", **wanted})
    return batch


def _rectangles(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    x, y = torch.arange(width), torch.arange(height)[:, None]
    x0, y0, x1, y1 = boxes[..., None, None].unbind(1)
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
