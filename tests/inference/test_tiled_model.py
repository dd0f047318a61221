import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from detr_d2.engine import Trainer
from detr_d2.inference import Predictor, TiledModel, prediction_config, with_tiles
from detr_d2.inference.predictor import Categories
from detr_d2.utils.errors import UserError


class Oracle(nn.Module):
    """Detector that can't be wrong: pixels of object i have the value i in the first channel, its class in the next."""

    def forward(self, batched_inputs):
        self.sizes = [tuple(x["image"].shape[1:]) for x in batched_inputs]
        return [{"instances": self._detect(x["image"])} for x in batched_inputs]

    def _detect(self, image):
        ids = [x for x in image[0].unique().tolist() if x]
        masks = torch.stack([image[0] == x for x in ids]) if ids else torch.zeros(0, *image.shape[1:], dtype=torch.bool)
        instances = Instances(tuple(image.shape[1:]), pred_masks=masks)
        rows, columns = masks.any(2), masks.any(1)
        ends = [[f(x.nonzero()[:, 0]) for x in (c, r) for f in (min, max)] for r, c in zip(rows, columns, strict=True)]
        boxes = [[int(x0), int(y0), int(x1) + 1, int(y1) + 1] for x0, x1, y0, y1 in ends]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.pred_classes = torch.tensor([int(image[1][mask][0]) for mask in masks], dtype=torch.int64)
        instances.scores = torch.tensor(ids, dtype=torch.float32) / 256
        return instances


def scene(seed, height=170, width=230):
    """Return an image of frames and bars of any size up to half the image, at some distance from each other."""
    generator = np.random.default_rng(seed)
    image, occupied = np.zeros((height, width, 3), dtype=np.uint8), np.zeros((height, width), dtype=bool)
    number = 0
    for _ in range(300):
        h, w = generator.integers(4, (height // 2, width // 2))
        y, x = generator.integers(0, (height - h, width - w))
        if occupied[max(0, y - 3) : y + h + 3, max(0, x - 3) : x + w + 3].any():
            continue
        number += 1
        occupied[y : y + h, x : x + w] = True
        image[y : y + h, x : x + w, :2] = number, number % 2
        # The mask is not the box.
        image[y + 1 : y + h - 1, x + 1 : x + w - 1][generator.random((h - 2, w - 2)) < 0.4] = 0
    assert number > 5
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("tile", "overlap", "whole"), [(64, 0.25, False), (100, 0.1, False), (64, 0.5, True)])
def test_objects_and_masks_are_those_of_the_whole_image(seed, tile, overlap, whole):
    """Objects inside a tile, in overlaps, across one border and across four tiles: equal to the pixel."""
    image, oracle = scene(seed), Oracle()
    expected = oracle([{"image": image}])[0]["instances"]
    tiled = TiledModel(oracle, [], tile, overlap, whole_image=whole, batch_size=3)
    assert len(tiled.windows(170, 230)) > 5
    (result,) = tiled([{"image": image}])
    found = result["instances"]
    order = expected.scores.argsort(descending=True)
    assert torch.equal(found.scores, expected.scores[order])
    assert torch.equal(found.pred_classes, expected.pred_classes[order])
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor[order])
    assert torch.equal(found.pred_masks, expected.pred_masks[order])


def test_tiles_are_predicted_in_batches():
    oracle = Oracle()
    tiled = TiledModel(oracle, [], 100, 0.0, batch_size=4)
    tiled([{"image": torch.zeros(3, 150, 250, dtype=torch.uint8)}])
    assert oracle.sizes == [(100, 100)] * 2


def test_every_tile_is_resized():
    oracle = Oracle()
    tiled = TiledModel(oracle, [T.Resize((50, 50))], 100, 0.0, batch_size=9)
    tiled([{"image": torch.zeros(3, 150, 250, dtype=torch.uint8)}])
    assert oracle.sizes == [(50, 50)] * 6


@pytest.mark.parametrize("options", [(), ("MODEL.MASK_ON", True, "INPUT.FAST_RESIZE_TEST", True)])
def test_an_image_no_larger_than_a_tile_has_the_plain_result(save_trained, options):
    """Bit by bit, with and without a score threshold."""
    config, weights = save_trained(*options)
    keys = ["MODEL.WEIGHTS", str(weights)]
    image = np.random.default_rng(0).integers(256, size=(60, 90, 3), dtype=np.uint8)
    plain = Predictor.from_config(prediction_config(str(config), keys))
    tiled = Predictor.from_config(prediction_config(str(config), [*keys, "MODEL.DETR.TEST.TILES", "90"]))
    (expected,), (found,) = plain([image]), tiled([image])
    assert found.get_fields().keys() == expected.get_fields().keys()
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    for name in expected.get_fields():
        if name != "pred_boxes":
            assert torch.equal(found.get(name), expected.get(name)), name


def test_the_config(make_cfg, make_model):
    model = make_model("MODEL.DETR.TEST.SCORE_THRESHOLD", 0.1)
    tiles = ("MODEL.DETR.TEST.TILES", 64, "MODEL.DETR.TEST.TILE_WHOLE_IMAGE", True)
    cfg = make_cfg(*tiles, "TEST.BATCH_SIZE", 2, "INPUT.MIN_SIZE_TEST", 64)
    tiled, augmentations = with_tiles(model, cfg)
    assert augmentations == []
    assert (tiled.tile, tiled.overlap, tiled.whole_image, tiled.threshold, tiled.batch_size) == (64, 0.2, True, 0.5, 2)
    categories = Categories(list("abcde"), [1, 2, 3, 4, 5])
    image = np.random.default_rng(0).integers(256, size=(70, 90, 3), dtype=np.uint8)
    ((_, _, result),) = Predictor(tiled, augmentations, "RGB", categories).predict([(0, image)])
    assert result["instances"].image_size == (70, 90)
    assert result["highest_score"] == pytest.approx(float(result["instances"].scores[0]))
    assert with_tiles(model, make_cfg())[0] is model


def test_panoptic_models_are_refused(make_model):
    model = nn.Module()
    model.panoptic = object()
    with pytest.raises(UserError, match=r"MODEL\.DETR\.PANOPTIC\.ENABLED False"):
        TiledModel(model, [], 100)


def test_evaluation_reads_images_that_are_not_resized(make_cfg, catalog, tmp_path):
    Image.new("RGB", (90, 70)).save(tmp_path / "a.png")
    catalog("tiled", [{"file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 70, "width": 90}])
    cfg = make_cfg("INPUT.MIN_SIZE_TEST", 40, "DATALOADER.NUM_WORKERS", 0)
    sizes = []
    for tiles in (0, 64):
        cfg.MODEL.DETR.TEST.TILES = tiles
        ((record,),) = Trainer.build_test_loader(cfg, "tiled")
        sizes.append(tuple(record["image"].shape))
    assert sizes == [(3, 40, 51), (3, 70, 90)]
