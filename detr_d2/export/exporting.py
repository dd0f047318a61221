"""Export of a model: trace, write, run, compare, and only then move the file to its place."""

import copy
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from detr_d2.config import choice, file_channels
from detr_d2.export.exported_model import ExportedModel
from detr_d2.export.formats import FORMATS, Format, Program, check_runtime, format_of
from detr_d2.export.graph import DTYPES, INPUTS, ExportGraph, GraphOptions
from detr_d2.export.info import GOLDEN, INFO, ExportInfo, pack_arrays
from detr_d2.export.quantization import Quantization, check_quantizable, quantize
from detr_d2.export.verification import GOLDEN_SIZES, Verification, make_images, verify
from detr_d2.inference import optimize_for_inference
from detr_d2.modeling import Detr
from detr_d2.structures import PaddedBatch
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def export_model(
    model: Detr,
    output: str | Path,
    *,
    cfg: CfgNode,
    class_names: Sequence[str],
    category_ids: Sequence[int] | None = None,
    options: GraphOptions | None = None,
    format: str | None = None,
    overwrite: bool = False,
    quantization: Quantization | None = None,
) -> Verification:
    """Write a file that predicts without this package, if it predicts what the model does.

    Args:
        model: a trained model, which is not changed.
        output: file to write. OpenVINO's format has a second one beside it, ``.bin``.
        cfg: config whose ``INPUT`` tells how images are resized.
        class_names: one name for each foreground class.
        category_ids: ids of the classes in result files. None: counted from 1.
        options: inputs and outputs. None: the defaults, with masks if the model has them, and raw outputs of a
            panoptic model; images in float32 if files are not RGB.
        format: key of :data:`FORMATS`. None: the one with the suffix of ``output``.
        overwrite: True to replace a file.
        quantization: how to quantize to 8 bits, "onnx" and "openvino" only. None: the file computes in float32.

    Returns:
        The differences from the model; of a quantized file those from its float32 export, which agrees with the model.

    Raises:
        UserError: the runtime is missing, ``output`` can't be written, or the file does not agree with the model.
    """
    output = Path(os.path.abspath(output))
    kind = _check_output(output, format, overwrite)
    if quantization is not None:
        check_quantizable(kind)
    if options is None:
        outputs = "raw" if model.panoptic else "detections"
        options = GraphOptions(outputs, masks=model.has_masks, dtype=default_dtype(cfg))
    model = _on_cpu(model)
    graph = ExportGraph(model, options).eval()
    ids = range(1, len(class_names) + 1) if category_ids is None else category_ids
    info = ExportInfo.describe(model, graph, cfg, list(class_names), list(ids))
    program = Program(graph, *_golden_inputs(info))
    texts = {INFO: info.to_text(), GOLDEN: pack_arrays(_golden(program))}
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        written = Path(folder) / output.name
        try:
            kind.write(program, written, texts)
            verification = verify(ExportedModel(written), model)
            verification.check(output)
            if quantization is not None:
                quantized = written.with_name(f"int8{kind.suffix}")
                verification = quantize(ExportedModel(written), quantized, quantization)
                written = quantized
        except UserError:
            raise
        except Exception as e:  # Exporters and runtimes have exceptions of their own.
            reason = " ".join([type(e).__name__, *str(e).strip().splitlines()[:1]])
            raise UserError(
                f"The model can't be exported as {kind.suffix} ({reason}): try another format, or another backbone."
            ) from e
        for suffix in (*kind.companions, kind.suffix):
            os.replace(written.with_suffix(suffix), output.with_suffix(suffix))
    logger.info(f"Exported to {output}: {verification.summary}.")
    return verification


def default_dtype(cfg: CfgNode) -> str:
    """Return the data type of the images of an export, a key of :data:`~detr_d2.export.graph.DTYPES`."""
    return "uint8" if file_channels(cfg) == 3 else "float32"


def _check_output(output: Path, format: str | None, overwrite: bool) -> Format:
    """Return the format to write; if it or the file can't be written, raise a UserError."""
    kind = format_of(output) if format is None else choice(FORMATS, "The format", format)
    if output.suffix != kind.suffix:
        raise UserError(f"{output} is written in the format {format}: let its name end with {kind.suffix}.")
    check_runtime(kind)
    if not output.parent.is_dir():
        raise UserError(f"The folder {output.parent} does not exist: make it, or name another.")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already: name another file, or add --force.")
    return kind


def _on_cpu(model: Detr) -> Detr:
    """Return the model optimized for the CPU in float32, which is what is exported and compared with."""
    if model.device.type != "cpu":
        model = copy.deepcopy(model).to("cpu")
    if not hasattr(model, "optimized"):
        model = optimize_for_inference(model)
    if any(x.dtype != torch.float32 for x in model.parameters()):
        raise UserError("The model was cast to a lower precision: export it in float32 (MODEL.DETR.TEST.PRECISION).")
    return model


def _golden_inputs(info: ExportInfo) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = GOLDEN_SIZES if info.serves_padding else GOLDEN_SIZES[:1] * 2
    images = make_images(sizes, seed=len(sizes), channels=len(info.pixel_mean))
    batch = PaddedBatch.from_images(images, info.size_divisibility, info.square_size)
    return batch.tensor.to(DTYPES[info.dtype]).contiguous(), torch.tensor(batch.image_sizes)


@torch.no_grad()
def _golden(program: Program) -> dict[str, np.ndarray]:
    names = (*INPUTS, *program.graph.options.output_names)
    tensors = (*program.inputs, *program.graph(*program.inputs))
    return {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
