r"""Find likely label errors of a dataset in COCO's format, with a trained model.

Predictions are matched with the annotations as in training. Missing objects, wrong classes, loose boxes and surplus
annotations are ranked, the most suspicious first. See docs/DOCTOR.md. The output folder then holds report.html, a page
with an image of every finding, and suggestions.json, the dataset with the suggested fixes. Until it is complete it is
called DIR.incomplete.

Examples:
  detr-d2 doctor --config-file output/mine/config.yaml --weights output/mine/model_final.pth \
      --annotations train.json --images train/ --output doctor
  an exported model (docs/EXPORT.md):
    detr-d2 doctor --weights model.onnx --annotations train.json --images train/ --output doctor
"""

import argparse
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from detr_d2.cli.arguments import CommandParser, add_annotated_flags, at_least
from detr_d2.cli.command import Command, start_process
from detr_d2.utils.errors import UserError

if TYPE_CHECKING:
    from pycocotools.coco import COCO

    from detr_d2.evaluation.label_fixes import Suggestion

REPORT, SUGGESTIONS = "report.html", "suggestions.json"


def _add_flags(parser: CommandParser) -> None:
    add_annotated_flags(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="a folder that does not exist yet, or is empty")
    parser.add_argument(
        "--top", type=at_least(1, "findings"), default=100, metavar="N", help="findings of each kind (default: 100)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote to DIR")


def run(args: argparse.Namespace) -> None:
    """Predict, rank, and write the report and the suggestions."""
    from detr_d2.criterion.matching import MatchingCost
    from detr_d2.engine.annotated import open_annotated, predict_annotated
    from detr_d2.evaluation.label_errors import KINDS, rank_findings
    from detr_d2.evaluation.label_fixes import apply_suggestions, find_in_image, to_suggestions
    from detr_d2.utils.files import output_folder

    start_process()
    try:
        with output_folder(args.output, marker=REPORT, overwrite=args.overwrite) as folder:
            predictor, cfg, coco = open_annotated(args)
            cost = MatchingCost(cfg)
            predictions = predict_annotated(predictor, coco, args.images, args.batch_size)
            ranked = rank_findings(x for key, found in predictions for x in find_in_image(coco, key, found, cost))
            suggestions = to_suggestions(coco, [x for kind in KINDS for x in ranked[kind][: args.top]])
            text = json.dumps(apply_suggestions(coco.dataset, suggestions), ensure_ascii=False)
            (folder / SUGGESTIONS).write_text(text, encoding="utf-8")
            html = render_report(coco, suggestions, args.images, os.path.basename(args.annotations), predictor.channels)
            (folder / REPORT).write_text(html, encoding="utf-8")
    except OSError as e:
        raise UserError(f"--output {args.output} can't be written ({e}): make space, or name another.") from e
    for kind, text in KINDS.items():
        shown = sum(x.kind == kind for x in suggestions)
        print(f"{kind:8} {shown} of {len(ranked[kind])} findings: {text}")
    print(f"written to {args.output}")


def render_report(
    coco: "COCO", suggestions: Sequence["Suggestion"], image_root: str, name: str, channels: int = 3
) -> str:
    """Return HTML that needs no other file, with an image of every suggestion; files have as many ``channels``."""
    from detr_d2.cli.html import render_template
    from detr_d2.evaluation.label_errors import KINDS
    from detr_d2.visualization.label_errors import ANNOTATED, PREDICTED

    crops = dict(_draw(coco, suggestions, image_root, channels))
    sections = [
        {"kind": kind, "title": text, "cards": [_card(coco, x, crops[x.number]) for x in suggestions if x.kind == kind]}
        for kind, text in KINDS.items()
    ]
    return render_template(
        "doctor.html",
        name=name,
        images=len(coco.imgs),
        annotations=len(coco.anns),
        classes=[coco.cats[i]["name"] for i in sorted(coco.cats)],
        sections=sections,
        annotated=ANNOTATED,
        predicted=PREDICTED,
    )


def _draw(
    coco: "COCO", suggestions: Sequence["Suggestion"], image_root: str, channels: int
) -> Iterator[tuple[int, str]]:
    """Yield the number of every suggestion and the address of its image, reading every file once."""
    from detr_d2.cli.html import data_uri
    from detr_d2.data.bands import to_display
    from detr_d2.data.images import read_image
    from detr_d2.utils.progress import progress_bar
    from detr_d2.visualization.label_errors import draw_label_error

    by_image: dict[Any, list[Suggestion]] = {}
    for x in suggestions:
        by_image.setdefault(x.image["id"], []).append(x)
    for image_id, of_image in progress_bar(by_image.items(), "drawing", unit="image"):
        path = os.path.join(image_root, coco.imgs[image_id]["file_name"])
        pixels = to_display(read_image(path, "RGB", channels=channels))
        for x in of_image:
            others = [y["bbox"] for y in coco.imgToAnns.get(image_id, ()) if y is not x.annotation]
            buffer = io.BytesIO()
            crop = draw_label_error(pixels, x.annotation and x.annotation["bbox"], x.predicted, others)
            crop.save(buffer, format="jpeg", quality=80)
            yield x.number, data_uri(buffer.getvalue(), "jpeg")


def _card(coco: "COCO", suggestion: "Suggestion", source: str) -> dict[str, Any]:
    """Return what the page shows of a suggestion."""
    annotated = suggestion.annotation and coco.cats[suggestion.annotation["category_id"]]["name"]
    suggested = None if suggestion.category_id is None else coco.cats[suggestion.category_id]["name"]
    return {
        "number": suggestion.number,
        "label": f"{annotated} → {suggested}" if suggestion.kind == "class" else annotated or suggested,
        "classes": sorted({x for x in (annotated, suggested) if x}),
        "suspicion": f"{suggestion.suspicion:.2f}",
        "file": suggestion.image["file_name"],
        "annotation": None if suggestion.annotation is None else suggestion.annotation["id"],
        "source": source,
    }


main = Command("doctor", __doc__, _add_flags, run)
