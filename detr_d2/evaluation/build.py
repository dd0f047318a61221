"""Which evaluators a dataset gets."""

import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from detr_d2.errors import UserError
from detr_d2.evaluation.evaluator import DetrCOCOEvaluator
from detr_d2.evaluation.panoptic_evaluator import PanopticEvaluator

logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """Box AP, and mask AP where the model gives masks; panoptic quality on panoptic datasets.

    A panoptic dataset, one whose metadata have a ``panoptic_json``, has AP of its things where there is its
    ``json_file`` of instances too.

    Raises:
        UserError: the dataset has nothing that the model's results can be compared with.
    """
    metadata = MetadataCatalog.get(dataset_name)
    is_panoptic = bool(metadata.get("panoptic_json"))
    evaluators: list[DatasetEvaluator] = []
    if not is_panoptic or _has_instances(dataset_name):
        evaluators.append(DetrCOCOEvaluator(dataset_name, output_dir))
    if is_panoptic and cfg.MODEL.DETR.PANOPTIC.ENABLED:
        evaluators.append(PanopticEvaluator(dataset_name, output_dir))
    if not evaluators:
        raise UserError(
            f"Dataset {dataset_name!r} has panoptic annotations only, and the model gives boxes: set "
            "MODEL.DETR.PANOPTIC.ENABLED True (with MODEL.MASK_ON True), or give the dataset a json_file of instances."
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _has_instances(dataset_name: str) -> bool:
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if not json_file:
        return False
    if os.path.isfile(PathManager.get_local_path(json_file)):
        return True
    logger.warning("%s: there is no %s, so there is no AP of boxes and masks.", dataset_name, json_file)
    return False
