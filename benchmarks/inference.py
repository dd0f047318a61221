"""From images to results: boxes, masks or panoptic segments."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detr.models.detr import PostProcess
from detr.models.segmentation import PostProcessPanoptic, PostProcessSegm
from PIL import Image
from torch import Tensor, nn

import detr_d2
from benchmarks import original
from benchmarks.contestants import Contestant
from benchmarks.inputs import random_batch
from benchmarks.models import (
    PRECISIONS,
    THEIRS,
    autocast,
    build_original,
    build_ours,
    build_transformers,
    give_segments,
    make_config,
)
from benchmarks.timing import Runner
from detr_d2.data.panoptic import things_of_model
from detr_d2.utils.errors import UserError

Outputs = dict[str, Tensor]

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.02}
"""Of scores and of boxes relative to the result, and the share of classes and pixels that may differ.

In bfloat16 a tenth of the pixels of a random panoptic model changes its class, in the original, too.
"""


class Variant(NamedTuple):
    library: str
    precision: str
    keeps_freed_memory: bool
    optimize: dict[str, Any] | None = None
    """Arguments of :func:`detr_d2.optimize_for_inference`; None: the model as it is built, under autocast."""


_MODES = {"": None, "-optimized": {"compile": False}, "-compiled": {"compile": True}}
VARIANTS = {
    f"{start}{suffix}": Variant(library, precision, keeps)
    for start, (library, keeps) in THEIRS.items()
    for suffix, precision in PRECISIONS.items()
} | {
    f"ours{mode}{suffix}": Variant("ours", precision, True, optimize)
    for mode, optimize in _MODES.items()
    for suffix, precision in PRECISIONS.items()
}
"""By name: python-detr, python-detr-bf16, …, ours, ours-bf16, ours-optimized, …, ours-compiled-bf16, …"""


@dataclass(frozen=True)
class Inference:
    """A batch of images of one size."""

    names: tuple[str, ...]
    model: str = "box"
    size: tuple[int, int] = (800, 1066)
    batch: int = 1
    device: str = "cpu"
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"inference: {self.model}, {self.size[0]} x {self.size[1]}, batch {self.batch}"

    @property
    def images(self) -> int:
        return self.batch

    def without_chance(self) -> "Inference":
        return self

    def build(self, name: str) -> Contestant:
        variant = VARIANTS[name]
        cfg = make_config(self.model, self.options, self.device)
        batch = random_batch([self.size] * self.batch, cfg.MODEL.DETR.NUM_CLASSES, 0)
        predict, outputs = _LIBRARIES[variant.library](cfg, batch, variant)
        predict = torch.inference_mode()(predict)
        tolerance = TOLERANCES[variant.precision]
        return Contestant(Runner(predict), lambda: outputs(predict()), tolerance, variant.keeps_freed_memory)


def _ours(cfg: CfgNode, batch: list[dict], variant: Variant):
    model = build_ours(cfg)
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        give_segments(cfg, model.detr, model.detr)
    precision = variant.precision
    if variant.optimize is not None:
        model = _optimizer()(model, precision=variant.precision, **variant.optimize)
        precision = "float32"

    def predict() -> list[dict]:
        with autocast(cfg, precision):
            return model(batch)

    def outputs(results: list[dict]) -> Outputs:
        if cfg.MODEL.DETR.PANOPTIC.ENABLED:
            return {"classes of pixels": torch.stack([_class_map(*x["panoptic_seg"]) for x in results])}
        found = [x["instances"] for x in results]
        sizes = torch.tensor([[x["width"], x["height"]] * 2 for x in batch])
        boxes = torch.stack([x.pred_boxes.tensor.cpu() for x in found]) / sizes[:, None]
        masks = {"masks": torch.stack([x.pred_masks for x in found])} if cfg.MODEL.MASK_ON else {}
        scores, classes = (torch.stack([x.get(name) for x in found]) for name in ("scores", "pred_classes"))
        return {"scores": scores, "classes": classes, "boxes": boxes, **masks}

    return predict, outputs


def _optimizer() -> Callable[..., nn.Module]:
    optimize = getattr(detr_d2, "optimize_for_inference", None)
    if optimize is None:
        raise UserError("This version has no optimize_for_inference: leave the optimized and compiled contestants out.")
    return optimize


def _python_detr(cfg: CfgNode, batch: list[dict], variant: Variant):
    model = build_original(cfg)
    sizes = torch.tensor([[x["height"], x["width"]] for x in batch], device=cfg.MODEL.DEVICE)
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        give_segments(cfg, model.detr, model)
    process = _postprocess(cfg, batch, sizes)

    def predict():
        with autocast(cfg, variant.precision):
            outputs = model(original.samples(batch, cfg))
        # What only training looks at need not be brought to float32.
        outputs.pop("aux_outputs", None)
        return process(original.to_float32(outputs))

    def outputs(results: list[dict]) -> Outputs:
        if cfg.MODEL.DETR.PANOPTIC.ENABLED:
            return {"classes of pixels": torch.stack([_class_map(*_decode(x)) for x in results])}
        scores, classes, boxes = (torch.stack([x[name] for x in results]) for name in ("scores", "labels", "boxes"))
        masks = {"masks": torch.stack([x["masks"][:, 0].bool() for x in results])} if cfg.MODEL.MASK_ON else {}
        return {"scores": scores, "classes": classes, "boxes": boxes / sizes[:, [1, 0, 1, 0]][:, None], **masks}

    return predict, outputs


def _postprocess(cfg: CfgNode, batch: list[dict], sizes: Tensor) -> Callable[[dict], list[dict]]:
    processed = torch.tensor([x["image"].shape[1:] for x in batch])
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        is_thing = dict(enumerate(things_of_model(cfg)))
        panoptic = PostProcessPanoptic(is_thing, cfg.MODEL.DETR.PANOPTIC.SCORE_THRESHOLD)
        return lambda outputs: panoptic(outputs, processed, sizes)
    boxes, masks = PostProcess(), PostProcessSegm(cfg.MODEL.DETR.MASK.THRESHOLD)

    def process(outputs: dict) -> list[dict]:
        results = boxes(outputs, sizes)
        return masks(results, outputs, sizes, processed) if cfg.MODEL.MASK_ON else results

    return process


def _transformers(cfg: CfgNode, batch: list[dict], variant: Variant):
    model = build_transformers(cfg)
    postprocess = PostProcess()
    sizes = torch.tensor([[x["height"], x["width"]] for x in batch], device=cfg.MODEL.DEVICE)

    def predict():
        samples = original.samples(batch, cfg)
        with autocast(cfg, variant.precision):
            found = model(pixel_values=samples.tensors, pixel_mask=(~samples.mask).long())
        return postprocess({"pred_logits": found.logits.float(), "pred_boxes": found.pred_boxes.float()}, sizes)

    def outputs(results: list[dict]) -> Outputs:
        scores, classes, boxes = (torch.stack([x[name] for x in results]) for name in ("scores", "labels", "boxes"))
        return {"scores": scores, "classes": classes, "boxes": boxes / sizes[:, [1, 0, 1, 0]][:, None]}

    return predict, outputs


_LIBRARIES = {"ours": _ours, "python-detr": _python_detr, "transformers": _transformers}


def _class_map(ids: Tensor, segments: list[dict]) -> Tensor:
    """The class of each pixel, -1 where there is none."""
    classes = torch.full_like(ids, -1)
    for segment in segments:
        classes[ids == segment["id"]] = segment["category_id"]
    return classes


def _decode(result: dict) -> tuple[Tensor, list[dict]]:
    """The ids of pixels from the original's PNG, and its segments."""
    colors = np.asarray(Image.open(io.BytesIO(result["png_string"]))).astype(np.int32)
    return torch.from_numpy(colors @ np.array([1, 256, 256**2], np.int32)), result["segments_info"]
