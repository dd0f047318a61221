r"""Export a trained model to a file that runs without this package, and verify such a file.

The file holds the whole way from an image to its detections, and the names of the classes, the resize rule and a golden
input with its outputs. It is written only if it agrees with the model, which is tried on several sizes and batches. See
docs/EXPORT.md.

Examples:
  detr-d2 export --config-file detr-r50 --weights detr-r50-e632da11.pth --output detr-r50.onnx
  detr-d2 export --config-file output/config.yaml --weights output/model_final.pth --output mine.xml
  detr-d2 export --config-file output/config.yaml --weights output/model_final.pth --output mine.xml --precision int8
  detr-d2 export --verify mine.xml
  detr-d2 predict --weights mine.xml --input photos/ --output predicted
"""

import argparse
import tempfile
from typing import TYPE_CHECKING

from detr_d2.cli.arguments import CommandParser, add_data_arguments, at_least
from detr_d2.cli.command import Command, start_process
from detr_d2.utils.errors import UserError

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

    from detr_d2.export import Quantization, Verification

FORMATS = ("onnx", "openvino", "torch_export", "torchscript")
"""Values of --format, as in :data:`detr_d2.export.FORMATS`, which takes long to import."""


def _add_flags(parser: CommandParser) -> None:
    parser.add_config()
    parser.add_argument("--weights", metavar="FILE", help="checkpoint of the model: MODEL.WEIGHTS")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write: .onnx, .xml (OpenVINO, with a .bin), .pt2, or .ts (TorchScript)",
    )
    parser.add_argument("--format", choices=FORMATS, help="format (default: by the suffix of --output)")
    parser.add_argument(
        "--verify", metavar="FILE", help="run the golden input of an exported file, and do nothing else"
    )
    group = parser.add_argument_group("inputs and outputs")
    group.add_argument(
        "--outputs",
        choices=("detections", "raw"),
        help="boxes in pixels, scores and labels; or raw logits and boxes (default: detections; raw if panoptic)",
    )
    group.add_argument("--no-masks", action="store_true", help="leave out the masks of a model with a mask head")
    group.add_argument(
        "--max-detections",
        type=at_least(1, "detections per image"),
        metavar="N",
        help="the N best detections of each image (default: as many as there are object queries)",
    )
    group.add_argument(
        "--dtype",
        choices=("uint8", "float32"),
        help="type of the images (default: uint8, or float32 if INPUT.CHANNELS is not 3)",
    )
    group = parser.add_argument_group("8 bits", "formats onnx and openvino; docs/EXPORT.md")
    group.add_argument(
        "--precision",
        choices=("float32", "int8"),
        default="float32",
        help="int8: backbone and encoder compute with 8-bit integers, calibrated on images (default: float32)",
    )
    group.add_argument(
        "--calibration",
        type=at_least(1, "calibration images"),
        default=100,
        metavar="N",
        help="number of random images of DATASETS.TRAIN to calibrate on (default: 100)",
    )
    group.add_argument(
        "--max-ap-drop",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="maximum loss of box AP on DATASETS.TEST, from 0 to 100; no file is written beyond it (default: 0.5)",
    )
    group.add_argument("--calibration-only", action="store_true", help="do not compare AP: DATASETS.TEST is not needed")
    add_data_arguments(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="overwrite the output file; with --precision int8 write it whatever it loses",
    )


def run(args: argparse.Namespace) -> None:
    """Export or verify, and print the differences."""
    start_process()
    if args.verify:
        from detr_d2.export import verify_golden

        verification = verify_golden(args.verify)
        print_differences(verification)
        verification.check(args.verify)
        print(f"{args.verify} gives the outputs that it was exported with")
        return
    for flag in ("config_file", "output"):
        if not getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} is missing: give it, or --verify and an exported file.")
    print_differences(_export(args))
    print(f"written to {args.output}")


def _export(args: argparse.Namespace) -> "Verification":
    from detr_d2.export import GraphOptions, default_dtype, export_model
    from detr_d2.inference.predictor import Predictor, prediction_config

    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    exact = ["MODEL.DETR.TEST.PRECISION", "float32", "MODEL.DETR.TEST.COMPILE", "False", "MODEL.DEVICE", "cpu"]
    cfg = prediction_config(args.config_file, [*args.opts, *weights, *exact], trust=args.trust)
    quantization = _quantization(cfg, args) if args.precision == "int8" else None
    predictor = Predictor.from_config(cfg)
    model = predictor.model
    options = GraphOptions(
        args.outputs or ("raw" if model.panoptic is not None else "detections"),
        masks=model.has_masks and not args.no_masks,
        max_detections=args.max_detections,
        dtype=args.dtype or default_dtype(cfg),
    )
    return export_model(
        model,
        args.output,
        cfg=cfg,
        class_names=predictor.categories.names,
        category_ids=predictor.categories.ids,
        options=options,
        format=args.format,
        overwrite=args.force,
        quantization=quantization,
    )


def _quantization(cfg: "CfgNode", args: argparse.Namespace) -> "Quantization":
    from detr_d2.data import check_datasets
    from detr_d2.engine import use_own_data
    from detr_d2.export import CalibrationImages, Quantization

    use_own_data(cfg, args)
    has_test = not args.calibration_only
    if has_test and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name a dataset to compare AP on, or add --calibration-only.")
    check_datasets(cfg, test=has_test)

    def box_ap(model: "nn.Module") -> float:
        return _box_ap(cfg, model)

    return Quantization(
        CalibrationImages(cfg, args.calibration),
        evaluate=box_ap if has_test else None,
        max_ap_drop=args.max_ap_drop,
        force=args.force,
    )


def _box_ap(cfg: "CfgNode", model: "nn.Module") -> float:
    """Return the box AP of a model on the first dataset of ``DATASETS.TEST``, in percent."""
    from detr_d2.engine import Trainer

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    with tempfile.TemporaryDirectory() as folder:
        results = Trainer.test(cfg, model, [Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0], folder)])
    if "bbox" not in results:
        raise UserError(f"{cfg.DATASETS.TEST[0]} gives no box AP: add --calibration-only.")
    return results["bbox"]["AP"]


def print_differences(verification: "Verification") -> None:
    """Print the largest difference of every output, a line for each batch."""
    from tabulate import tabulate

    names = list(verification.rows[0][1])
    rows = [(batch, *(f"{x[name]:.1e}" for name in names)) for batch, x in verification.rows]
    print(tabulate(rows, headers=("unmatched" if verification.is_share else "largest differences", *names)))


main = Command("export", __doc__, _add_flags, run)
