"""A model that predicts on the tiles of an image, for small objects in large images."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor, nn

from detr_d2.data.augmentation import build_augmentation
from detr_d2.data.images import to_tensor
from detr_d2.inference.tiles import Window, merge_tiles, tile_windows
from detr_d2.utils.errors import UserError


class TiledModel(nn.Module):
    """A model that cuts images into tiles, predicts on each, and merges the results; see :func:`merge_tiles`.

    It is called as the model, in inference, but with images that are not resized yet: each tile is resized as an image
    is. An image that is no larger than a tile has the result of the model.

    Args:
        model: what predicts on a batch: a :class:`~detr_d2.Detr`, or an :class:`~detr_d2.export.ExportedModel`.
        augmentations: those of an image in inference, applied to each tile.
        tile: height and width of a tile in pixels.
        overlap: share of a tile that its neighbor covers too; at least as large as the objects.
        whole_image: True to predict on the whole image too, for objects larger than the overlap.
        threshold: see :func:`merge_tiles`.
        batch_size: number of tiles that are predicted on together.

    Raises:
        UserError: the model is panoptic.
    """

    def __init__(
        self,
        model: nn.Module,
        augmentations: Sequence[T.Augmentation],
        tile: int,
        overlap: float = 0.2,
        *,
        whole_image: bool = False,
        threshold: float = 0.5,
        batch_size: int = 1,
    ):
        super().__init__()
        if getattr(model, "panoptic", None) is not None:
            raise UserError(
                "MODEL.DETR.TEST.TILES (--tiles) can't merge panoptic segments: set MODEL.DETR.PANOPTIC.ENABLED False, "
                "or MODEL.DETR.TEST.TILES 0."
            )
        self.model = model
        self.training = model.training
        self.augmentations = T.AugmentationList(augmentations)
        self.tile, self.overlap, self.whole_image = tile, overlap, whole_image
        self.threshold = threshold
        self.batch_size = batch_size

    def windows(self, height: int, width: int) -> list[Window]:
        """Return the tiles of an image; the whole image, if it is one of several, is the last."""
        windows = tile_windows((height, width), self.tile, self.overlap)
        whole = [(0, 0, width, height)] if self.whole_image and len(windows) > 1 else []
        return windows + whole

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Return the results of images as :meth:`~detr_d2.Detr.forward` does in evaluation, on the CPU.

        Args:
            batched_inputs: one dict per image with ``image``, (C, H, W). Results are in its pixels.
        """
        return [self._predict(x["image"]) for x in batched_inputs]

    def _predict(self, image: Tensor) -> dict:
        height, width = image.shape[1:]
        windows = self.windows(height, width)
        results = []
        for start in range(0, len(windows), self.batch_size):
            results += self.model([self._input(image, x) for x in windows[start : start + self.batch_size]])
        instances = [x["instances"] for x in results]
        merged = {"instances": merge_tiles(instances, windows, (height, width), self.threshold)}
        if "highest_score" in results[0]:
            merged["highest_score"] = max(x["highest_score"] for x in results)
        return merged

    def _input(self, image: Tensor, window: Window) -> dict:
        left, top, right, bottom = window
        augmented = T.AugInput(np.ascontiguousarray(image[:, top:bottom, left:right].permute(1, 2, 0).numpy()))
        self.augmentations(augmented)
        return {
            "image": to_tensor(augmented.image).contiguous(),
            "height": bottom - top,
            "width": right - left,
        }


def with_tiles(model: nn.Module, cfg: CfgNode) -> tuple[nn.Module, list[T.Augmentation]]:
    """Return ``model``, or one with tiles as ``MODEL.DETR.TEST`` says, and the augmentations of its images."""
    augmentations, test = build_augmentation(cfg, is_train=False), cfg.MODEL.DETR.TEST
    if not test.TILES:
        return model, augmentations
    tiled = TiledModel(
        model,
        augmentations,
        test.TILES,
        test.TILE_OVERLAP,
        whole_image=test.TILE_WHOLE_IMAGE,
        threshold=test.TILE_THRESHOLD,
        batch_size=cfg.TEST.BATCH_SIZE,
    )
    return tiled, []
