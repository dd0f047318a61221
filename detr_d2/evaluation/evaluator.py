"""Detectron2's COCO evaluator, with an analysis by class."""

import logging
import os
from typing import Any

from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools.cocoeval import COCOeval

from detr_d2.evaluation.analysis import Evaluation, OperatingPoint, analyze
from detr_d2.evaluation.coco import evaluate_results, has_objects
from detr_d2.evaluation.files import FILES, remove_evaluation, write_evaluation

logger = logging.getLogger(__name__)


class DetrCOCOEvaluator(COCOEvaluator):
    """COCO's metrics under Detectron2's names, and :func:`write_evaluation`'s files in a folder for the dataset.

    Where Detectron2 has NaN because nothing was detected, AP is 0. Without annotated objects there is no AP at all.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        """
        Args:
            output_dir: Detectron2's files come here, the analysis into the folder ``dataset_name`` in it.
        """
        # A cached conversion of the dataset would outlive changes in it.
        super().__init__(dataset_name, output_dir=output_dir, allow_cached_coco=False)
        self.folder = os.path.join(output_dir, dataset_name)
        self._dataset_name = dataset_name
        self._do_evaluation = self._do_evaluation and has_objects(self._coco_api)
        # Of a panoptic dataset the first classes are things; only these have boxes to compare with.
        is_panoptic = bool(self._metadata.get("stuff_dataset_id_to_contiguous_id"))
        self._num_things = len(self._metadata.thing_dataset_id_to_contiguous_id) if is_panoptic else None
        self._gives_masks = False
        # By task; the last evaluation's, on the main process.
        self.evaluations: dict[str, Evaluation] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        if self._num_things is not None:
            outputs = [{"instances": _first_classes(x["instances"], self._num_things)} for x in outputs]
        self._gives_masks |= any(x["instances"].has("pred_masks") for x in outputs)
        super().process(inputs, outputs)

    def _tasks_from_predictions(self, predictions: list[dict]) -> list[str]:
        # Detectron2 looks at what was found, which may be nothing.
        tasks = super()._tasks_from_predictions(predictions)
        return sorted({*tasks, "segm"}) if self._gives_masks else tasks

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, Any]:
        self.evaluations = {}
        if comm.is_main_process():
            for task in ("bbox", "segm"):
                remove_evaluation(self._task_folder(task))
            if not self._do_evaluation:
                logger.warning(
                    "%s has no annotated objects (%s), so there is no AP. What is detected is in %s.",
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
        evaluation = self.evaluations[iou_type] = analyze(coco_eval)
        folder = self._task_folder(iou_type)
        write_evaluation(evaluation, folder)
        best = _describe(evaluation.overall.best)
        logger.info("%s: %s. By class: %s in %s", iou_type, best, ", ".join(FILES), folder)
        return results

    def _task_folder(self, task: str) -> str:
        return self.folder if task == "bbox" else os.path.join(self.folder, task)


def _describe(best: OperatingPoint) -> str:
    if not best.f1 > 0:
        return "no detection matches an object"
    return (
        f"best F1 {best.f1:.1f} at score {best.threshold:.2f} "
        f"(precision {best.precision:.1f}, recall {best.recall:.1f})"
    )


def _first_classes(instances: Instances, count: int) -> Instances:
    return instances[instances.pred_classes < count]
