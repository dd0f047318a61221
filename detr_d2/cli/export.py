r"""Export a trained model to a file that runs without this package, and verify such a file.

The file holds the whole way from an image to its detections, and the names of the classes, the resize rule and a golden
input with its outputs. It is written only if it agrees with the model, which is tried on several sizes and batches. See
docs/EXPORT.md.

Examples:
  detr-d2 export --config-file detr-r50 --weights detr-r50-e632da11.pth --output detr-r50.onnx
  detr-d2 export --config-file output/config.yaml --weights output/model_final.pth --output mine.xml
  detr-d2 export --verify mine.xml
  detr-d2 predict --weights mine.xml --input photos/ --output predicted
"""

import argparse
from typing import TYPE_CHECKING

from detr_d2.cli.arguments import CommandParser, at_least
from detr_d2.cli.command import Command, start_process
from detr_d2.utils.errors import UserError

if TYPE_CHECKING:
    from detr_d2.export import Verification

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
        "--dtype", choices=("uint8", "float32"), default="uint8", help="type of the images, 0 to 255 (default: uint8)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output file")


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
    from detr_d2.export import GraphOptions, export_model
    from detr_d2.inference.predictor import Predictor, prediction_config

    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    exact = ["MODEL.DETR.TEST.PRECISION", "float32", "MODEL.DETR.TEST.COMPILE", "False", "MODEL.DEVICE", "cpu"]
    cfg = prediction_config(args.config_file, [*args.opts, *weights, *exact], trust=args.trust)
    predictor = Predictor.from_config(cfg)
    model = predictor.model
    options = GraphOptions(
        args.outputs or ("raw" if model.panoptic is not None else "detections"),
        masks=model.has_masks and not args.no_masks,
        max_detections=args.max_detections,
        dtype=args.dtype,
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
    )


def print_differences(verification: "Verification") -> None:
    """Print the largest difference of every output, a line for each batch."""
    from tabulate import tabulate

    names = list(verification.rows[0][1])
    rows = [(batch, *(f"{x[name]:.1e}" for name in names)) for batch, x in verification.rows]
    print(tabulate(rows, headers=("largest differences", *names)))


main = Command("export", __doc__, _add_flags, run)
