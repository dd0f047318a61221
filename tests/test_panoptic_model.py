"""Boxes, masks and panoptic results of one forward pass, in the trainer's evaluation and the prediction tool."""

import importlib.util
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from PIL import Image

from detr_d2.data.panoptic import coco_panoptic_categories
from detr_d2.engine import Trainer
from detr_d2.modeling.postprocessing import PanopticRules, box_instances, panoptic_segmentation

DATASET = "test_panoptic_model"
OPTIONS = (
    *("MODEL.MASK_ON", True, "MODEL.DETR.PANOPTIC.ENABLED", True, "MODEL.DETR.NUM_CLASSES", 133),
    # With random weights some queries are confident enough, and some are not.
    *("MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", 0.02),
)


@pytest.fixture
def panoptic_model(make_model):
    """Return a function that builds a small panoptic model whose queries have many classes."""

    def make(*options):
        model = make_model(*OPTIONS, *options)
        with torch.no_grad():
            model.detr.class_embed.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
        return model

    return make


@pytest.fixture
def dataset(real_data):
    """Register the two panoptic examples of COCO, without a file of instances, and return the name."""
    folder = real_data / "coco_panoptic"
    metadata = coco_panoptic_categories().metadata()
    files = {
        "image_dir": str(folder / "input_images"),
        "gt_dir": str(folder / "panoptic_examples"),
        "json_file": str(folder / "panoptic_examples.json"),
    }
    DatasetCatalog.register(DATASET, lambda: load_coco_panoptic_json(**files, meta=metadata))
    MetadataCatalog.get(DATASET).set(
        panoptic_json=files["json_file"], panoptic_root=files["gt_dir"], evaluator_type="coco_panoptic_seg", **metadata
    )
    yield DATASET
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


def inputs(*sizes: tuple[int, int]) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return [{"image": x, "height": 2 * x.shape[1] + 1, "width": 2 * x.shape[2]} for x in images]


def test_one_forward_pass_has_all_results(panoptic_model):
    model = panoptic_model()
    with torch.no_grad():
        (result,) = model(inputs((64, 96)))
    ids, segments = result["panoptic_seg"]
    assert result["instances"].pred_masks.shape == (7, 129, 192)
    assert ids.shape == (129, 192)
    assert ids.dtype == torch.int32
    assert 1 < len(segments) <= 7
    assert sorted(ids.unique().tolist()) == [x["id"] for x in segments]
    areas = ids.flatten().bincount()[1:].tolist()
    assert areas == [x["area"] for x in segments]
    assert all(x["isthing"] == (x["category_id"] < 80) for x in segments)


def test_segments_are_those_of_all_masks(panoptic_model):
    """Compare with the segments that are selected from the mask logits of all queries."""
    model = panoptic_model()
    batch = inputs((64, 96))
    with torch.no_grad():
        ids, segments = model(batch)[0]["panoptic_seg"]
        output = model.detr(model.preprocess_image(batch), all_layers=False)
        (logits,) = model.detr.masks(output.mask_inputs, [torch.arange(7)])
        rules = PanopticRules(tuple(coco_panoptic_categories().is_thing), 0.02)
        selected = rules.select(output.logits[-1, 0])
        expected, expected_segments = panoptic_segmentation(
            selected,
            logits[selected.queries],
            padded_size=(64, 96),
            image_size=(64, 96),
            output_size=(129, 192),
            rules=rules,
        )
    assert (ids == expected).float().mean() > 0.9999
    assert [x["category_id"] for x in segments] == [x["category_id"] for x in expected_segments]


@pytest.mark.parametrize("sizes", [[(64, 96), (64, 96)], [(64, 96), (48, 64), (40, 50)]], ids=["alike", "padded"])
def test_every_mask_is_computed_once(panoptic_model, sizes):
    """Only those of detections and segments, and once where a query is both, under several classes too."""
    model = panoptic_model("MODEL.DETR.CLASS_LOSS", "focal")
    counts = []
    model.detr.mask_head.register_forward_hook(lambda module, inputs, logits: counts.append(len(logits)))
    batch = inputs(*sizes)
    with torch.no_grad():
        output = model.detr(model.preprocess_image(batch), all_layers=False)
        scores = output.logits[-1, ..., :-1].sigmoid().amax(-1).flatten().sort(descending=True).values
        # Some queries are found in detections, and some more in segments.
        model.score_threshold = threshold = scores[len(scores) // 3].item()
        model.panoptic = replace(model.panoptic, score_threshold=scores[len(scores) // 2].item())
        detections = [set(x.queries.tolist()) for x in box_instances(output, sizes, "focal", threshold)]
        segments = [set(model.panoptic.select(x).queries.tolist()) for x in output.logits[-1]]
        results = model(batch)
    both = [len(x | y) for x, y in zip(detections, segments, strict=True)]
    assert sum(counts) == sum(both)
    assert any(x & y for x, y in zip(detections, segments, strict=True))
    assert sum(both) < 7 * len(sizes)
    assert [len(x["instances"].pred_masks) for x in results] == [len(x["instances"]) for x in results]


def test_nothing_found(panoptic_model):
    with torch.no_grad():
        (result,) = panoptic_model("MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", 1.0)(inputs((40, 50)))
    ids, segments = result["panoptic_seg"]
    assert ids.shape == (81, 100)
    assert not ids.any()
    assert segments == []


def test_models_can_be_pickled(panoptic_model):
    model = pickle.loads(pickle.dumps(panoptic_model()))
    assert model.panoptic.is_thing[79:81] == (True, False)


def test_the_trainers_evaluation(panoptic_model, make_cfg, dataset, tmp_path):
    cfg = make_cfg(*OPTIONS, "INPUT.MIN_SIZE_TEST", 64, "DATASETS.TEST", (dataset,), "OUTPUT_DIR", str(tmp_path))
    cfg.DATALOADER.NUM_WORKERS = 0
    results = Trainer.test(cfg, panoptic_model())
    assert set(results) == {"panoptic_seg"}
    assert 0 <= results["panoptic_seg"]["PQ"] < 50
    assert not math.isnan(results["panoptic_seg"]["RQ_st"])
    written = json.loads((tmp_path / "inference" / dataset / "panoptic" / "predictions.json").read_text())
    assert [x["image_id"] for x in written["annotations"]] == [142238, 439180]
    assert all(x["segments_info"] for x in written["annotations"])


def test_predicting_on_files(panoptic_model, make_cfg, repository, real_data, tmp_path, capsys):
    """Masks are written as RLE, segments as COCO's panoptic files, and images show the segments."""
    config, weights = tmp_path / "config.yaml", tmp_path / "model.pth"
    config.write_text(make_cfg(*OPTIONS, "INPUT.MIN_SIZE_TEST", 64).dump())
    torch.save({"model": panoptic_model().state_dict()}, weights)
    spec = importlib.util.spec_from_file_location("predict_under_test", repository / "tools" / "predict.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    photos, out = real_data / "coco_panoptic" / "input_images", tmp_path / "out"
    flags = ["--config-file", config, "--input", photos, "--output", out, "--score-thresh", 0]
    assert tool.main([*map(str, flags), "MODEL.WEIGHTS", str(weights)]) == 0, capsys.readouterr().err

    results = json.loads((out / "predictions.json").read_text())
    assert all(x["segmentation"]["size"] in ([427, 640], [360, 640]) for x in results)
    panoptic = json.loads((out / "panoptic.json").read_text())
    assert [(x["id"], x["isthing"]) for x in panoptic["categories"]][79:81] == [(90, 1), (92, 0)]
    for x, image in zip(panoptic["annotations"], panoptic["images"], strict=True):
        ids = np.asarray(Image.open(out / "panoptic" / x["file_name"])).astype(int) @ [1, 256, 65536]
        assert ids.shape == (image["height"], image["width"])
        assert {s["id"]: s["area"] for s in x["segments_info"]} == {i: (ids == i).sum() for i in np.unique(ids)}
        name = Path(image["file_name"]).name
        assert (np.asarray(Image.open(out / "overlays" / name)) != np.asarray(Image.open(photos / name))).any()
