"""Facts that an exported file carries, so that it can be used without its checkpoint and config."""

import base64
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from detr_d2.export.graph import ExportGraph
from detr_d2.modeling import Detr
from detr_d2.modeling.postprocessing import PanopticRules
from detr_d2.utils.errors import UserError

INFO, GOLDEN = "detr_d2_info", "detr_d2_golden"
"""Names of a file's metadata and of its golden input, as text."""


@dataclass(frozen=True)
class ExportInfo:
    """Metadata of an exported model, which is written as JSON."""

    version: str  # Version of this package that exported the file.
    class_names: list[str]
    category_ids: list[int]  # Ids in result files, in the order of the classes.
    image_format: str  # Order of the channels: "RGB" or "BGR"; "L": gray.
    min_size: int  # Pixels that the shorter side of an image is resized to; 0: images are not resized.
    max_size: int  # Maximum of the longer side, which wins.
    fast_resize: bool  # False: resized with Pillow, bilinearly. True: with PyTorch.
    pixel_mean: list[float]  # Applied in the file; here for information.
    pixel_std: list[float]
    dtype: str  # Data type of the images.
    outputs: str  # "detections" or "raw".
    masks: bool
    class_loss: str  # Decides how raw logits become scores.
    num_queries: int
    score_threshold: float  # Detections with a lower score are left out by the package's own code.
    mask_threshold: float  # A pixel belongs to a mask if its probability is higher.
    mask_stride: int  # Pixels per value of the mask logits.
    serves_padding: bool  # False: the images of a batch must have one size.
    size_divisibility: int  # Height and width of the tensor must be a multiple of it; 0: any.
    square_size: int  # Height and width of the tensor; 0: any.
    panoptic: dict[str, Any] | None = None  # Arguments of PanopticRules.
    precision: str = "float32"  # Or "int8": of backbone and encoder.
    quantization: dict[str, Any] | None = None  # Number of calibration images, AP before and after, of an int8 file.
    class_thresholds: Sequence[float] = ()  # As the score threshold, one for each class; empty: none.
    nms_threshold: float = 1.0  # IoU of class-wise NMS by the package's own code; 1: none.

    @classmethod
    def describe(cls, model: Detr, graph: ExportGraph, cfg: CfgNode, names: list[str], ids: list[int]) -> "ExportInfo":
        """Describe the export of ``model``, with the resize rule of a config."""
        masked, backbone = model.detr.backbone[0], model.detr.backbone[0].backbone
        constraints = backbone.padding_constraints
        return cls(
            version=package_version(),
            class_names=list(names),
            category_ids=list(ids),
            image_format=cfg.INPUT.FORMAT,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            fast_resize=cfg.INPUT.FAST_RESIZE_TEST,
            pixel_mean=model.pixel_mean.flatten().tolist(),
            pixel_std=model.pixel_std.flatten().tolist(),
            dtype=graph.options.dtype,
            outputs=graph.options.outputs,
            masks=graph.options.masks,
            class_loss=model.class_loss,
            num_queries=model.detr.num_queries,
            score_threshold=model.score_threshold,
            mask_threshold=model.mask_threshold,
            mask_stride=min(masked.strides.values()),
            serves_padding=graph.serves_padding,
            size_divisibility=constraints.get("size_divisibility", backbone.size_divisibility),
            square_size=constraints.get("square_size", 0),
            panoptic=None if model.panoptic is None else asdict(model.panoptic),
            class_thresholds=model.class_thresholds,
            nms_threshold=model.nms_threshold,
        )

    @property
    def file_channels(self) -> int:
        """Number of bands that image files must have; 3: any, see :func:`~detr_d2.config.file_channels`."""
        return 3 if self.image_format == "L" else len(self.pixel_mean)

    @property
    def panoptic_rules(self) -> PanopticRules | None:
        """Rules by which queries become segments; None without them, or where the file has no raw outputs."""
        usable = self.panoptic is not None and self.outputs == "raw" and self.masks
        return PanopticRules(**self.panoptic) if usable else None

    def to_text(self) -> str:
        """Return the metadata as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str, source: str) -> "ExportInfo":
        """Read the metadata of the file ``source``; if it is missing or of another version, raise a UserError."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as e:
            raise UserError(
                f"{source} has no metadata ({INFO}) of this version of detr_d2 ({e}): make it with detr-d2 export."
            ) from e


def package_version() -> str:
    """Return the version of this package."""
    return importlib.import_module("detr_d2").__version__


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return arrays as text: a compressed .npz file in base64."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def unpack_arrays(text: str) -> dict[str, np.ndarray]:
    """Return the arrays of :func:`pack_arrays`."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as file:
        return dict(file)
