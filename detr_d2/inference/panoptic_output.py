"""Panoptic results as files: COCO's json and pictures of segment ids."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor

from detr_d2.evaluation import panoptic_files
from detr_d2.inference.categories import Categories

PANOPTIC = "panoptic.json"
PICTURES = "panoptic"


class PanopticOutput:
    """Panoptic results in a folder: ``panoptic/`` with a picture an image, and ``panoptic.json``."""

    def __init__(self, folder: Path, categories: Categories, is_thing: Sequence[bool]):
        """
        Args:
            is_thing: of each of the categories.
        """
        self._folder = folder
        self._categories = categories
        self._is_thing = is_thing
        self._annotations: list[dict] = []

    def add(self, image_id: int, panoptic_seg: tuple[Tensor, list[dict[str, Any]]]) -> None:
        ids, segments = panoptic_seg
        name = f"{image_id:06}.png"
        panoptic_files.write_ids(str(self._folder / PICTURES / name), ids.numpy())
        infos = [self._describe(x) for x in segments]
        self._annotations.append({"image_id": image_id, "file_name": name, "segments_info": infos})

    def finish(self, images: list[dict]) -> None:
        """
        Args:
            images: as in a COCO file.
        """
        categories = [
            {**x, "isthing": int(is_thing)}
            for x, is_thing in zip(self._categories.to_coco(), self._is_thing, strict=True)
        ]
        content = {"images": images, "annotations": self._annotations, "categories": categories}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (self._folder / PANOPTIC).write_text(text, encoding="utf-8")

    def _describe(self, segment: dict[str, Any]) -> dict[str, Any]:
        category = self._categories.ids[segment["category_id"]]
        score = round(segment["score"], 5)
        return {"id": segment["id"], "category_id": category, "area": segment["area"], "score": score}


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """(H, W) bool as COCO's compressed run lengths: "size" and "counts"."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}
