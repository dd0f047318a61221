"""Count parameters, FLOPs and activations of the model that a config describes, by module and image size.

A FLOP is one multiply-add, as in DETR's paper. Softmax, activations and additions are not counted, norms are.
Activations are the elements that convolutions, linear layers and attention output. Batch size 1, inference, on the
CPU, without weights.

Examples:
  detr-d2 analyze --config-file detr_256_6_6_torchvision --size 800 1066 --depth 3
  the mean over the first 100 images of a dataset, resized as in evaluation:
    detr-d2 analyze --config-file detr_256_6_6_torchvision --dataset coco_2017_val --num-images 100
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detr_d2.cli.arguments import CommandParser
from detr_d2.cli.command import Command
from detr_d2.utils.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

ATTENTION = "aten::scaled_dot_product_attention"


def _add_flags(parser: CommandParser) -> None:
    parser.add_config()
    parser.add_argument(
        "--size", nargs=2, type=int, action="append", metavar=("H", "W"), help="size of images (default: 800 1066)"
    )
    parser.add_argument("--dataset", metavar="NAME", help="use the sizes of the images of this dataset; FLOPs only")
    parser.add_argument("--num-images", type=int, default=100, metavar="N", help="images of --dataset (default: 100)")
    parser.add_argument("--depth", type=int, default=3, metavar="N", help="levels of modules to show (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="write the statistics of every module to this file")


def run(args: argparse.Namespace) -> None:
    """Count, print the tables and write the JSON."""
    from detectron2.modeling import build_model
    from fvcore.nn import parameter_count

    from detr_d2.config import check_model_config, load_config

    cfg = load_config(args.config_file, args.opts, trust=args.trust)
    if args.dataset and args.size:
        raise UserError("Give --size or --dataset, not both.")
    sizes = Counter(map(tuple, args.size or [(800, 1066)]))
    if args.dataset:
        sizes = dataset_sizes(cfg, args.dataset, args.num_images)
    if any(side < 1 for size in sizes for side in size):
        raise UserError("--size: give two numbers of pixels of at least 1.")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    cfg.merge_from_list(["MODEL.TIMM.PRETRAINED", False, "MODEL.TIMM.WEIGHTS", ""])
    check_model_config(cfg)
    model = build_model(cfg).eval()
    report = {
        "config": args.config_file,
        "options": args.opts,
        "parameters": dict(parameter_count(model)),
        "trainable_parameters": sum(x.numel() for x in model.parameters() if x.requires_grad),
        "sizes": [
            {"size": list(size), "images": images, **count(model, size, activations=not args.dataset)}
            for size, images in sorted(sizes.items())
        ],
    }
    print(format_report(report, args.depth))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


def dataset_sizes(cfg: "CfgNode", dataset: str, num_images: int) -> Counter[tuple[int, int]]:
    """Return how often each image size (height, width) occurs, after the resizing of an evaluation."""
    from detectron2.data import DatasetCatalog

    from detr_d2.data.augmentation import DetrResizeShortestEdge

    if dataset not in DatasetCatalog:
        raise UserError(f"--dataset {dataset} is not registered: choose one of {', '.join(DatasetCatalog)}.")
    try:
        records = DatasetCatalog.get(dataset)[:num_images]
    except FileNotFoundError as e:
        raise UserError(f"--dataset {dataset}: {e}. DETECTRON2_DATASETS names the folder of datasets.") from e
    limits = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return Counter(DetrResizeShortestEdge.get_output_shape(x["height"], x["width"], *limits) for x in records)


def count(model: "nn.Module", size: tuple[int, int], activations: bool = True) -> dict[str, Any]:
    """Return FLOPs and activations by module ("" is the whole model), and FLOPs by operator, of one image."""
    import torch
    from detectron2.export import TracingAdapter
    from detectron2.utils.analysis import FlopCountAnalysis
    from fvcore.nn import ActivationCountAnalysis
    from fvcore.nn.jit_handles import generic_activation_jit

    def by_module(analysis) -> dict[str, int]:
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        # Tracing wraps the model in one more module.
        counts = analysis.by_module().items()
        return {name.removeprefix("model").removeprefix("."): int(x) for name, x in counts if name}

    inputs = [{"image": torch.zeros(len(model.pixel_mean), *size, dtype=torch.uint8)}]
    with torch.no_grad():
        flops = FlopCountAnalysis(model, inputs).set_op_handle(ATTENTION, attention_flops)
        statistics = {
            "flops": by_module(flops),
            "operators": dict(flops.by_operator()),
            "not_counted": dict(flops.unsupported_ops()),
        }
        if activations:
            adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
            counter = ActivationCountAnalysis(adapter, adapter.flattened_inputs)
            statistics["activations"] = by_module(counter.set_op_handle(ATTENTION, generic_activation_jit(ATTENTION)))
    return statistics


def attention_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count the multiply-adds of softmax(Q K^T) V: Q (..., N, C), K (..., S, C), V (..., S, D)."""
    from fvcore.nn.jit_handles import get_shape

    query, key, value = (get_shape(x) for x in inputs[:3])
    flops = math.prod(query) * key[-2] + math.prod(query[:-1]) * value[-2] * value[-1]
    return Counter({"attention": flops})


def format_report(report: dict[str, Any], depth: int) -> str:
    """Return a table for every size, or of the mean over a dataset's sizes, with the modules down to ``depth``."""
    parameters, sizes = report["parameters"], report["sizes"]
    text = f"{parameters['']:,} parameters, {report['trainable_parameters']:,} of them trained"
    if "activations" in sizes[0]:
        tables = {f"{x['size'][0]} x {x['size'][1]}": x for x in sizes}
    else:
        images = sum(x["images"] for x in sizes)
        spread = ", ".join(f"{edge(x['flops'][''] for x in sizes) / 1e9:.1f}" for edge in (min, max))
        mean = {
            kind: {name: sum(x[kind][name] * x["images"] for x in sizes) / images for name in sizes[0][kind]}
            for kind in ("flops", "operators")
        }
        heading = f"mean of {images} images of {len(sizes)} sizes; smallest and largest: {spread} GFLOPs"
        tables = {heading: {**sizes[0], **mean}}
    for heading, statistics in tables.items():
        operators = ", ".join(f"{name} {x / 1e9:.3f}" for name, x in statistics["operators"].items())
        left_out = ", ".join(sorted(name.removeprefix("aten::") for name in statistics["not_counted"]))
        text += (
            f"\n\n{heading}\n{_table(depth, parameters, statistics)}\nGFLOPs by operator: {operators}\n"
            f"not counted: {left_out or 'nothing'}, and operators without multiplications"
        )
    return text


def _table(depth: int, parameters: dict[str, int], statistics: dict[str, Any]) -> str:
    from tabulate import tabulate

    flops, activations = statistics["flops"], statistics.get("activations")
    rows = []
    for name, x in flops.items():
        level = name.count(".") + 1 if name else 0
        if level <= depth and (x or parameters.get(name)):
            row = [name or "model", f"{parameters.get(name, 0):,}", f"{x / 1e9:.3f}", f"{x / max(flops[''], 1):.1%}"]
            rows.append(row if activations is None else [*row, f"{activations[name] / 1e6:.3f}"])
    headers = ["module", "parameters", "GFLOPs", "share", "activations (M)"][: len(rows[0])]
    return tabulate(rows, headers, colalign=("left", *["right"] * (len(headers) - 1)), disable_numparse=True)


main = Command("analyze", __doc__, _add_flags, run)
