"""Report of the demo on the results of training: one HTML file that holds its images."""

import io
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils import comm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from detr_d2.cli.html import data_uri, render_template
from detr_d2.config import file_channels
from detr_d2.data import DetrDatasetMapper
from detr_d2.data.bands import to_display
from detr_d2.data.images import read_image
from detr_d2.engine.trainer import Trainer
from detr_d2.modeling import record_attention
from detr_d2.utils.files import atomic_file
from detr_d2.visualization import draw_instances, draw_query_attention, plot_training

SCORE_THRESHOLD = 0.4
_NUM_IMAGES, _NUM_ATTENTION = 8, 2
# Small images are enlarged to about this, since labels need space.
_SHORT_SIDE = 400


@dataclass(frozen=True)
class ReportImage:
    """Image, (H, W, 3) uint8 RGB or a plot, with a caption; ``width`` is its share of the page's width, in [0, 1]."""

    content: NDArray[np.uint8] | Figure
    caption: str = ""
    width: float = 1.0

    @property
    def source(self) -> str:
        """Address of an HTML image that contains the PNG itself."""
        buffer = io.BytesIO()
        if isinstance(self.content, Figure):
            self.content.savefig(buffer, format="png", dpi=150)
        else:
            Image.fromarray(self.content).save(buffer, format="png", optimize=True)
        return data_uri(buffer.getvalue(), "png")


@dataclass(frozen=True)
class Section:
    """A section of a report; empty fields are not shown."""

    title: str
    text: str = ""
    images: Sequence[ReportImage] = ()
    bars: Sequence[tuple[str, float]] = ()  # Names, and numbers from 0 to 100.
    facts: Sequence[tuple[str, str]] = ()  # Rows of a table: name and value.
    commands: Sequence[str] = ()


def render_report(title: str, lead: str, statistics: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Return HTML that needs no other file.

    ``lead`` states the result in a sentence or two, ``statistics`` are the most important numbers, as (number, name).
    """
    return render_template("report.html", title=title, lead=lead, statistics=statistics, sections=sections)


def write_report(trainer: Trainer, results: dict, minutes: float, command: str) -> Path:
    """Write ``report.html`` into the run's folder, after training, and return its path.

    ``results`` are those of the last evaluation, in Detectron2's form: ``{"bbox": {"AP": …}}``, in percent.
    """
    cfg, box, dataset = trainer.cfg, results["bbox"], trainer.cfg.DATASETS.TEST[0]
    classes = MetadataCatalog.get(dataset).thing_classes
    # The first images with several objects and, if these are too few, others.
    records = sorted(DatasetCatalog.get(dataset), key=lambda x: len(x["annotations"]) < 4)[:_NUM_IMAGES]
    detections = (
        f"Images of {dataset} that were not used in training: ground truth on the left, detections with a score of at "
        f"least {SCORE_THRESHOLD} on the right."
    )
    maps = "Cross-attention of the last decoder layer: the features that each object query attends to."
    bars = [(name, box[f"AP-{name}"]) for name in classes if np.isfinite(box[f"AP-{name}"])]
    sections = [
        Section("Detections", detections, images=[_prediction(trainer, x, classes) for x in records]),
        Section("Training curves", images=[ReportImage(plot_training({"demo": Path(cfg.OUTPUT_DIR)}))]),
        Section("AP by class", "Average precision over IoU 0.5 to 0.95, in percent.", bars=bars),
        Section("Cross-attention maps", maps, [_attention(trainer, x, classes) for x in records[:_NUM_ATTENTION]]),
        Section("Settings", facts=_facts(trainer, minutes), commands=[command]),
    ]
    statistics = [(f"{box[key]:.1f}", f"box {key}") for key in ("AP", "AP50", "AP75")]
    statistics += [(f"{minutes:.1f} min", "of training"), (f"{cfg.SOLVER.MAX_ITER:,}", "iterations")]
    lead = (
        f"{_describe(cfg)}, trained from {_initial_weights(cfg)} for {minutes:.1f} minutes on {_device(cfg)}, detects "
        f"objects of {len(classes)} classes in images that were not used in training with a box AP of {box['AP']:.1f}."
    )
    title = "DETR learns shapes" if dataset.startswith("shapes") else "DETR learns your objects"
    path = Path(cfg.OUTPUT_DIR) / "report.html"
    with atomic_file(path) as file:
        file.write(render_report(title, lead, statistics, sections).encode("utf-8"))
    return path


def _prediction(trainer: Trainer, record: dict, classes: list[str]) -> ReportImage:
    image, detected, truth = _read(trainer, record), _detect(trainer, record), record["annotations"]
    scale = max(1, round(_SHORT_SIDE / min(image.shape[:2])))
    left, right = (draw_instances(image, x, classes, SCORE_THRESHOLD, scale) for x in (truth, detected))
    gap = np.full((len(left), 12, 3), 255, dtype=np.uint8)
    caption = f"{len(truth)} objects · {int((detected.scores >= SCORE_THRESHOLD).sum())} detections"
    return ReportImage(np.concatenate((left, gap, right), axis=1), caption, width=0.5)


def _attention(trainer: Trainer, record: dict, classes: list[str]) -> ReportImage:
    with record_attention(trainer.trained_model) as attention:
        detected = _detect(trainer, record)
    return ReportImage(draw_query_attention(_read(trainer, record), detected, attention, classes))


def _read(trainer: Trainer, record: dict) -> np.ndarray:
    return to_display(read_image(record["file_name"], "RGB", channels=file_channels(trainer.cfg)))


@torch.no_grad()
def _detect(trainer: Trainer, record: dict) -> Instances:
    # Not wrapped for several processes.
    model = trainer.trained_model.eval()
    return model([DetrDatasetMapper(trainer.cfg, is_train=False)(record)])[0]["instances"].to("cpu")


def _facts(trainer: Trainer, minutes: float) -> list[tuple[str, str]]:
    cfg, detr = trainer.cfg, trainer.cfg.MODEL.DETR
    parameters = sum(p.numel() for p in trainer.trained_model.detr.parameters())
    return [
        ("model", f"{_describe(cfg)}, {parameters / 1e6:.1f} M parameters, trained from {_initial_weights(cfg)}"),
        ("transformer", f"{detr.ENC_LAYERS} encoder and {detr.DEC_LAYERS} decoder layers, "
                        f"{detr.NUM_OBJECT_QUERIES} object queries of {detr.HIDDEN_DIM} channels"),
        ("data", f"{', '.join(cfg.DATASETS.TRAIN)} to train on, {', '.join(cfg.DATASETS.TEST)} to evaluate on"),
        ("training", f"{cfg.SOLVER.MAX_ITER:,} iterations of {cfg.SOLVER.IMS_PER_BATCH} images in {minutes:.1f} "
                     f"minutes, evaluations included; learning rate {cfg.SOLVER.BASE_LR:g}"),
        ("machine", _device(cfg)),
        ("software", f"PyTorch {torch.__version__}, Python {platform.python_version()}"),
        ("files", str(Path(cfg.OUTPUT_DIR).resolve())),
    ]  # fmt: skip


def _describe(cfg: CfgNode) -> str:
    detr = cfg.MODEL.DETR
    kind = {"SmcaTransformer": "SMCA-DETR", "MultiScaleSmcaTransformer": "multi-scale SMCA-DETR"}.get(detr.TRANSFORMER)
    name = "DETR (" if kind is None else f"{kind} ({detr.SMCA.DYNAMIC_SCALE}, "
    is_timm = cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"
    backbone = cfg.MODEL.TIMM.NAME if is_timm else f"a ResNet-{cfg.MODEL.RESNETS.DEPTH}"
    return f"{name}{detr.CLASS_LOSS} loss) on {backbone}"


def _initial_weights(cfg: CfgNode) -> str:
    weights = cfg.MODEL.WEIGHTS
    if not weights and cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
        weights = cfg.MODEL.TIMM.WEIGHTS or (cfg.MODEL.TIMM.NAME if cfg.MODEL.TIMM.PRETRAINED else "")
    return f"the weights in {os.path.basename(weights)}" if weights else "random weights"


def _device(cfg: CfgNode) -> str:
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return torch.cuda.get_device_name()
    cores = min(torch.get_num_threads() * comm.get_world_size(), os.cpu_count())
    return f"{cores} CPU core{'s' if cores > 1 else ''}"
