"""The computation of an exported file: from images and their sizes to detections, with tensors alone."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detr_d2.config import choice
from detr_d2.criterion import get_class_loss
from detr_d2.export.masks import padded_masks
from detr_d2.export.padding import keep_padding_out
from detr_d2.modeling import Detr
from detr_d2.structures import Output, SizedBatch
from detr_d2.utils.box_ops import cxcywh_to_xyxy
from detr_d2.utils.errors import UserError

INPUTS = ("images", "sizes")
"""Names of the inputs of every exported file."""
OUTPUTS = {"detections": ("boxes", "scores", "labels"), "raw": ("logits", "boxes")}
"""Kinds of outputs and their names; with masks "masks" is added."""
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
"""Data types of the images, whose values are those that the model was trained with: 0 to 255, or in the
units of files with other bands than RGB."""


@dataclass(frozen=True)
class GraphOptions:
    """What an exported file takes and returns."""

    outputs: str = "detections"
    """A key of :data:`OUTPUTS`."""
    masks: bool = False
    """True to return masks too."""
    max_detections: int | None = None
    """Number of detections of each image, those with the highest scores. None: as many as there are queries."""
    dtype: str = "uint8"
    """A key of :data:`DTYPES`; "float32" for images of more than 8 bits."""

    def check(self, model: Detr) -> None:
        """Raise a UserError that names the option that ``model`` does not support."""
        choice(OUTPUTS, "The option outputs", self.outputs)
        choice(DTYPES, "The option dtype", self.dtype)
        if self.masks and not model.has_masks:
            raise UserError("Masks are requested, but the model has no mask head: export it without masks.")
        queries = model.detr.num_queries
        if self.max_detections is not None and not 1 <= self.max_detections <= queries:
            raise UserError(f"max_detections is {self.max_detections}: set 1 to {queries}, the model's object queries.")
        if self.max_detections is not None and self.outputs == "raw":
            raise UserError("max_detections selects detections, and the outputs are raw: leave it out.")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return (*OUTPUTS[self.outputs], *(("masks",) if self.masks else ()))


class ExportGraph(nn.Module):
    """The module that is traced and exported. Batch, height and width may be of any size.

    Args:
        model: model, optimized for inference in float32 on the CPU; it is not changed.
        options: inputs and outputs.
    """

    def __init__(self, model: Detr, options: GraphOptions):
        super().__init__()
        options.check(model)
        self.options = options
        self.network = copy.deepcopy(model.detr).eval()
        self.class_loss = model.class_loss
        self.count = options.max_detections or model.detr.num_queries
        self.serves_padding = keep_padding_out(self.network.backbone[0], len(model.pixel_mean))
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: (B, C, H, W) of :attr:`GraphOptions.dtype`, padded on the right and at the bottom with any values.
            sizes: (B, 2) int64 height and width of each image without padding, in pixels.

        Returns:
            - of "detections": (B, K, 4) boxes as left, top, right, bottom in pixels; (B, K) scores in [0, 1]; (B, K)
              int64 classes;
            - of "raw": (B, Q, classes + 1) logits, and (B, Q, 4) boxes as center x, center y, width, height in [0, 1];
            - with masks (B, K or Q, h, w) logits at the size of the backbone's finest level.
        """
        batch = SizedBatch((images.float() - self.pixel_mean) / self.pixel_std, sizes)
        output = self.network(batch, all_layers=False)
        if self.options.outputs == "raw":
            queries = torch.arange(self.network.num_queries).expand(images.shape[0], -1)
            results = (output.logits[-1], output.boxes[-1])
        else:
            *results, queries = self._detections(output, sizes)
        if self.options.masks:
            results = (*results, padded_masks(self.network, output.mask_inputs, queries, self.count, batch))
        return tuple(results)

    def _detections(self, output: Output, sizes: Tensor) -> Sequence[Tensor]:
        scores, labels, queries = get_class_loss(self.class_loss).rank(output.logits[-1])
        if self.options.max_detections is not None:
            scores, best = scores.topk(self.options.max_detections)
            labels, queries = labels.gather(1, best), queries.gather(1, best)
        boxes = cxcywh_to_xyxy(output.boxes[-1]).gather(1, queries[..., None].expand(-1, -1, 4))
        return boxes * sizes.flip(1).repeat(1, 2)[:, None], scores, labels, queries
