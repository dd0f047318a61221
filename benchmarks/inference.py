"""Benchmark of inference: from images to boxes, masks or panoptic segments."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detr.models.detr import PostProcess
from detr.models.segmentation import PostProcessPanoptic, PostProcessSegm
from PIL import Image
from torch import Tensor

from benchmarks import models, ours
from benchmarks.comparison import Case, Implementation
from benchmarks.measuring import Runner
from detr_d2 import optimize_for_inference
from detr_d2.data.panoptic import things_of_model

TOLERANCES = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.02, "int8": 0.3}
"""Tolerances for scores, boxes relative to the result, and the share of classes and pixels that differ.

In bfloat16 a tenth of the pixels of a random panoptic model changes its class, in the original, too.
"""


class Variant(NamedTuple):
    """Implementation by its name."""

    library: str
    precision: str
    keeps_freed_memory: bool
    compiled: bool | None = None
    """Argument of :func:`detr_d2.optimize_for_inference`; None: the model as it is built, under autocast."""
    backend: str = "pytorch"
    """Value of ``MODEL.DETR.TEST.BACKEND``: what runs the model, exported for all sizes."""


_STARTS = {
    **{start: (*settings, None) for start, settings in models.REFERENCES.items()},
    "ours": ("ours", True, None),
    "ours-optimized": ("ours", True, False),
    "ours-compiled": ("ours", True, True),
}
VARIANTS = {
    f"{start}{suffix}": Variant(library, precision, keeps, compiled)
    for start, (library, keeps, compiled) in _STARTS.items()
    for suffix, precision in models.PRECISIONS.items()
} | {name: Variant("ours", precision, True, backend=backend) for name, (backend, precision) in ours.RUNTIMES.items()}
"""Variants by name: python-detr, python-detr-bf16, …, ours, ours-bf16, ours-optimized, …, ours-compiled-bf16, …, and
those of :data:`ours.RUNTIMES`."""


@dataclass(frozen=True, kw_only=True)
class Inference(Case):
    """A batch of images of one size."""

    model: str = "box"
    size: tuple[int, int] = (800, 1066)
    batch: int = 1
    device: str = "cpu"
    options: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"inference: {self.model}, {self.size[0]} x {self.size[1]}, batch {self.batch}"

    def build(self, name: str) -> Implementation:
        variant = VARIANTS[name]
        cfg = ours.make_config(self.model, self.options, self.device)
        batch = models.random_batch([self.size] * self.batch, cfg.MODEL.DETR.NUM_CLASSES, 0)
        predict, outputs = _LIBRARIES[variant.library](cfg, batch, variant)
        predict = torch.inference_mode()(predict)
        tolerance = TOLERANCES[variant.precision]
        return Implementation(Runner(predict), lambda: outputs(predict()), tolerance, variant.keeps_freed_memory)


def _ours(cfg: CfgNode, batch: list[dict], variant: Variant):
    model = ours.build(cfg, models.build_original(cfg).state_dict())
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        models.make_segments(cfg, model.detr, model.detr)
    precision = variant.precision
    if variant.backend != "pytorch":
        model, precision = ours.export(cfg, model, variant.backend, precision, [x["image"] for x in batch]), "float32"
    if variant.compiled is not None:
        model = optimize_for_inference(model, precision=precision, compile=variant.compiled)
        precision = "float32"

    def predict() -> list[dict]:
        with models.autocast(cfg, precision):
            return model(batch)

    def outputs(results: list[dict]) -> dict[str, Tensor]:
        if cfg.MODEL.DETR.PANOPTIC.ENABLED:
            return _class_maps(x["panoptic_seg"] for x in results)
        instances = [x["instances"] for x in results]
        sizes = torch.tensor([[x["width"], x["height"]] * 2 for x in batch])
        boxes = torch.stack([x.pred_boxes.tensor.cpu() for x in instances]) / sizes[:, None]
        masks = {"masks": torch.stack([x.pred_masks for x in instances])} if cfg.MODEL.MASK_ON else {}
        scores, classes = (torch.stack([x.get(name) for x in instances]) for name in ("scores", "pred_classes"))
        return {"scores": scores, "classes": classes, "boxes": boxes, **masks}

    return predict, outputs


def _python_detr(cfg: CfgNode, batch: list[dict], variant: Variant):
    model = models.build_original(cfg)
    sizes = _result_sizes(cfg, batch)
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        models.make_segments(cfg, model.detr, model)
    process = _postprocess(cfg, batch, sizes)

    def predict() -> list[dict]:
        with models.autocast(cfg, variant.precision):
            outputs = model(models.original_samples(batch, cfg))
        # Only training reads them: converting them to float32 would cost time.
        outputs.pop("aux_outputs", None)
        return process(models.to_float32(outputs))

    def outputs(results: list[dict]) -> dict[str, Tensor]:
        if cfg.MODEL.DETR.PANOPTIC.ENABLED:
            return _class_maps(map(_decode, results))
        masks = {"masks": torch.stack([x["masks"][:, 0].bool() for x in results])} if cfg.MODEL.MASK_ON else {}
        return {**_relative(results, sizes), **masks}

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
    model = models.build_transformers(cfg)
    postprocess = PostProcess()
    sizes = _result_sizes(cfg, batch)

    def predict() -> list[dict]:
        samples = models.original_samples(batch, cfg)
        with models.autocast(cfg, variant.precision):
            outputs = model(pixel_values=samples.tensors, pixel_mask=(~samples.mask).long())
        return postprocess({"pred_logits": outputs.logits.float(), "pred_boxes": outputs.pred_boxes.float()}, sizes)

    return predict, lambda results: _relative(results, sizes)


_LIBRARIES = {"ours": _ours, "python-detr": _python_detr, "transformers": _transformers}


def _result_sizes(cfg: CfgNode, batch: list[dict]) -> Tensor:
    return torch.tensor([[x["height"], x["width"]] for x in batch], device=cfg.MODEL.DEVICE)


def _relative(results: list[dict], sizes: Tensor) -> dict[str, Tensor]:
    """Stack the original's results, with boxes relative to the image."""
    scores, classes, boxes = (torch.stack([x[name] for x in results]) for name in ("scores", "labels", "boxes"))
    return {"scores": scores, "classes": classes, "boxes": boxes / sizes[:, [1, 0, 1, 0]][:, None]}


def _class_maps(results) -> dict[str, Tensor]:
    """Return the class of each pixel, -1 where there is none, from pairs of a map of ids and segments."""
    maps = []
    for ids, segments in results:
        maps.append(torch.full_like(ids, -1))
        for segment in segments:
            maps[-1][ids == segment["id"]] = segment["category_id"]
    return {"classes of pixels": torch.stack(maps)}


def _decode(result: dict) -> tuple[Tensor, list[dict]]:
    """Return the ids of pixels from the original's PNG, and its segments."""
    colors = np.asarray(Image.open(io.BytesIO(result["png_string"]))).astype(np.int32)
    return torch.from_numpy(colors @ np.array([1, 256, 256**2], np.int32)), result["segments_info"]
