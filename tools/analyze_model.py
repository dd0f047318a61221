#!/usr/bin/env python
"""Parameters, FLOPs and activations of the model that a config describes, by module and image size."""

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path
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

from detr_d2.config import check_model_config, load_config
from detr_d2.data.augmentation import DetrResizeShortestEdge
from detr_d2.utils.errors import UserError

EXAMPLES = """
A FLOP is one multiply-add, as in DETR's paper. Softmax, activations and additions are not counted, norms are.
Activations are the elements that convolutions, linear layers and attention put out. Batch size 1, inference, on the
CPU, without weights.

examples:
  analyze_model.py --config-file configs/detr_256_6_6_torchvision.yaml --size 800 1066 --depth 3
  the mean over the first 100 images of a dataset, resized as in evaluation:
    analyze_model.py --config-file configs/detr_256_6_6_torchvision.yaml --dataset coco_2017_val --num-images 100
"""
ATTENTION = "aten::scaled_dot_product_attention"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE")
    parser.add_argument("--size", nargs=2, type=int, action="append", metavar=("H", "W"), help="default: 800 1066")
    parser.add_argument("--dataset", help="take the sizes of the images of this dataset; FLOPs only")
    parser.add_argument("--num-images", type=int, default=100, help="of the dataset (default: 100)")
    parser.add_argument("--depth", type=int, default=3, help="how deep to go into the modules (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the figures of every module to this file")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys, as KEY VALUE pairs")
    args = parser.parse_args(arguments)
    try:
        report = analyze(args)
    except UserError as e:
        sys.exit(f"error: {e}")
    print(format_report(report, args.depth))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


def analyze(args: argparse.Namespace) -> dict[str, Any]:
    """Figures by module ("" is the whole model): ``parameters``, and ``flops`` and ``activations`` for every size."""
    cfg = load_config(args.config_file, args.opts)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.merge_from_list(["MODEL.TIMM.PRETRAINED", False, "MODEL.TIMM.WEIGHTS", ""])
    check_model_config(cfg)
    if args.dataset and args.size:
        raise UserError("Give --size or --dataset, not both.")
    sizes = dataset_sizes(cfg, args) if args.dataset else Counter(map(tuple, args.size or [(800, 1066)]))
    if any(side < 1 for size in sizes for side in size):
        raise UserError("--size takes two numbers of pixels from 1.")
    model = build_model(cfg).eval()
    return {
        "config": args.config_file,
        "options": args.opts,
        "parameters": dict(parameter_count(model)),
        "trainable_parameters": sum(x.numel() for x in model.parameters() if x.requires_grad),
        "sizes": [
            {"size": list(size), "images": images, **count(model, size, activations=not args.dataset)}
            for size, images in sorted(sizes.items())
        ],
    }


def dataset_sizes(cfg: CfgNode, args: argparse.Namespace) -> Counter[tuple[int, int]]:
    """How often each image size occurs, after the resizing of an evaluation."""
    if args.dataset not in DatasetCatalog:
        raise UserError(f"--dataset {args.dataset} is not registered: choose one of {', '.join(DatasetCatalog)}.")
    try:
        records = DatasetCatalog.get(args.dataset)[: args.num_images]
    except FileNotFoundError as e:
        raise UserError(f"--dataset {args.dataset}: {e}. DETECTRON2_DATASETS names the folder of datasets.") from e
    limits = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return Counter(DetrResizeShortestEdge.get_output_shape(x["height"], x["width"], *limits) for x in records)


def count(model: nn.Module, size: tuple[int, int], activations: bool = True) -> dict[str, Any]:
    """FLOPs by module and by operator, activations by module, of one image of ``size`` (height, width)."""
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
    """Multiply-adds of softmax(Q K^T) V: Q (..., N, C), K (..., S, C), V (..., S, D)."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    flops = math.prod(query) * key[-2] + math.prod(query[:-1]) * value[-2] * value[-1]
    return Counter({"attention": flops})


def strip(figures: Counter[str]) -> dict[str, int]:
    """Without the module that tracing wraps around the model."""
    return {name.removeprefix("model").removeprefix("."): int(x) for name, x in figures.items() if name}


def format_report(report: dict[str, Any], depth: int) -> str:
    """A table for every size, or for several sizes of a dataset their mean; modules down to ``depth``."""
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


def _footer(figures: dict[str, Any]) -> str:
    operators = ", ".join(f"{name} {x / 1e9:.3f}" for name, x in figures["operators"].items())
    left_out = ", ".join(sorted(name.removeprefix("aten::") for name in figures["not_counted"]))
    return f"GFLOPs by operator: {operators}\nnot counted: {left_out or 'nothing'}, and what takes no multiplications"


def _quiet(analysis):
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    return analysis.tracer_warnings("none")


if __name__ == "__main__":
    main()
