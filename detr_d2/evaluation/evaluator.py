"""Evaluators of a dataset: Detectron2's COCO evaluator with an analysis of each class, and panoptic quality."""

import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools.cocoeval import COCOeval

from detr_d2.evaluation.analysis import analyze
from detr_d2.evaluation.coco import evaluate_results, has_objects
from detr_d2.evaluation.panoptic import PanopticEvaluator
from detr_d2.evaluation.report import FILES, remove_evaluation, write_evaluation
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """Build evaluators of box AP, of mask AP if the model predicts masks, and of panoptic quality on panoptic datasets.

    A panoptic dataset, one whose metadata have a ``panoptic_json``, has AP of its things if its ``json_file`` of
    instances exists too.

    Raises:
        UserError: the dataset has no annotations of what the model predicts.
    """
    check_evaluation(cfg, dataset_name)
    is_panoptic = _is_panoptic(dataset_name)
    kinds = [DetrCOCOEvaluator] if not is_panoptic or _has_instances(dataset_name) else []
    kinds += [PanopticEvaluator] if is_panoptic and cfg.MODEL.DETR.PANOPTIC.ENABLED else []
    evaluators = [kind(dataset_name, output_dir) for kind in kinds]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def check_evaluation(cfg: CfgNode, dataset_name: str) -> None:
    """Check before training that :func:`build_evaluator`, which may be called hours later, will raise no UserError."""
    if not _is_panoptic(dataset_name):
        return
    if _has_instances(dataset_name):
        things = MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id
        if sorted(things.values()) != list(range(len(things))):
            raise UserError(
                f"In dataset {dataset_name!r} the things are not the first classes, so AP can't be computed: register "
                "it with detr_d2.data.register_coco_panoptic_dataset, which orders them, or without its json_file of "
                "instances, to evaluate panoptic quality alone."
            )
        return
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        return
    raise UserError(
        f"Dataset {dataset_name!r} has panoptic annotations only, and the model predicts boxes: set "
        "MODEL.DETR.PANOPTIC.ENABLED True (with MODEL.MASK_ON True), or give the dataset instances (instances_json of "
        "register_coco_panoptic_dataset), or train without evaluation (no --val-json, or DATASETS.TEST '()')."
    )


class DetrCOCOEvaluator(COCOEvaluator):
    """COCO's metrics under Detectron2's names, and :func:`write_evaluation`'s files in a folder for the dataset.

    AP is 0 where Detectron2 has NaN because nothing was detected. Without annotated objects there is no AP at all.
    Detectron2's files are in ``output_dir``, the analysis of boxes in its subfolder ``dataset_name``, that of masks in
    ``segm`` below it.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        # A cached conversion of the dataset would outlive changes in it.
        super().__init__(dataset_name, output_dir=output_dir, allow_cached_coco=False)
        self._folders = {"bbox": os.path.join(output_dir, dataset_name)}
        self._folders["segm"] = os.path.join(self._folders["bbox"], "segm")
        self._dataset_name = dataset_name
        self._do_evaluation = self._do_evaluation and has_objects(self._coco_api)
        # The first classes of a panoptic dataset are things; only these have annotated boxes.
        is_panoptic = bool(self._metadata.get("stuff_dataset_id_to_contiguous_id"))
        self._num_things = len(self._metadata.thing_dataset_id_to_contiguous_id) if is_panoptic else None
        self._has_masks = False

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        if self._num_things is not None:
            outputs = [{"instances": x[x.pred_classes < self._num_things]} for x in (y["instances"] for y in outputs)]
        self._has_masks |= any(x["instances"].has("pred_masks") for x in outputs)
        super().process(inputs, outputs)

    def _tasks_from_predictions(self, predictions: list[dict]) -> list[str]:
        # Detectron2 looks at the detections, of which there may be none.
        tasks = super()._tasks_from_predictions(predictions)
        return sorted({*tasks, "segm"}) if self._has_masks else tasks

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, Any]:
        if comm.is_main_process():
            for folder in self._folders.values():
                remove_evaluation(folder)
            if not self._do_evaluation:
                logger.warning(
                    "%s has no annotated objects (%s), so there is no AP. The detections are in %s.",
                    self._dataset_name,
                    self._metadata.json_file,
                    os.path.join(self._output_dir, "coco_instances_results.json"),
                )
        return super().evaluate(img_ids)

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        if coco_eval is None:
            coco_eval = evaluate_results(self._coco_api, [], iou_type)
        class_names = class_names and class_names[: self._num_things]
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        evaluation, folder = analyze(coco_eval), self._folders[iou_type]
        write_evaluation(evaluation, folder)
        best, text = evaluation.overall.best, "no detection matches an object"
        if best.f1 > 0:
            rates = f"precision {best.precision:.1f}, recall {best.recall:.1f}"
            text = f"best F1 {best.f1:.1f} at score {best.threshold:.2f} ({rates})"
        logger.info("%s: %s. By class: %s in %s", iou_type, text, ", ".join(FILES), folder)
        return results


def _is_panoptic(dataset_name: str) -> bool:
    return bool(MetadataCatalog.get(dataset_name).get("panoptic_json"))


def _has_instances(dataset_name: str) -> bool:
    json_file = MetadataCatalog.get(dataset_name).get("json_file")
    if not json_file:
        return False
    if os.path.isfile(PathManager.get_local_path(json_file)):
        return True
    logger.warning("%s: %s does not exist, so there is no AP of boxes and masks.", dataset_name, json_file)
    return False
