"""Report of the demo: what a training run has learned, with images."""

import os
import platform
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch import nn

from detr_d2.data import DetrDatasetMapper
from detr_d2.data.images import read_image
from detr_d2.engine.trainer import Trainer
from detr_d2.modeling import record_attention
from detr_d2.utils.files import atomic_file
from detr_d2.visualization import draw_instances, draw_query_attention, plot_training
from detr_d2.visualization.report import Bar, ReportImage, Section, render_report

SCORE_THRESHOLD = 0.4
_NUM_IMAGES, _NUM_ATTENTION = 8, 2
# The shapes are small; labels need space.
_SCALE = 3


def write_report(trainer: Trainer, results: dict, minutes: float, command: str) -> Path:
    """Write ``report.html`` into the run's folder, and return its path.

    Args:
        trainer: that of the main process, after training.
        results: of its last evaluation, as Detectron2 returns them: ``{"bbox": {"AP": …}}``, in percent.
        minutes: duration of the training.
        command: the command line.
    """
    cfg, box = trainer.cfg, results["bbox"]
    model = trainer.checkpointer.model  # not wrapped for several processes
    dataset = cfg.DATASETS.TEST[0]
    classes = MetadataCatalog.get(dataset).thing_classes
    # The first images with several objects and, if these are too few, others.
    records = sorted(DatasetCatalog.get(dataset), key=lambda record: len(record["annotations"]) < 4)[:_NUM_IMAGES]
    found, attention = _find(cfg, model, records, classes)
    sections = [
        Section(
            "What it finds",
            f"Images of {dataset} that were not trained on: on the left the annotations, on the right what the model "
            f"found with a score over {SCORE_THRESHOLD}.",
            images=found,
        ),
        Section("How it learned", images=[ReportImage(plot_training({"demo": Path(cfg.OUTPUT_DIR)}))]),
        Section(
            "AP by class",
            "Average precision over IoU 0.5 to 0.95, in percent.",
            bars=[Bar(name, box[f"AP-{name}"]) for name in classes if np.isfinite(box[f"AP-{name}"])],
        ),
        Section(
            "Where queries look",
            "Cross attention of the last decoder layer: what each object query reads from the image to find its box.",
            images=attention,
        ),
        Section("What was run", facts=_facts(trainer, minutes), commands=[command]),
    ]
    statistics = [(f"{box[key]:.1f}", f"box {key}") for key in ("AP", "AP50", "AP75")]
    statistics += [(f"{minutes:.1f} min", "of training"), (f"{cfg.SOLVER.MAX_ITER:,}", "iterations")]
    lead = (
        f"{_describe(cfg)}, trained from random weights for {minutes:.1f} minutes on {_device(cfg)}, finds objects "
        f"of {len(classes)} classes in images that it was not trained on with a box AP of {box['AP']:.1f}."
    )
    path = Path(cfg.OUTPUT_DIR) / "report.html"
    with atomic_file(str(path)) as file:
        file.write(render_report("DETR learns shapes", lead, statistics, sections).encode("utf-8"))
    return path


@torch.no_grad()
def _find(
    cfg: CfgNode, model: nn.Module, records: list[dict], classes: list[str]
) -> tuple[list[ReportImage], list[ReportImage]]:
    """Return the annotations beside what the model finds, and where its queries look in the first images."""
    model.eval()
    mapper = DetrDatasetMapper(cfg, is_train=False)
    found_images, attention_images = [], []
    for record in records:
        image = read_image(record["file_name"], "RGB")
        with record_attention(model) as attention:
            found = model([mapper(record)])[0]["instances"].to("cpu")
        both = [draw_instances(image, x, classes, SCORE_THRESHOLD, _SCALE) for x in (record["annotations"], found)]
        gap = np.full((both[0].shape[0], 12, 3), 255, dtype=np.uint8)
        shown = int((found.scores >= SCORE_THRESHOLD).sum())
        caption = f"{len(record['annotations'])} objects · {shown} found"
        found_images.append(ReportImage(np.concatenate((both[0], gap, both[1]), axis=1), caption, width=0.5))
        if len(attention_images) < _NUM_ATTENTION:
            attention_images.append(ReportImage(draw_query_attention(image, found, attention, classes, top=5)))
    return found_images, attention_images


def _facts(trainer: Trainer, minutes: float) -> list[tuple[str, str]]:
    cfg = trainer.cfg
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return [
        ("model", f"{_describe(cfg)}, {parameters / 1e6:.1f} M parameters, all of them trained from random values"),
        ("transformer", f"{cfg.MODEL.DETR.ENC_LAYERS} encoder and {cfg.MODEL.DETR.DEC_LAYERS} decoder layers, "
                        f"{cfg.MODEL.DETR.NUM_OBJECT_QUERIES} object queries of {cfg.MODEL.DETR.HIDDEN_DIM} channels"),
        ("data", f"{', '.join(cfg.DATASETS.TRAIN)} to train on, {', '.join(cfg.DATASETS.TEST)} to evaluate on"),
        ("training", f"{cfg.SOLVER.MAX_ITER:,} iterations of {cfg.SOLVER.IMS_PER_BATCH} images in {minutes:.1f} "
                     f"minutes, evaluations included; learning rate {cfg.SOLVER.BASE_LR:g}"),
        ("machine", _device(cfg)),
        ("software", f"PyTorch {torch.__version__}, Python {platform.python_version()}"),
        ("files", str(Path(cfg.OUTPUT_DIR).resolve())),
    ]  # fmt: skip


def _describe(cfg: CfgNode) -> str:
    detr = cfg.MODEL.DETR
    name, scale = (
        ("SMCA-DETR", f"{detr.SMCA.DYNAMIC_SCALE}, ") if detr.TRANSFORMER == "SmcaTransformer" else ("DETR", "")
    )
    return f"{name} ({scale}{detr.CLASS_LOSS} loss) on a ResNet-{cfg.MODEL.RESNETS.DEPTH}"


def _device(cfg: CfgNode) -> str:
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return torch.cuda.get_device_name()
    cores = min(torch.get_num_threads() * comm.get_world_size(), os.cpu_count())
    return f"{cores} CPU core{'s' if cores > 1 else ''}"
