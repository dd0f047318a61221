"""An exported file called like the model that it was made from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from detr_d2.config.checks import PRECISIONS, choice
from detr_d2.export.formats import check_runtime, format_of
from detr_d2.export.graph import DTYPES, INPUTS, GraphOptions
from detr_d2.export.info import GOLDEN, INFO, ExportInfo, unpack_arrays
from detr_d2.modeling.postprocessing import (
    box_instances,
    non_maximum_suppression,
    panoptic_segmentation,
    resized_masks,
    select_by_score,
)
from detr_d2.structures import Output, PaddedBatch, Size
from detr_d2.utils.errors import UserError


class ExportedModel(nn.Module):
    """A model that predicts by running an exported file, in the runtime of its format, on the CPU.

    Called with Detectron2's inputs, one dict per image, it returns what :class:`~detr_d2.Detr` returns in evaluation.

    Args:
        path: a file that ``detr-d2 export`` wrote.
        precision: a value of MODEL.DETR.TEST.PRECISION that the runtime supports.
        nms_threshold: a value of MODEL.DETR.TEST.NMS_THRESHOLD; the file's own holds if it is lower.

    Raises:
        UserError: the file can't be read, or its runtime is missing or does not support the precision.
    """

    def __init__(self, path: str | Path, precision: str = "float32", nms_threshold: float = 1.0):
        super().__init__()
        self.path = Path(path)
        kind = format_of(path)
        check_runtime(kind)
        choice({x: x for x in PRECISIONS}, "MODEL.DETR.TEST.PRECISION", precision)
        if precision not in kind.precisions:
            raise UserError(
                f"MODEL.DETR.TEST.PRECISION is {precision}, but files {kind.suffix} run in "
                f"{' or '.join(kind.precisions)}: set that, or export another format."
            )
        for suffix in (kind.suffix, *kind.companions):
            if not self.path.with_suffix(suffix).is_file():
                raise UserError(f"{self.path.with_suffix(suffix)} does not exist: give the path of an exported model.")
        try:
            self.run_file, texts = kind.read(self.path, precision)
        except Exception as e:  # Each runtime has exceptions of its own.
            raise UserError(
                f"{path} can't be opened ({str(e).strip().splitlines()[0]}): perhaps it was cut off while it was "
                "copied, or its runtime is too old; make it again with detr-d2 export."
            ) from e
        self.info = ExportInfo.from_text(texts.get(INFO, ""), str(path))
        self.class_thresholds = tuple(self.info.class_thresholds)
        self.golden_text = texts.get(GOLDEN, "")
        self.output_names = GraphOptions(self.info.outputs, self.info.masks).output_names
        self.nms_threshold = min(nms_threshold, self.info.nms_threshold)
        self.panoptic = self.info.panoptic_rules

    @property
    def golden(self) -> dict[str, np.ndarray]:
        """The golden input and its outputs, by their names."""
        return unpack_arrays(self.golden_text)

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Run the file on its own inputs, and return its outputs by name: see :class:`ExportGraph`."""
        inputs = dict(zip(INPUTS, (images, sizes), strict=True))
        return dict(zip(self.output_names, self.run_file(inputs), strict=True))

    def pad(self, images: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Return the file's inputs for (C, height, width) images."""
        batch = PaddedBatch.from_images(images, self.info.size_divisibility, self.info.square_size)
        dtype = DTYPES[self.info.dtype]
        if batch.tensor.is_floating_point() and not dtype.is_floating_point and batch.tensor.max() > 255:
            raise UserError(
                f"{self.path} takes images of 8 bits, and these have more: export the model with --dtype float32."
            )
        tensor = batch.tensor.to(dtype)
        return tensor.contiguous().numpy(), np.array(batch.image_sizes, dtype=np.int64)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Return the results of images as :meth:`~detr_d2.Detr.forward` does in evaluation."""
        results: list[dict] = [{} for _ in batched_inputs]
        for indices in self.batches([tuple(x["image"].shape[-2:]) for x in batched_inputs]):
            images, sizes = self.pad([batched_inputs[i]["image"] for i in indices])
            outputs = {name: torch.from_numpy(x) for name, x in self.run(images, sizes).items()}
            for row, i in enumerate(indices):
                size = tuple(sizes[row].tolist())
                inputs = batched_inputs[i]
                output_size = int(inputs.get("height", size[0])), int(inputs.get("width", size[1]))
                of_image = {name: x[row] for name, x in outputs.items()}
                results[i] = self.result(of_image, size, output_size)
        return results

    def batches(self, sizes: Sequence[Size]) -> list[list[int]]:
        """Return indices of images that the file can take together."""
        if self.info.serves_padding:
            return [list(range(len(sizes)))] if sizes else []
        return [[i for i, x in enumerate(sizes) if x == size] for size in dict.fromkeys(sizes)]

    def result(self, outputs: dict[str, Tensor], size: Size, output_size: Size) -> dict:
        """Return the results of one image, as :meth:`forward` does, from its outputs by name."""
        info = self.info
        if info.outputs == "raw":
            output = Output(outputs["logits"][None, None], outputs["boxes"][None, None])
            (instances,) = box_instances(output, [output_size], info.class_loss)
        else:
            instances = _instances(outputs, size, output_size)
        instances = select_by_score(instances, info.score_threshold, self.class_thresholds)
        instances = non_maximum_suppression(instances, self.nms_threshold)
        result = {"instances": instances}
        if not info.masks:
            return result
        masks, valid_size = self.valid_masks(outputs["masks"], size)
        sizes = {"padded_size": valid_size, "image_size": size, "output_size": output_size}
        instances.pred_masks = resized_masks(masks[instances.queries], **sizes, threshold=info.mask_threshold)
        if self.panoptic is not None:
            selected = self.panoptic.select(outputs["logits"])
            result["panoptic_seg"] = panoptic_segmentation(
                selected, masks[selected.queries], **sizes, rules=self.panoptic
            )
        return result

    def valid_masks(self, masks: Tensor, size: Size) -> tuple[Tensor, Size]:
        """Return (K, h, w) mask logits of one image without those of its padding, and the pixels that they cover."""
        divisor, square = max(1, self.info.size_divisibility), self.info.square_size
        height, width = (square or -(-x // divisor) * divisor for x in size)
        stride = self.info.mask_stride
        return masks[:, : -(-height // stride), : -(-width // stride)], (height, width)


def _instances(outputs: dict[str, Tensor], size: Size, output_size: Size) -> Instances:
    scale = torch.tensor([new / old for old, new in zip(size, output_size, strict=True)]).flip(0).repeat(2)
    boxes = Boxes(outputs["boxes"] * scale)
    # The masks of detections are in their order.
    queries = torch.arange(len(outputs["scores"]))
    return Instances(
        output_size, pred_boxes=boxes, scores=outputs["scores"], pred_classes=outputs["labels"], queries=queries
    )
