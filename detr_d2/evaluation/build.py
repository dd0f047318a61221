"""Which evaluators a dataset gets."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from detr_d2.evaluation.evaluator import DetrCOCOEvaluator
from detr_d2.evaluation.panoptic_evaluator import PanopticEvaluator
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """Box AP, and mask AP where the model gives masks; panoptic quality on panoptic datasets.

    A panoptic dataset, one whose metadata have a ``panoptic_json``, has AP of its things where there is its
    ``json_file`` of instances too.

    Raises:
        UserError: the dataset has nothing that the model's results can be compared with.
    """
    check_evaluation(cfg, dataset_name)
    is_panoptic = _is_panoptic(dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if not is_panoptic or _has_instances(dataset_name):
        evaluators.append(DetrCOCOEvaluator(dataset_name, output_dir))
    if is_panoptic and cfg.MODEL.DETR.PANOPTIC.ENABLED:
        evaluators.append(PanopticEvaluator(dataset_name, output_dir))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def check_evaluation(cfg: CfgNode, dataset_name: str) -> None:
    """
    Raises:
        UserError: as :func:`build_evaluator`, which may be called hours later.
    """
    if cfg.MODEL.DETR.PANOPTIC.ENABLED or not _is_panoptic(dataset_name) or _has_instances(dataset_name):
        return
    raise UserError(
        f"Dataset {dataset_name!r} has panoptic annotations only, and the model gives boxes: set "
        "MODEL.DETR.PANOPTIC.ENABLED True (with MODEL.MASK_ON True), or give the dataset instances (instances_json of "
        "register_coco_panoptic_dataset), or train without evaluation (no --val-json, or DATASETS.TEST '()')."
    )


def _is_panoptic(dataset_name: str) -> bool:
    return bool(MetadataCatalog.get(dataset_name).get("panoptic_json"))


def _has_instances(dataset_name: str) -> bool:
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if not json_file:
        return False
    if os.path.isfile(PathManager.get_local_path(json_file)):
        return True
    logger.warning("%s: there is no %s, so there is no AP of boxes and masks.", dataset_name, json_file)
    return False
