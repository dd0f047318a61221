"""Writes a dataset of shapes to a folder: images, instances and panoptic segments in COCO's formats."""

import json
import logging
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image
from tqdm import tqdm

from detr_d2.data.shapes.scene import Scene, draw_scene
from detr_d2.data.shapes.spec import STUFF_CLASSES, THING_CLASSES, ShapesSpec

logger = logging.getLogger(__name__)

IMAGES, INSTANCES, PANOPTIC_MAPS, PANOPTIC = "images", "instances.json", "panoptic", "panoptic.json"
# The first id of stuff; those of things start at 1.
FIRST_STUFF_ID = 101


def write_dataset(spec: ShapesSpec, folder: Path) -> None:
    """Draw all images of ``spec`` into ``folder``, which exists and is empty."""
    logger.info("Drawing %d images of shapes into %s", spec.num_images, folder)
    (folder / IMAGES).mkdir()
    (folder / PANOPTIC_MAPS).mkdir()
    images, annotations, panoptic = [], [], []
    for index in tqdm(range(spec.num_images), desc="drawing shapes", unit="image", disable=None, leave=False):
        scene = draw_scene(spec, index)
        name = f"{index + 1:06d}"
        Image.fromarray(scene.image).save(folder / IMAGES / f"{name}.jpg", quality=92, subsampling=0)
        height, width = scene.segments.shape
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": height, "width": width})
        objects = _annotate_things(scene, index + 1, first_id=len(annotations) + 1)
        annotations.extend(objects)
        Image.fromarray(_to_rgb(scene.segments + 1)).save(folder / PANOPTIC_MAPS / f"{name}.png")
        segments = [*_annotate_stuff(scene), *(_as_segment(x, scene, i) for i, x in enumerate(objects))]
        panoptic.append({"image_id": index + 1, "file_name": f"{name}.png", "segments_info": segments})
    things, stuff = categories()
    info = {"description": f"drawn by detr_d2 from {spec}"}
    instances = {"info": info, "images": images, "annotations": annotations, "categories": things}
    (folder / INSTANCES).write_text(json.dumps(instances))
    panoptic = {"info": info, "images": images, "annotations": panoptic, "categories": [*things, *stuff]}
    (folder / PANOPTIC).write_text(json.dumps(panoptic))


def categories() -> tuple[list[dict], list[dict]]:
    """Things and stuff, as the json files list them."""

    def describe(names: tuple[str, ...], first_id: int, is_thing: int) -> list[dict]:
        return [{"id": i, "name": name, "isthing": is_thing} for i, name in enumerate(names, first_id)]

    return describe(THING_CLASSES, 1, is_thing=1), describe(STUFF_CLASSES, FIRST_STUFF_ID, is_thing=0)


def _annotate_things(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    numbers = np.arange(len(scene.stuff), len(scene.stuff) + len(scene.things))
    masks = np.asfortranarray((scene.segments[..., None] == numbers).astype(np.uint8))
    rles = coco_mask.encode(masks) if len(numbers) else []
    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": thing + 1,
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": int(coco_mask.area(rle)),
            "iscrowd": 0,
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        }
        for i, (thing, rle) in enumerate(zip(scene.things, rles, strict=True))
    ]


def _annotate_stuff(scene: Scene) -> list[dict]:
    segments = []
    for number, stuff in enumerate(scene.stuff):
        mask = np.asfortranarray((scene.segments == number).astype(np.uint8))
        rle = coco_mask.encode(mask)
        segments.append(
            {
                "id": number + 1,
                "category_id": FIRST_STUFF_ID + stuff,
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": int(coco_mask.area(rle)),
                "iscrowd": 0,
            }
        )
    return segments


def _as_segment(annotation: dict, scene: Scene, index: int) -> dict:
    kept = {key: annotation[key] for key in ("category_id", "bbox", "area", "iscrowd")}
    return {"id": len(scene.stuff) + index + 1, **kept}


def _to_rgb(ids: np.ndarray) -> np.ndarray:
    """Segment ids as colours, R + 256 G + 65536 B, as in COCO's panoptic PNGs."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
