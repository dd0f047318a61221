"""Panoptic quality (arXiv 1801.00868), with COCO's rules for void and crowds, and its evaluator.

Detectron2's evaluator has the same results and interface. It needs panopticapi, which requires an older NumPy, writes
all results to disk, and starts as many processes as there are cores.
"""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from tabulate import tabulate

from detr_d2.data.panoptic import PanopticCategories
from detr_d2.data.panoptic.segments import VOID, read_segment_map, write_segment_map
from detr_d2.evaluation.report import round_rate, write_csv
from detr_d2.utils.errors import UserError
from detr_d2.utils.files import read_json, write_json

logger = logging.getLogger(__name__)


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic quality of outputs with ``panoptic_seg``, as COCO computes it.

    Each process compares its images with their annotations immediately; only counts are gathered.

    Args:
        dataset_name: a dataset whose metadata hold ``panoptic_json`` and ``panoptic_root``.
        output_dir: results in COCO's panoptic format (``predictions.json``, and ``predictions/`` with one PNG per
            image) and ``per_class.csv`` are written to the folder ``dataset_name/panoptic`` in it.

    Raises:
        UserError: the metadata have no classes, or the annotations cannot be read.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset_name = dataset_name
        self._categories = PanopticCategories.from_metadata(metadata)
        self._json = PathManager.get_local_path(metadata.panoptic_json)
        self._root = PathManager.get_local_path(metadata.panoptic_root)
        try:
            entries = read_json(self._json, "a JSON file of panoptic annotations")["annotations"]
            self._annotations = {x["image_id"]: (x["file_name"], x["segments_info"]) for x in entries}
        except (KeyError, TypeError) as e:
            raise UserError(f"{self._json} does not hold panoptic annotations in COCO's format ({e!r}).") from e
        self.folder = output_dir and os.path.join(output_dir, dataset_name, "panoptic")
        self.reset()

    def reset(self) -> None:
        self._counts = np.zeros((len(self._categories), 4))
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Compare the ``panoptic_seg`` of the outputs with the annotations of the inputs' ``image_id``.

        It holds (H, W) segment ids, 0 for void, and a list of dicts with "id" and "category_id", a row of the class
        head.
        """
        rows = self._categories.rows
        for sample, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            predicted, image = ids.cpu().numpy(), sample["image_id"]
            segments = [self._to_dataset(x) for x in segments]
            if image not in self._annotations:
                raise UserError(f"{self._json} has no annotation of image {image}, {sample['file_name']}.")
            file_name, true_segments = self._annotations[image]
            truth = read_segment_map(os.path.join(self._root, file_name), predicted.shape)
            for category, counts in count_segments(truth, true_segments, predicted, segments).items():
                if category in rows:
                    self._counts[rows[category]] += counts
            # Below the folder of results, also if it is an absolute path, or leads out of the dataset's folder.
            name = os.path.normpath(f"/{os.path.splitext(file_name)[0]}.png").lstrip("/")
            self._predictions.append({"image_id": image, "file_name": name, "segments_info": segments})
            if self.folder:
                write_segment_map(os.path.join(self.folder, "predictions", name), predicted)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"panoptic_seg": {"PQ": …, "SQ", "RQ", "PQ_th" of things, …, "PQ_st" of stuff, …}}`` in percent.

        NaN where no class occurs. None on processes other than the main one.
        """
        comm.synchronize()
        gathered = comm.gather(self._counts), comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        counts, predictions = sum(gathered[0]), list(itertools.chain(*gathered[1]))
        if not predictions:
            logger.warning("%s: no panoptic results to evaluate.", self._dataset_name)
            return {}
        if len(predictions) < (total := len(self._annotations)):
            logger.warning("%s: %d of %d annotated images were evaluated.", self._dataset_name, len(predictions), total)
        quality = compute_quality(counts)
        if self.folder:
            self._write(predictions, counts, quality)
        is_thing = np.array(self._categories.is_thing)
        groups = {"all": ("", quality), "things": ("_th", quality[is_thing]), "stuff": ("_st", quality[~is_thing])}
        results, table = {}, []
        for name, (suffix, group) in groups.items():
            means = mean_quality(group).tolist()
            results |= zip((f"PQ{suffix}", f"SQ{suffix}", f"RQ{suffix}"), means, strict=True)
            table.append([name, *("-" if np.isnan(x) else x for x in means), np.isfinite(group[:, 0]).sum()])
        text = tabulate(table, headers=["", "PQ", "SQ", "RQ", "classes"], tablefmt="pipe", floatfmt=".2f")
        logger.info("Panoptic quality on %s:\n%s", self._dataset_name, text)
        return {"panoptic_seg": results}

    def _to_dataset(self, segment: dict) -> dict[str, Any]:
        """Replace the row of a segment with the category's id in the dataset."""
        row, num_classes = segment["category_id"], len(self._categories)
        if not 0 <= row < num_classes:
            raise UserError(
                f"A segment is of class {row}, but {self._dataset_name} has {num_classes} classes: set "
                f"MODEL.DETR.NUM_CLASSES {num_classes}."
            )
        return {**{k: v for k, v in segment.items() if k != "isthing"}, "category_id": self._categories[row].id}

    def _write(self, predictions: list[dict[str, Any]], counts: NDArray, quality: NDArray) -> None:
        """Write the files other than the PNGs, and remove older PNGs."""
        folder = os.path.join(self.folder, "predictions")
        for name in set(os.listdir(folder)) - {x["file_name"] for x in predictions}:
            if name.endswith(".png"):
                os.remove(os.path.join(folder, name))
        # The file holds the images and categories of the annotations, too.
        write_json(f"{folder}.json", {**read_json(self._json), "annotations": predictions})
        rows = [["class", "kind", "PQ", "SQ", "RQ", "matched", "false positives", "missed"]]
        for category, numbers, rates in zip(self._categories, counts[:, :3].astype(int), quality, strict=True):
            kind = "thing" if category.is_thing else "stuff"
            rows.append([category.name, kind, *map(round_rate, rates.tolist()), *numbers.tolist()])
        write_csv(os.path.join(self.folder, "per_class.csv"), rows)


def count_segments(
    truth: NDArray, true_segments: Sequence[Mapping], predicted: NDArray, predicted_segments: Sequence[Mapping]
) -> dict[int, NDArray]:
    """Match the segments of an image: pairs with more than half of their union in common, void left out.

    Predicted segments of which more than half is in void or in crowds of their class are not counted, nor are crowds.

    Args:
        truth, predicted: (H, W) segment ids, 0 for void.
        true_segments: dicts with "id", "category_id" and perhaps "iscrowd".
        predicted_segments: dicts with "id" and "category_id".

    Returns:
        By category id (4,) the true positives, false positives, false negatives, and the sum of the true positives'
        intersections over union.
    """
    true_classes = {x["id"]: x["category_id"] for x in true_segments}
    crowd = {x["id"] for x in true_segments if x.get("iscrowd")}
    predicted_classes = {x["id"]: x["category_id"] for x in predicted_segments}
    true_area, predicted_area = _areas(truth), _areas(predicted)
    common = _areas(truth.astype(np.int64) << 32 | predicted.astype(np.int64))
    common = {(pair >> 32, pair & 0xFFFFFFFF): area for pair, area in common.items()}
    counts = {x: np.zeros(4) for x in {*true_classes.values(), *predicted_classes.values()}}

    # Number of pixels without annotation by predicted segment.
    ignored = Counter({j: area for (i, j), area in common.items() if i == VOID})
    union = {(i, j): true_area[i] + predicted_area[j] - area - ignored[j] for (i, j), area in common.items()}
    matched_true, matched_predicted = set(), set()
    for (i, j), area in common.items():
        if i not in true_classes or j not in predicted_classes or true_classes[i] != predicted_classes[j]:
            continue
        if i in crowd:
            ignored[j] += area
        # No two matches share a segment.
        elif 2 * area > union[i, j]:
            counts[true_classes[i]] += (1, 0, 0, area / union[i, j])
            matched_true.add(i)
            matched_predicted.add(j)
    for i in true_classes.keys() - matched_true - crowd:
        counts[true_classes[i]][2] += 1
    for j in predicted_classes.keys() - matched_predicted:
        if 2 * ignored[j] <= predicted_area[j]:
            counts[predicted_classes[j]][1] += 1
    return counts


def compute_quality(counts: NDArray) -> NDArray:
    """Compute panoptic, segmentation and recognition quality, equations (1) and (2); PQ = SQ * RQ.

    From the (K, 4) counts of K classes, see :func:`count_segments`; (K, 3) in percent, NaN for a class that is neither
    annotated nor predicted.
    """
    tp, fp, fn, iou_sum = counts.T
    total = tp + (fp + fn) / 2
    divisor = np.maximum(total, 0.5)
    quality = np.stack([iou_sum / divisor, iou_sum / np.maximum(tp, 1), tp / divisor])
    return np.where(total > 0, 100 * quality, np.nan).T


def mean_quality(quality: NDArray) -> NDArray:
    """Average (K, 3) over the classes that occur: (3,), NaN where none does."""
    occurring = quality[np.isfinite(quality[:, 0])]
    return occurring.mean(axis=0) if len(occurring) else np.full(3, np.nan)


def _areas(ids: NDArray) -> Counter:
    values, areas = np.unique(ids, return_counts=True)
    return Counter(dict(zip(values.tolist(), areas.tolist(), strict=True)))
