"""Fixtures of runs on a few images of noise."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

# Of half a million parameters, since several checkpoints are written.
TINY_RESNET = (
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 8),
)


@pytest.fixture
def noise_records(tmp_path) -> list[dict]:
    """Write seven images of noise, tall and wide, and return records with two objects each, of five classes."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(7):
        width, height = (48, 32) if i % 3 else (32, 40)
        file = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
        annotations = []
        for x, y in ((2, 3), (10 + i, 12)):
            polygon = [x, y, x + 12, y, x + 12, y + 9, x, y + 9]
            box = {"bbox": [x, y, 12, 9], "bbox_mode": 1, "segmentation": [polygon]}
            annotations.append({**box, "category_id": i % 5, "iscrowd": 0})
        record = {"file_name": str(file), "image_id": i, "height": height, "width": width}
        records.append({**record, "annotations": annotations})
    return records


@pytest.fixture
def make_run_cfg(make_cfg):
    """Return a function that makes the config of a short run on the dataset "noise" into a folder, which it makes."""

    def make(folder: Path, *options) -> CfgNode:
        folder.mkdir(exist_ok=True)
        return make_cfg(
            *("DATASETS.TRAIN", ("noise",), "DATASETS.TEST", (), "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", 6),
            *("SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.IMS_PER_BATCH", 4, "DATALOADER.NUM_WORKERS", 0),
            *("INPUT.MIN_SIZE_TRAIN", (32, 48), "INPUT.CROP.RESIZE_SIZES", (32, 40), "INPUT.CROP.SIZE", (20, 30)),
            *("MODEL.DETR.ENC_LAYERS", 1, "MODEL.DETR.DEC_LAYERS", 2, *TINY_RESNET, *options),
        )

    return make
