#!/usr/bin/env python
"""How long masks take, and how much memory, side by side with the original code (package python-detr)."""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detr.models import segmentation
from detr.models.backbone import BackboneBase, FrozenBatchNorm2d, Joiner
from detr.models.detr import DETR, PostProcess, SetCriterion
from detr.models.matcher import HungarianMatcher
from detr.models.position_encoding import PositionEmbeddingSine
from detr.models.transformer import Transformer
from detr.util.misc import nested_tensor_from_tensor_list
from tabulate import tabulate
from torch import Tensor, nn

from detr_d2 import add_detr_config
from detr_d2.box_ops import xyxy_to_cxcywh
from detr_d2.data.panoptic import coco_panoptic_categories
from detr_d2.errors import UserError

QUERIES = 100
CLASSES = 133
EXAMPLES = """
R50 with random weights, the same in both; an image of 800 x 1066 whose result has 480 x 640. Both models take turns, in
one process with one number of threads. Before anything is timed, their results are compared. Memory is the peak of
a process of its own over what it has before the first image.

  instances  the forward pass and the masks of all 100 queries
  panoptic   the forward pass and the panoptic result, with as many confident queries as --segments says
  training   loss and gradients of --segments objects

examples:
  benchmark_masks.py instances --dtype bfloat16 --threads 2 --repeat 7
  benchmark_masks.py panoptic --size 400 533
"""


class Pair(NamedTuple):
    ours: Callable[[], object]
    original: Callable[[], object]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("instances", "panoptic", "training"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of autocast")
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1066), metavar=("H", "W"))
    parser.add_argument("--segments", type=int, default=15, help="confident queries, or objects (default: 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--memory-of", choices=Pair._fields, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    pair = build(args)
    if args.memory_of:
        print(peak_memory(getattr(pair, args.memory_of)))
        return
    try:
        print(COMPARISONS[args.mode](pair.ours(), pair.original(), args.dtype))
    except UserError as e:
        sys.exit(f"error: {e}")
    print(report(measure(pair, args.repeat), [memory_of(name, arguments) for name in Pair._fields]))


def build(args: argparse.Namespace) -> Pair:
    cfg = config(args)
    original = original_model()
    model = build_model(cfg)
    model.load_state_dict(original.state_dict())
    # Random weights find nothing: the classes are given, with some confident queries, things and stuff in turn.
    logits = torch.zeros(QUERIES, CLASSES + 1)
    logits[:, -1] = 10
    for query in range(args.segments):
        logits[query, query % CLASSES if query % 2 else CLASSES - 1 - query] = 20
    # And queries are all but alike, so that rounding would decide whose pixels are whose: they are moved apart.
    apart = torch.randn(QUERIES, cfg.MODEL.DETR.HIDDEN_DIM)
    for boxes, masks in ((model.detr, model.detr), (original.detr, original)):
        boxes.class_embed.register_forward_hook(lambda _module, _inputs, out: out * 0 + logits)
        masks.bbox_attention.q_linear.register_forward_pre_hook(lambda _module, hidden: (hidden[0] + apart,))
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16")
    return PAIRS[args.mode](cfg, model, original, inputs(args), autocast)


def config(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "Detr", "", "cpu"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.DETR.NUM_CLASSES = CLASSES
    cfg.MODEL.DETR.DROPOUT = 0.0
    if args.mode == "panoptic":
        cfg.MODEL.DETR.PANOPTIC.ENABLED = True
        cfg.MODEL.DETR.PANOPTIC.MERGE_AFTER_REMOVAL = False
        cfg.MODEL.DETR.TEST.SCORE_THRESHOLD = cfg.MODEL.DETR.PANOPTIC.SCORE_THRESHOLD
    return cfg


def original_model() -> nn.Module:
    torch.manual_seed(0)
    body = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    joiner = Joiner(
        BackboneBase(body, True, 2048, return_interm_layers=True), PositionEmbeddingSine(128, normalize=True)
    )
    joiner.num_channels = 2048
    transformer = Transformer(d_model=256, dropout=0.0, return_intermediate_dec=True)
    model = segmentation.DETRsegm(DETR(joiner, transformer, CLASSES, QUERIES, aux_loss=True)).eval()
    # Without training features explode, and attention is the same everywhere.
    with torch.no_grad():
        for name, norm in body.named_modules():
            if name.endswith("bn3"):
                norm.weight *= 0.1
        model.bbox_attention.q_linear.weight *= 3
        model.mask_head.lay1.weight[:, 256:] *= 100
    return model


def inputs(args: argparse.Namespace) -> dict:
    """An image, its result's size, and rectangles as objects."""
    height, width = args.size
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    boxes = torch.rand(args.segments, 2, 2).sort(1).values.flatten(1) * torch.tensor([width, height, width, height])
    objects = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.arange(args.segments) % CLASSES)
    x, y = torch.arange(width), torch.arange(height)[:, None]
    x0, y0, x1, y1 = boxes[..., None, None].unbind(1)
    objects.gt_masks = BitMasks((x >= x0) & (x < x1) & (y >= y0) & (y < y1))
    return {"image": image, "instances": objects, "height": 480, "width": 640, "file_name": "random"}


def samples(cfg: CfgNode, record: dict):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    return nested_tensor_from_tensor_list([(record["image"] - mean) / std])


def instances_pair(cfg, model, original, record, autocast) -> Pair:
    wanted, size = (torch.tensor([x]) for x in ((480, 640), record["image"].shape[1:]))

    @torch.no_grad()
    def theirs() -> Tensor:
        with autocast:
            outputs = original(samples(cfg, record))
        outputs = {name: x.float() for name, x in outputs.items() if name != "aux_outputs"}
        return segmentation.PostProcessSegm()(PostProcess()(outputs, wanted), outputs, wanted, size)[0]["masks"][:, 0]

    @torch.no_grad()
    def ours() -> Tensor:
        with autocast:
            return model([record])[0]["instances"].pred_masks

    model.eval()
    return Pair(ours, theirs)


def panoptic_pair(cfg, model, original, record, autocast) -> Pair:
    is_thing = dict(enumerate(coco_panoptic_categories().is_thing))
    postprocess = segmentation.PostProcessPanoptic(is_thing, cfg.MODEL.DETR.PANOPTIC.SCORE_THRESHOLD)

    @torch.no_grad()
    def theirs() -> list[dict]:
        with autocast:
            outputs = original(samples(cfg, record))
        outputs = {name: x.float() for name, x in outputs.items() if name != "aux_outputs"}
        return postprocess(outputs, [tuple(record["image"].shape[1:])], [(480, 640)])[0]["segments_info"]

    @torch.no_grad()
    def ours() -> list[dict]:
        with autocast:
            return model([record])[0]["panoptic_seg"][1]

    model.eval()
    return Pair(ours, theirs)


def training_pair(cfg, model, original, record, autocast) -> Pair:
    matcher = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2)
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    weights |= {f"{name}_{i}": x for i in range(5) for name, x in weights.items()} | {"loss_mask": 1, "loss_dice": 1}
    criterion = SetCriterion(CLASSES, matcher, weights, 0.1, ["labels", "boxes", "cardinality", "masks"])
    objects = record["instances"]
    height, width = objects.image_size
    boxes = xyxy_to_cxcywh(objects.gt_boxes.tensor / torch.tensor([width, height, width, height]))
    targets = [{"labels": objects.gt_classes, "boxes": boxes, "masks": objects.gt_masks.tensor}]

    def theirs() -> float:
        original.zero_grad()
        with autocast:
            outputs = original(samples(cfg, record))
        losses = criterion({k: x if isinstance(x, list) else x.float() for k, x in outputs.items()}, targets)
        loss = sum(losses[name] * weight for name, weight in weights.items())
        loss.backward()
        return loss.item()

    def ours() -> float:
        model.zero_grad()
        with autocast:
            loss = sum(model([record]).values())
        loss.backward()
        return loss.item()

    # Masks are rarely learned together with the early layers of the backbone, which Detectron2 freezes.
    for name, parameter in original.named_parameters():
        parameter.requires_grad_(not name.startswith(("detr.backbone.0.body.conv1", "detr.backbone.0.body.layer1")))
    original.train()
    model.train()
    return Pair(ours, theirs)


PAIRS = {"instances": instances_pair, "panoptic": panoptic_pair, "training": training_pair}


def compare_instances(ours: Tensor, theirs: Tensor, dtype: str) -> str:
    differing = (ours != theirs.bool()).float().mean().item()
    _check(differing < (1e-4 if dtype == "float32" else 0.05), f"{differing:.2%} of the pixels of the masks differ")
    return f"masks: {differing:.4%} of the pixels differ"


def compare_panoptic(ours: list[dict], theirs: list[dict], dtype: str) -> str:
    areas = [sorted((x["category_id"], x["area"]) for x in infos) for infos in (ours, theirs)]
    same = [x[0] for x in areas[0]] == [x[0] for x in areas[1]]
    moved = sum(abs(a[1] - b[1]) for a, b in zip(*areas, strict=False)) / (480 * 640)
    least = 1e-4 if dtype == "float32" else 0.1
    _check(same and moved < least, f"the segments differ: {areas[0]} and {areas[1]}")
    return f"panoptic: {len(ours)} segments, {moved:.4%} of the pixels change hands"


def compare_losses(ours: float, theirs: float, dtype: str) -> str:
    _check(abs(ours / theirs - 1) < (1e-4 if dtype == "float32" else 0.05), f"the losses are {ours} and {theirs}")
    return f"losses: {ours:.6g} and {theirs:.6g}"


COMPARISONS = {"instances": compare_instances, "panoptic": compare_panoptic, "training": compare_losses}


def _check(agree: bool, message: str) -> None:
    if not agree:
        raise UserError(f"ours and the original disagree, so timing them says nothing: {message}.")


def measure(pair: Pair, repeat: int) -> list[list[float]]:
    """Seconds of each run, of ours and of the original, in turns."""
    seconds: list[list[float]] = [[], []]
    for _ in range(repeat):
        for run, times in zip(pair, seconds, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return seconds


def peak_memory(run: Callable[[], object]) -> float:
    """MiB that a run adds to the largest size that this process has had. Linux only."""
    before = _largest_size()
    run()
    return _largest_size() - before


def _largest_size() -> float:
    # Not getrusage, which on Linux counts what the parent had, too.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def memory_of(name: str, arguments: list[str] | None) -> float:
    words = sys.argv[1:] if arguments is None else arguments
    command = [sys.executable, __file__, *words, "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def report(seconds: list[list[float]], memory: list[float]) -> str:
    rows = [
        [name, median(times), f"{min(times):.3f} - {max(times):.3f}", peak]
        for name, times, peak in zip(Pair._fields, seconds, memory, strict=True)
    ]
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    rows.append(["ratio", median(ratios), f"{min(ratios):.2f} - {max(ratios):.2f}", memory[1] / max(memory[0], 1e-9)])
    return tabulate(rows, headers=["", "median [s]", "from - to", "memory [MiB]"], floatfmt=("", ".3f", "", ".2f"))


if __name__ == "__main__":
    main()
