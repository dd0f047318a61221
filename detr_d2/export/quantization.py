"""Post-training quantization of exported files: backbone and encoder compute with 8-bit integers.

Weights are quantized per output channel, activations per tensor, with ranges measured on calibration images. Decoder,
reference points, heads and masks stay in floating point: 8 bits are too few for boxes, and little time is spent there.
"""

import ast
import importlib
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.data import DetrDatasetMapper
from detr_d2.export.exported_model import ExportedModel
from detr_d2.export.formats import Format, check_runtime, openvino_core, quiet
from detr_d2.export.graph import INPUTS
from detr_d2.export.info import GOLDEN, INFO, pack_arrays
from detr_d2.export.verification import GOLDEN_SIZES, Verification, unmatched, verify_golden
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

QUANTIZED = ("network.backbone.0", "network.input_proj", "network.transformer.encoder")
"""Modules of :class:`ExportGraph` whose convolutions and linear layers are quantized."""

# Calibration images whose detections are compared with those of the float32 file.
_COMPARED = 20

Inputs = dict[str, np.ndarray]
"""Inputs of an exported file by name."""


class CalibrationImages(Sequence[Tensor]):
    """Random images of ``DATASETS.TRAIN``, resized as in inference, read when they are needed.

    Args:
        cfg: config with the dataset and the resize rule.
        count: number of images; all, if the dataset has fewer.
    """

    def __init__(self, cfg: CfgNode, count: int):
        if not cfg.DATASETS.TRAIN:
            raise UserError("int8 is calibrated on images, but DATASETS.TRAIN is empty: name a dataset.")
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False, check_consistency=False)
        self.records = random.Random(0).sample(list(records), min(count, len(records)))
        self.mapper = DetrDatasetMapper(cfg, is_train=False)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        return self.mapper(self.records[index])["image"]


@dataclass(frozen=True)
class Quantization:
    """How an export is quantized, and what it may cost."""

    images: Sequence[Tensor]
    """(C, H, W) images to calibrate on, as the model gets them."""
    evaluate: Callable[[nn.Module], float] | None = None
    """Function that returns the box AP of an exported model, in percent. None: AP is not compared."""
    max_ap_drop: float = 0.5
    """Maximum loss of AP, in points."""
    force: bool = False
    """True to write the file whatever it loses, with a warning."""


class _Quantizer(NamedTuple):
    quantize: Callable[[Path, Path, Sequence[Inputs]], None]
    """Writes the quantized file (second) of a float32 file (first), calibrated on inputs."""
    set_texts: Callable[[Path, Mapping[str, str]], None]
    """Replaces the texts of a file."""
    packages: tuple[str, ...] = ()
    extra: str = ""


def check_quantizable(kind: Format) -> None:
    """Raise a UserError if files of a format can't be quantized, or a package that does it is missing."""
    if kind.suffix not in _QUANTIZERS:
        raise UserError(f"int8 is for files {' and '.join(_QUANTIZERS)}, not {kind.suffix}: choose another format.")
    quantizer = _QUANTIZERS[kind.suffix]
    check_runtime(replace(kind, packages=quantizer.packages, extra=quantizer.extra))


def quantize(exported: ExportedModel, path: Path, options: Quantization) -> Verification:
    """Write the quantized file of an export in float32 to ``path``, and compare it with the export.

    Returns:
        The shares of detections that differ.

    Raises:
        UserError: there are no images; or the quantized file loses more AP than allowed, or many detections.
    """
    if not len(options.images):
        raise UserError("int8 is calibrated on images, but there are none: add images to DATASETS.TRAIN.")
    quantizer = _QUANTIZERS[path.suffix]
    quantizer.quantize(exported.path, path, _CalibrationInputs(exported, options.images))
    quantized = ExportedModel(path)
    facts: dict[str, Any] = {"calibration_images": len(options.images)}
    if options.evaluate is not None:
        facts |= {name: options.evaluate(model) for name, model in (("ap_float32", exported), ("ap_int8", quantized))}
        _check_ap(path, facts["ap_float32"], facts["ap_int8"], options)
    info = replace(exported.info, precision="int8", quantization=facts)
    quantizer.set_texts(path, {INFO: info.to_text(), GOLDEN: pack_arrays(_golden(quantized, options.images))})
    verification = verify_golden(path)
    verification.add(*_compare(exported, quantized, options.images))
    if not options.force:
        verification.check(path)
    return verification


def _check_ap(path: Path, before: float, after: float, options: Quantization) -> None:
    message = f"Box AP is {before:.2f} in float32 and {after:.2f} in int8"
    if before - after <= options.max_ap_drop:
        logger.info(f"{message}.")
        return
    message = f"{message}, which loses more than the {options.max_ap_drop:g} points of --max-ap-drop"
    if not options.force:
        raise UserError(f"{message}: {path.name} is not written. Calibrate on more images, or add --force.")
    logger.warning(f"{message}.")


def _compare(exported: ExportedModel, quantized: ExportedModel, images: Sequence[Tensor]) -> tuple[str, dict]:
    count = min(_COMPARED, len(images))
    found, expected = ([model([{"image": images[i]}])[0] for i in range(count)] for model in (quantized, exported))
    return f"{count} calibration images", {"detections": unmatched(found, expected)}


def _golden(quantized: ExportedModel, images: Sequence[Tensor]) -> Inputs:
    """Return small real images, on which detections are confident, with the quantized file's own outputs."""
    sizes = GOLDEN_SIZES if quantized.info.serves_padding else GOLDEN_SIZES[:1] * 2
    small = [
        F.interpolate(images[i % len(images)][None].float(), [2 * x for x in size], mode="bilinear", antialias=True)[0]
        for i, size in enumerate(sizes)
    ]
    inputs = dict(zip(INPUTS, quantized.pad([x.round().to(images[0].dtype) for x in small]), strict=True))
    return {**inputs, **quantized.run(**inputs)}


class _CalibrationInputs(Sequence[Inputs]):
    """Inputs of a file for calibration images, one image each."""

    def __init__(self, exported: ExportedModel, images: Sequence[Tensor]):
        self.exported = exported
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Inputs:
        return dict(zip(INPUTS, self.exported.pad([self.images[index]]), strict=True))


def _in_scope(module: str) -> bool:
    return any(module == scope or module.startswith(f"{scope}.") for scope in QUANTIZED)


def _quantize_openvino(source: Path, target: Path, inputs: Sequence[Inputs]) -> None:
    openvino, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
    nncf.set_log_level(logging.ERROR)
    model = openvino_core().read_model(str(source))
    # Operations are called __module.network.backbone.0.backbone.stem.conv1/aten::_convolution/Convolution.
    modules = {x: x.get_friendly_name().partition("/")[0].removeprefix("__module.") for x in model.get_ordered_ops()}
    others = [x.get_friendly_name() for x, module in modules.items() if not _in_scope(module) or _is_of_mask(x)]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(inputs),
        subset_size=len(inputs),
        # Activations are asymmetric.
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=others, validate=False),
    )
    openvino.save_model(quantized, str(target), compress_to_fp16=False)


def _is_of_mask(operation: Any) -> bool:
    """Check whether an OpenVINO operation convolves a padding mask, by a single number."""
    return operation.get_type_name() == "Convolution" and list(operation.input(1).get_partial_shape()) == [1, 1, 1, 1]


def _set_texts_openvino(path: Path, texts: Mapping[str, str]) -> None:
    core = importlib.import_module("openvino").Core()
    # The weights would be read from the file while it is overwritten.
    core.set_property({"ENABLE_MMAP": False})
    model = core.read_model(str(path))
    for name, text in texts.items():
        model.set_rt_info(text, name)
    importlib.import_module("openvino").save_model(model, str(path), compress_to_fp16=False)


def _quantize_onnx(source: Path, target: Path, inputs: Sequence[Inputs]) -> None:
    onnx, runtime = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    tools = importlib.import_module("onnxruntime.quantization")
    chosen = {x.name for x in onnx.load(str(source)).graph.node if any(map(_in_scope, _scopes(x)))}
    # Weights that are computed from others, such as transposed ones, become constants.
    folded = target.with_suffix(".folded.onnx")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    runtime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(folded)).graph
    # Padding masks are convolved by a single number.
    constants = {x.name for x in graph.initializer if math.prod(x.dims) > 1}
    layers = [x for x in graph.node if x.op_type in ("Conv", "MatMul", "Gemm") and x.input[1] in constants]
    with quiet():
        tools.quantize_static(
            str(folded),
            str(target),
            _reader(tools.CalibrationDataReader, inputs),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_quantize=[x.name for x in layers if x.name in chosen],
        )
    folded.unlink()


def _scopes(node: Any) -> list[str]:
    """Return the modules in which PyTorch's exporter found a node of an ONNX graph, from the outside in."""
    texts = [x.value for x in node.metadata_props if x.key == "pkg.torch.onnx.name_scopes"]
    return ast.literal_eval(texts[0]) if texts else []


def _reader(base: type, inputs: Sequence[Inputs]) -> Any:
    """Return a reader of onnxruntime, of the class ``base``, over calibration inputs."""
    iterator: Iterator[Inputs] = iter(inputs)
    return type("Reader", (base,), {"get_next": lambda self: next(iterator, None)})()


def _set_texts_onnx(path: Path, texts: Mapping[str, str]) -> None:
    onnx = importlib.import_module("onnx")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(texts))
    onnx.save(model, str(path))


_QUANTIZERS = {
    ".onnx": _Quantizer(_quantize_onnx, _set_texts_onnx, ("onnxruntime.quantization",), "onnx"),
    ".xml": _Quantizer(_quantize_openvino, _set_texts_openvino, ("nncf",), "openvino-int8"),
}
