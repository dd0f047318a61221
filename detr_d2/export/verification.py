"""Comparison of an exported file with the model it was made from, and with its golden outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import pairwise_iou
from torch import Tensor
from torch.nn import functional as F

from detr_d2.export.exported_model import ExportedModel
from detr_d2.export.graph import INPUTS
from detr_d2.modeling import Detr
from detr_d2.modeling.postprocessing import box_instances
from detr_d2.structures import Size
from detr_d2.utils.errors import UserError

TOLERANCE = 1e-4
"""Maximum difference of an export in float32: of scores, of logits relative to the largest one if that exceeds 1, and
of boxes relative to the image."""

INT8_TOLERANCE = 0.1
"""Maximum share of the :func:`unmatched` detections of a quantized file."""

# What a confident detection and its counterpart are, see :func:`unmatched`.
_CONFIDENCE, _MIN_IOU, _SCORE_TOLERANCE = 0.5, 0.75, 0.2

GOLDEN_SIZES: tuple[Size, ...] = ((96, 128), (70, 91))
"""Height and width of the images of the golden input."""

BATCHES: tuple[tuple[Size, ...], ...] = (
    ((96, 128),),
    ((75, 101),),
    ((64, 160), (64, 160)),
    ((120, 90), (77, 133)),
    ((64, 64), (97, 81), (50, 141), (128, 65), (97, 81)),
)
"""Sizes of the images of each batch that an export is verified with: alone, of one size, and padded."""


@dataclass
class Verification:
    """Largest differences by output, one row for each batch; of int8, the share of :func:`unmatched` detections."""

    rows: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    tolerance: float = TOLERANCE
    is_share: bool = False

    def add(self, batch: str, differences: dict[str, float]) -> None:
        """Add a batch, described in words."""
        self.rows.append((batch, differences))

    @property
    def largest(self) -> float:
        """Largest difference of all, or share."""
        return max(max(x.values()) for _, x in self.rows)

    @property
    def summary(self) -> str:
        """The largest difference in words."""
        if self.is_share:
            return f"{self.largest:.1%} of the confident detections have no counterpart in float32"
        return f"the largest difference is {self.largest:.1e}"

    def check(self, path: str | Path) -> None:
        """Raise a UserError that names the worst batch if a difference exceeds the tolerance or is not a number."""
        for batch, differences in self.rows:
            for name, x in differences.items():
                if not x <= self.tolerance:
                    found = (
                        f"{x:.0%} of the confident {name} in {batch} have no counterpart"
                        if self.is_share
                        else f"{name} of {batch} differ by {x:.2g}"
                    )
                    limit = f"{self.tolerance:.0%}" if self.is_share else f"{self.tolerance:g}"
                    raise UserError(
                        f"{path} does not agree with the model: {found}, more than {limit}. It is not usable; try "
                        "another format."
                    )


def verify(exported: ExportedModel, model: Detr) -> Verification:
    """Compare a file with its model on several sizes and batches, where the model computes each image alone."""
    result = Verification()
    for number, sizes in enumerate(BATCHES):
        images = make_images(sizes, seed=number, channels=len(model.pixel_mean))
        for some in exported.batches(sizes):
            chosen = [images[i] for i in some]
            found = exported.run(*exported.pad(chosen))
            expected = [expected_outputs(model, x, exported) for x in chosen]
            result.add(
                _describe([sizes[i] for i in some]), compare(found, expected, [sizes[i] for i in some], exported)
            )
    return result


def verify_golden(path: str | Path, precision: str = "float32") -> Verification:
    """Compare a file with the outputs that it carries, in its runtime; its checkpoint is not needed."""
    exported = ExportedModel(path, precision)
    if not exported.golden_text:
        raise UserError(f"{path} has no golden input: make it again with detr-d2 export.")
    if exported.info.precision == "int8":
        return _verify_quantized(exported)
    golden = exported.golden
    images, sizes = (golden[name] for name in INPUTS)
    expected = [{name: torch.from_numpy(golden[name][i]) for name in exported.output_names} for i in range(len(images))]
    pixels = [tuple(x) for x in sizes.tolist()]
    for x, size in zip(expected, pixels, strict=True):
        if "masks" in x:
            x["masks"], _ = exported.valid_masks(x["masks"], size)
    result = Verification()
    result.add("the golden input", compare(exported.run(images, sizes), expected, pixels, exported))
    return result


def _verify_quantized(exported: ExportedModel) -> Verification:
    """Compare the detections in the golden images, since 8 bits round differently on other processors."""
    golden = exported.golden
    images, sizes = (golden[name] for name in INPUTS)
    pixels = [tuple(x) for x in sizes.tolist()]
    found, expected = (
        [
            exported.result({name: torch.from_numpy(outputs[name][i]) for name in exported.output_names}, size, size)
            for i, size in enumerate(pixels)
        ]
        for outputs in (exported.run(images, sizes), golden)
    )
    result = Verification(tolerance=INT8_TOLERANCE, is_share=True)
    result.add("the golden input", {"detections": unmatched(found, expected)})
    return result


def unmatched(found: Sequence[Mapping], expected: Sequence[Mapping]) -> float:
    """Return the share of the expected confident detections that have no counterpart among the found ones.

    Confident is a score of at least half the highest in the image. A counterpart has the same class, a box with an
    intersection over union of at least 0.75, and a score that differs by at most 0.2.

    Args:
        found, expected: results of each image, with ``instances``.
    """
    counterparts = [torch.zeros(0)]
    for a, b in zip(found, expected, strict=True):
        a, b = a["instances"], b["instances"]
        if not len(b):
            continue
        b = b[b.scores >= _CONFIDENCE * b.scores.max()]
        same = b.pred_classes[:, None] == a.pred_classes
        close = (b.scores[:, None] - a.scores).abs() <= _SCORE_TOLERANCE
        overlap = pairwise_iou(b.pred_boxes, a.pred_boxes) >= _MIN_IOU
        counterparts.append((same & close & overlap).any(1).float())
    shares = torch.cat(counterparts)
    return 1 - shares.mean().item() if len(shares) else 0.0


def make_images(sizes: Sequence[Size], seed: int, channels: int = 3) -> list[Tensor]:
    """Return (channels, height, width) uint8 images of smooth random colors, which compress well."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for size in sizes:
        coarse = torch.rand(1, channels, 6, 8, generator=generator) * 255
        images.append(F.interpolate(coarse, size=size, mode="bilinear")[0].to(torch.uint8))
    return images


@torch.no_grad()
def expected_outputs(model: Detr, image: Tensor, exported: ExportedModel) -> dict[str, Tensor]:
    """Return the outputs of a file for one image, computed by the model itself without padding."""
    info = exported.info
    output = model.detr(model.preprocess_image([{"image": image}]), all_layers=False)
    queries = torch.arange(model.detr.num_queries)
    if info.outputs == "raw":
        results = {"logits": output.logits[-1, 0], "boxes": output.boxes[-1, 0]}
    else:
        (instances,) = box_instances(output, [tuple(image.shape[-2:])], model.class_loss)
        best = instances.scores.argsort(descending=True)
        boxes, scores, labels, queries = (
            x[best] for x in (instances.pred_boxes.tensor, instances.scores, instances.pred_classes, instances.queries)
        )
        results = {"boxes": boxes, "scores": scores, "labels": labels}
    if info.masks:
        (results["masks"],) = model.detr.masks(output.mask_inputs, [queries])
    return results


def compare(
    found: Mapping[str, np.ndarray],
    expected: Sequence[Mapping[str, Tensor]],
    sizes: Sequence[Size],
    exported: ExportedModel,
) -> dict[str, float]:
    """Return the largest difference of each output over the images of a batch.

    Args:
        found: the file's outputs.
        expected: those expected of each image, its masks without padding; at least as many detections as ``found``.
        sizes: height and width of each image, in pixels.
        exported: the file.
    """
    differences: dict[str, float] = {}
    for i, (of_image, size) in enumerate(zip(expected, sizes, strict=True)):
        outputs = {name: torch.from_numpy(x[i]) for name, x in found.items()}
        if "masks" in outputs:
            outputs["masks"], _ = exported.valid_masks(outputs["masks"], size)
        of_image = dict(of_image)
        if exported.info.outputs == "detections":
            scale = torch.tensor([size[1], size[0]] * 2)
            outputs["boxes"], of_image["boxes"] = outputs["boxes"] / scale, of_image["boxes"] / scale
            matches = _match(outputs, of_image)
            of_image = {name: x[matches] for name, x in of_image.items()}
        for name, x in outputs.items():
            unit = of_image[name].abs().max().clamp(min=1) if name in ("logits", "masks") else 1
            difference = ((x.float() - of_image[name].float()).abs().max() / unit).item()
            differences[name] = max(differences.get(name, 0.0), difference)
    return differences


def _match(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """Return the index of the expected detection that is closest to each found one: nearly equal scores may swap."""
    by_label = (found["labels"][:, None] != expected["labels"]).float()
    by_score = (found["scores"][:, None] - expected["scores"]).abs()
    by_box = (found["boxes"][:, None] - expected["boxes"]).abs().amax(-1)
    return (by_label + by_score + by_box).argmin(1)


def _describe(sizes: Sequence[Size]) -> str:
    unique = list(dict.fromkeys(sizes))
    words = ", ".join(f"{height} x {width}" for height, width in unique)
    padded = ", padded" if len(unique) > 1 else ""
    return f"{len(sizes)} image{'s' if len(sizes) > 1 else ''} of {words}{padded}"
