"""Parameters, FLOPs and activations of a model, by module and image size."""

import math
from collections import Counter
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis, parameter_count
from fvcore.nn.jit_handles import generic_activation_jit, get_shape
from tabulate import tabulate
from torch import nn

from detr_d2.config import check_model_config
from detr_d2.data.augmentation import DetrResizeShortestEdge
from detr_d2.utils.errors import UserError

ATTENTION = "aten::scaled_dot_product_attention"


def analyze(cfg: CfgNode, sizes: Counter[tuple[int, int]], activations: bool = True) -> dict[str, Any]:
    """Return statistics by module ("" is the whole model).

    Args:
        cfg: describes the model; weights and device are changed.
        sizes: (height, width), and how many images have them.

    Returns:
        ``parameters``, ``trainable_parameters`` and, for every size, ``flops`` and ``activations``.
    """
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.merge_from_list(["MODEL.TIMM.PRETRAINED", False, "MODEL.TIMM.WEIGHTS", ""])
    check_model_config(cfg)
    model = build_model(cfg).eval()
    return {
        "parameters": dict(parameter_count(model)),
        "trainable_parameters": sum(x.numel() for x in model.parameters() if x.requires_grad),
        "sizes": [
            {"size": list(size), "images": images, **count(model, size, activations)}
            for size, images in sorted(sizes.items())
        ],
    }


def dataset_sizes(cfg: CfgNode, dataset: str, num_images: int) -> Counter[tuple[int, int]]:
    """Return how often each image size occurs, after the resizing of an evaluation."""
    if dataset not in DatasetCatalog:
        raise UserError(f"--dataset {dataset} is not registered: choose one of {', '.join(DatasetCatalog)}.")
    try:
        records = DatasetCatalog.get(dataset)[:num_images]
    except FileNotFoundError as e:
        raise UserError(f"--dataset {dataset}: {e}. DETECTRON2_DATASETS names the folder of datasets.") from e
    limits = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return Counter(DetrResizeShortestEdge.get_output_shape(x["height"], x["width"], *limits) for x in records)


def count(model: nn.Module, size: tuple[int, int], activations: bool = True) -> dict[str, Any]:
    """Return FLOPs by module and by operator, and activations by module, of one image of ``size`` (height, width)."""
    inputs = [{"image": torch.zeros(3, *size, dtype=torch.uint8)}]
    with torch.no_grad():
        flops = FlopCountAnalysis(model, inputs).set_op_handle(ATTENTION, attention_flops)
        found = {
            "flops": strip(_quiet(flops).by_module()),
            "operators": dict(flops.by_operator()),
            "not_counted": dict(flops.unsupported_ops()),
        }
        if activations:
            adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
            counter = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
            counter.set_op_handle(ATTENTION, generic_activation_jit(ATTENTION))
            found["activations"] = strip(_quiet(counter).by_module())
    return found


def attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count the multiply-adds of softmax(Q K^T) V: Q (..., N, C), K (..., S, C), V (..., S, D)."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    flops = math.prod(query) * key[-2] + math.prod(query[:-1]) * value[-2] * value[-1]
    return Counter({"attention": flops})


def strip(statistics: Counter[str]) -> dict[str, int]:
    """Remove the module that tracing wraps around the model."""
    return {name.removeprefix("model").removeprefix("."): int(x) for name, x in statistics.items() if name}


def format_report(report: dict[str, Any], depth: int) -> str:
    """Return a table for every size, or one of the mean over a dataset's sizes; modules down to ``depth``."""
    parameters = report["parameters"]
    total = f"{parameters['']:,} parameters, {report['trainable_parameters']:,} of them trained"
    sizes = report["sizes"]
    if "activations" not in sizes[0]:
        images = sum(x["images"] for x in sizes)
        mean = {name: sum(x["flops"][name] * x["images"] for x in sizes) / images for name in sizes[0]["flops"]}
        spread = ", ".join(f"{edge(x['flops'][''] for x in sizes) / 1e9:.1f}" for edge in (min, max))
        heading = f"mean of {images} images of {len(sizes)} sizes; smallest and largest: {spread} GFLOPs"
        return f"{total}\n\n{heading}\n{_table(depth, parameters, mean)}\n{_footer(sizes[0])}"
    tables = [
        f"{x['size'][0]} x {x['size'][1]}\n{_table(depth, parameters, x['flops'], x['activations'])}\n{_footer(x)}"
        for x in sizes
    ]
    return "\n\n".join([total, *tables])


def _table(
    depth: int, parameters: dict[str, int], flops: dict[str, float], activations: dict[str, int] | None = None
) -> str:
    headers = ["module", "parameters", "GFLOPs", "share", "activations (M)"]
    rows = []
    for name, x in flops.items():
        level = name.count(".") + 1 if name else 0
        if level > depth or not (x or parameters.get(name)):
            continue
        row = [name or "model", f"{parameters.get(name, 0):,}", f"{x / 1e9:.3f}"]
        row.append(f"{x / max(flops[''], 1):.1%}")
        rows.append(row if activations is None else [*row, f"{activations[name] / 1e6:.3f}"])
    align = ("left", *["right"] * (len(rows[0]) - 1))
    return tabulate(rows, headers[: len(rows[0])], colalign=align, disable_numparse=True)


def _footer(statistics: dict[str, Any]) -> str:
    operators = ", ".join(f"{name} {x / 1e9:.3f}" for name, x in statistics["operators"].items())
    left_out = ", ".join(sorted(name.removeprefix("aten::") for name in statistics["not_counted"]))
    return f"GFLOPs by operator: {operators}\nnot counted: {left_out or 'nothing'}, and what takes no multiplications"


def _quiet(analysis):
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none")
