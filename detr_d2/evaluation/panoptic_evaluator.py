"""An evaluator of panoptic results, with the interface and the results of Detectron2's, without panopticapi."""

import itertools
import logging
import math
import os
from collections import defaultdict
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from detr_d2.data.panoptic import PanopticCategories
from detr_d2.data.panoptic.segments import read_segment_map
from detr_d2.evaluation import panoptic_files
from detr_d2.evaluation.panoptic_quality import (
    Quality,
    SegmentCounts,
    class_quality,
    count_segments,
    mean_quality,
)
from detr_d2.utils.errors import UserError

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic quality (arXiv 1801.00868) of outputs with ``panoptic_seg``, as COCO computes it.

    Every process compares the images that it gets with their annotations at once; only counts are gathered.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        """
        Args:
            dataset_name: a dataset whose metadata hold ``panoptic_json`` and ``panoptic_root``.
            output_dir: :mod:`~detr_d2.evaluation.panoptic_files` come into the folder ``dataset_name/panoptic`` in it.

        Raises:
            UserError: the metadata do not tell classes, or the annotations cannot be read.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._categories = PanopticCategories.from_metadata(metadata)
        self._json = PathManager.get_local_path(metadata.panoptic_json)
        self._root = PathManager.get_local_path(metadata.panoptic_root)
        self._annotations = panoptic_files.read_annotations(self._json)
        self.folder = output_dir and os.path.join(output_dir, dataset_name, "panoptic")
        self.reset()

    def reset(self) -> None:
        self._counts: list[dict[int, SegmentCounts]] = []
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: dicts with ``image_id`` and ``file_name``.
            outputs: dicts with ``panoptic_seg``: (H, W) segment ids, 0 for void, and a list of dicts with "id" and
                "category_id", a row of the class head.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            found = ids.cpu().numpy()
            segments = [self._to_dataset(x) for x in segments]
            annotation = self._annotations.get(sample["image_id"])
            if annotation is None:
                raise UserError(f"{self._json} has no annotation of image {sample['image_id']}, {sample['file_name']}.")
            path = os.path.join(self._root, annotation["file_name"])
            truth = read_segment_map(path, found.shape)
            self._counts.append(count_segments(truth, annotation["segments_info"], found, segments))
            name = os.path.splitext(annotation["file_name"])[0] + ".png"
            self._predictions.append({"image_id": sample["image_id"], "file_name": name, "segments_info": segments})
            if self.folder:
                panoptic_files.write_ids(os.path.join(self.folder, panoptic_files.PICTURES, name), found)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """
        Returns:
            on the main process ``{"panoptic_seg": {"PQ": …, "SQ", "RQ", "PQ_th" of things, …, "PQ_st" of stuff, …}}``
            in percent, NaN where no class occurs; nothing on the others.
        """
        comm.synchronize()
        gathered = comm.gather(self._counts), comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        counts, predictions = (list(itertools.chain(*x)) for x in gathered)
        if not predictions:
            logger.warning("%s: no panoptic results to evaluate.", self._dataset_name)
            return {}
        if len(predictions) < len(self._annotations):
            logger.warning(
                "%s: %d of %d annotated images were evaluated.",
                *(self._dataset_name, len(predictions), len(self._annotations)),
            )
        totals = defaultdict(SegmentCounts)
        for category, x in itertools.chain(*(x.items() for x in counts)):
            totals[category] += x
        qualities = [class_quality(totals[x.id]) for x in self._categories]
        groups = self._groups(qualities)
        if self.folder:
            panoptic_files.write_predictions(self.folder, self._json, predictions)
            panoptic_files.write_per_class(self.folder, self._categories, [totals[x.id] for x in self._categories])
        logger.info("Panoptic quality on %s:\n%s", self._dataset_name, _table(groups))
        return {"panoptic_seg": _flat(groups)}

    def _groups(self, qualities: list[Quality]) -> dict[str, Quality]:
        things = [q for x, q in zip(self._categories, qualities, strict=True) if x.is_thing]
        stuff = [q for x, q in zip(self._categories, qualities, strict=True) if not x.is_thing]
        return {"all": mean_quality(qualities), "things": mean_quality(things), "stuff": mean_quality(stuff)}

    def _to_dataset(self, segment: dict) -> dict[str, Any]:
        """With the category's id in the dataset for its row."""
        row = segment["category_id"]
        if not 0 <= row < len(self._categories):
            raise UserError(
                f"A segment is of class {row}, but {self._dataset_name} has {len(self._categories)} classes: set "
                f"MODEL.DETR.NUM_CLASSES {len(self._categories)}."
            )
        return {**{k: v for k, v in segment.items() if k != "isthing"}, "category_id": self._categories[row].id}


def _flat(groups: dict[str, Quality]) -> dict[str, float]:
    suffixes = {"all": "", "things": "_th", "stuff": "_st"}
    return {
        f"{name.upper()}{suffix}": getattr(groups[group], name)
        for group, suffix in suffixes.items()
        for name in ("pq", "sq", "rq")
    }


def _table(groups: dict[str, Quality]) -> str:
    rows = [[name, x.pq, x.sq, x.rq, x.classes] for name, x in groups.items()]
    rows = [["-" if isinstance(x, float) and math.isnan(x) else x for x in row] for row in rows]
    return tabulate(rows, headers=["", "PQ", "SQ", "RQ", "classes"], tablefmt="pipe", floatfmt=".2f")
