"""Valid inputs of every command: the files that the campaigns damage."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image

from detr_d2.config import load_config

HEIGHT, WIDTH = 30, 40
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.DETR.NUM_CLASSES": 2,
    "MODEL.DETR.NUM_OBJECT_QUERIES": 5,
    "MODEL.DETR.HIDDEN_DIM": 16,
    "MODEL.DETR.NHEADS": 2,
    "MODEL.DETR.DIM_FEEDFORWARD": 16,
    "MODEL.DETR.ENC_LAYERS": 1,
    "MODEL.DETR.DEC_LAYERS": 1,
    "INPUT.MIN_SIZE_TEST": 32,
    "INPUT.MIN_SIZE_TRAIN": (32,),
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 1,
    "DATALOADER.NUM_WORKERS": 0,
}


class Command(NamedTuple):
    """Command line with the names of inputs in braces; ``{out}`` is where it writes, if anywhere."""

    line: str
    reads: tuple[str, ...]  # Names of the inputs that the campaigns damage for it.

    def words(self, files: dict[str, Path]) -> list[str]:
        """Return the arguments, the name of the command first."""
        return [word.format(**files) for word in self.line.split()]


COMMANDS = {
    "check": Command("check --train-json {coco} --train-images {images} --output {out}", ("coco", "image")),
    "train": Command(
        "train --config-file {config} --train-json {coco} --train-images {images} --output {out}", ("coco", "config")
    ),
    "train-panoptic": Command(
        "train --config-file {config} --train-json {panoptic} --train-panoptic {maps} --train-images {images} "
        "--output {out} MODEL.MASK_ON True MODEL.DETR.PANOPTIC.ENABLED True "
        "MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5']",
        ("panoptic", "map"),
    ),
    "eval": Command(
        "eval --config-file {config} --val-json {coco} --val-images {images} --output {out} MODEL.WEIGHTS {weights}",
        ("coco", "config", "weights"),
    ),
    "overfit": Command(
        "overfit --config-file {config} --train-json {coco} --train-images {images} --output {out}", ("coco",)
    ),
    "demo": Command(
        "demo --config-file {config} --train-json {coco} --train-images {images} --output {out} --num-gpus 1", ("coco",)
    ),
    "predict": Command(
        "predict --config-file {config} --input {image} --output {out} MODEL.WEIGHTS {weights}",
        ("image", "config", "weights"),
    ),
    "attention": Command(
        "attention --config-file {config} --input {image} --output {out}.png MODEL.WEIGHTS {weights}",
        ("image", "config", "weights"),
    ),
    "analyze": Command("analyze --config-file {config} --size 32 32 --json {out}", ("config",)),
    "convert": Command("convert --input {weights} --output {out} --nheads 2", ("weights",)),
    "import-via": Command("import-via --input {via} --images {images} --output {out}", ("via", "image")),
    "import-voc": Command("import {voc} --images {images} --output {out}", ("voc", "image")),
    "import-yolo": Command("import {yolo} --output {out}", ("yolo",)),
    "import-json": Command("import {labelme} --format labelme --images {images} --output {out}", ("labelme",)),
    "evaluate-results": Command(
        "evaluate-results --annotations {coco} --input {results} --output {out}", ("coco", "results")
    ),
    "calibrate": Command(
        "calibrate --config-file {config} --weights {weights} --annotations {coco} --images {images} "
        "--false-alarms 0.9 --output {out}",
        ("coco", "image", "config", "weights"),
    ),
    "doctor": Command(
        "doctor --config-file {config} --weights {weights} --annotations {coco} --images {images} --output {out}",
        ("coco", "image", "config", "weights"),
    ),
    "plot": Command("plot --input {run} --output {out}.png", ("metrics",)),
}


def coco() -> dict:
    """Return annotations in COCO's format of two images, one with an RLE."""
    rle = {"size": [HEIGHT, WIDTH], "counts": [605, 10, HEIGHT * WIDTH - 615]}
    polygon = [[2, 3, 12, 3, 12, 10, 2, 10]]
    common = {"iscrowd": 0, "area": 70}
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 7], "segmentation": polygon, **common},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [20, 5, 1, 10], "segmentation": rle, **common},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def panoptic() -> dict:
    """Return the annotations of a map with a thing and stuff."""
    segments = [{"id": 7, "category_id": 1, "area": 600, "iscrowd": 0}, {"id": 9, "category_id": 2, "area": 600}]
    return {
        "images": coco()["images"][:1],
        "annotations": [{"image_id": 1, "file_name": "map.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }


def via() -> dict:
    """Return a rectangle and a polygon in the form of VIA 2."""
    shapes = (
        {"name": "rect", "x": 2, "y": 3, "width": 10, "height": 7},
        {"name": "polygon", "all_points_x": [5, 9, 5], "all_points_y": [5, 5, 9]},
    )
    regions = [{"shape_attributes": x, "region_attributes": {"class": "cat"}} for x in shapes]
    return {"1.png123": {"filename": "1.png", "size": -1, "regions": regions}}


def labelme() -> dict:
    """Return a rectangle and a polygon in the form of LabelMe."""
    shapes = [
        {"label": "cat", "shape_type": "rectangle", "points": [[2, 3], [12, 10]]},
        {"label": "dog", "shape_type": "polygon", "points": [[5, 5], [9, 5], [5, 9]]},
    ]
    return {"shapes": shapes, "imagePath": "1.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}


def results() -> list[dict]:
    """Return a detection of each image."""
    return [{"image_id": i, "category_id": 1, "bbox": [2, 3, 10, 7], "score": 0.9} for i in (1, 2)]


JSONS = {"coco": coco, "panoptic": panoptic, "via": via, "labelme": labelme, "results": results}


VOC = f"""<annotation><filename>1.png</filename><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>
<object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>10</ymax></bndbox></object>
</annotation>"""
YOLO = "train: [images]\nnames: [cat, dog]\n"


def write_inputs(folder: Path) -> dict[str, Path]:
    """Write all inputs to a folder, and return their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.json" for name in JSONS}
    for name, content in JSONS.items():
        files[name].write_text(json.dumps(content()))
    files |= {name: folder / name for name in ("images", "labels", "maps", "run")}
    for name in ("images", "labels", "maps", "run"):
        files[name].mkdir()
    for i in (1, 2):
        pixels = np.random.default_rng(i).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files["images"] / f"{i}.png")
    files["image"], files["map"] = files["images"] / "1.png", files["maps"] / "map.png"
    ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    ids[:, : WIDTH // 2, 0], ids[:, WIDTH // 2 :, 0] = 7, 9
    Image.fromarray(ids).save(files["map"])
    files["voc"], files["yolo"] = folder / "voc.xml", folder / "data.yaml"
    files["voc"].write_text(VOC)
    files["yolo"].write_text(YOLO)
    (files["labels"] / "1.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    files["metrics"] = files["run"] / "metrics.json"
    files["metrics"].write_text("".join(f'{{"iteration": {i}, "total_loss": {9 - i}}}\n' for i in range(5)))
    files["config"], files["weights"] = folder / "config.yaml", folder / "model.pth"
    write_model(files["config"], files["weights"])
    return files


def write_model(config: Path, weights: Path) -> None:
    """Write a small random model with its config, as a training run does."""
    cfg = load_config("Base-DETR")
    cfg.merge_from_list([x for pair in SMALL.items() for x in pair])
    config.write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict(), "class_names": ["cat", "dog"]}, weights)
