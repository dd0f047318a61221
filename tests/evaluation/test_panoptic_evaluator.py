"""Evaluation of panoptic results, on COCO's own examples."""

import copy
import csv
import json
import math
import os

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from PIL import Image

from detr_d2.data.panoptic import coco_panoptic_categories
from detr_d2.evaluation import PanopticEvaluator
from detr_d2.utils.errors import UserError


@pytest.fixture
def examples(real_data):
    return real_data / "coco_panoptic"


@pytest.fixture
def annotations(examples):
    return json.loads((examples / "panoptic_examples.json").read_text())


@pytest.fixture
def register(request):
    """Return a function that registers the metadata of a panoptic dataset during a test; it returns the name."""

    def add(panoptic_json, panoptic_root) -> str:
        name = request.node.name
        request.addfinalizer(lambda: MetadataCatalog.remove(name))
        MetadataCatalog.get(name).set(
            panoptic_json=str(panoptic_json),
            panoptic_root=str(panoptic_root),
            evaluator_type="coco_panoptic_seg",
            **coco_panoptic_categories().metadata(),
        )
        return name

    return add


@pytest.fixture
def dataset(register, examples):
    return register(examples / "panoptic_examples.json", examples / "panoptic_examples")


def read_ids(path):
    """Return (H, W) ids as COCO defines them."""
    return np.asarray(Image.open(path)).astype(np.int64) @ [1, 256, 65536]


def perfect(annotations, examples):
    """Return inputs, and outputs equal to the annotations, with segments in another order."""
    rows = coco_panoptic_categories().rows
    is_thing = coco_panoptic_categories().is_thing
    inputs, outputs = [], []
    for x in annotations["annotations"]:
        truth = read_ids(examples / "panoptic_examples" / x["file_name"])
        ids, infos = np.zeros(truth.shape, np.int32), []
        for i, segment in enumerate(reversed(x["segments_info"]), 1):
            ids[truth == segment["id"]] = i
            row = rows[segment["category_id"]]
            infos.append({"id": i, "isthing": is_thing[row], "category_id": row, "area": segment["area"]})
        inputs.append({"image_id": x["image_id"], "file_name": x["file_name"].replace(".png", ".jpg")})
        outputs.append({"panoptic_seg": (torch.from_numpy(ids), infos)})
    return inputs, outputs


def disturb(outputs):
    """Shift everything, make things dogs and drop some segments."""
    outputs = copy.deepcopy(outputs)
    for i, output in enumerate(outputs):
        ids, infos = output["panoptic_seg"]
        ids = ids.roll((4, 7), (0, 1))
        for segment in infos[::4]:
            ids[ids == segment["id"]] = 0
        kept = [x for x in infos if (ids == x["id"]).any()]
        if i:
            for segment in kept[::3]:
                segment.update(category_id=16, isthing=True)
        output["panoptic_seg"] = ids, kept
    return outputs


def run(evaluator, inputs, outputs):
    evaluator.reset()
    for sample, output in zip(inputs, copy.deepcopy(outputs), strict=True):
        evaluator.process([sample], [output])
    return evaluator.evaluate()


def test_perfect_results_have_100(dataset, annotations, examples):
    """Crowds among them."""
    assert any(s["iscrowd"] for x in annotations["annotations"] for s in x["segments_info"]), "the test needs crowds"
    results = run(PanopticEvaluator(dataset), *perfect(annotations, examples))
    assert set(results["panoptic_seg"]) == {f"{q}{s}" for q in ("PQ", "SQ", "RQ") for s in ("", "_th", "_st")}
    assert all(value == 100 for value in results["panoptic_seg"].values())


def test_results_are_detectron2s(dataset, annotations, examples):
    """Detectron2's evaluator, which calls panopticapi."""
    inputs, outputs = perfect(annotations, examples)
    outputs = disturb(outputs)
    expected = run(COCOPanopticEvaluator(dataset), inputs, outputs)["panoptic_seg"]
    assert run(PanopticEvaluator(dataset), inputs, outputs)["panoptic_seg"] == pytest.approx(dict(expected))
    assert 10 < expected["PQ"] < 90
    assert 10 < expected["PQ_st"] < 90


def test_files(dataset, annotations, examples, tmp_path):
    """Results that panopticapi reads, and the quality of each class."""
    inputs, outputs = perfect(annotations, examples)
    outputs = disturb(outputs)
    folder = tmp_path / dataset / "panoptic"
    (folder / "predictions").mkdir(parents=True)
    (folder / "predictions" / "of_an_earlier_run.png").touch()
    results = run(PanopticEvaluator(dataset, str(tmp_path)), inputs, outputs)
    assert sorted(os.listdir(folder)) == ["per_class.csv", "predictions", "predictions.json"]
    written = json.loads((folder / "predictions.json").read_text())
    assert [x["image_id"] for x in written["annotations"]] == [x["image_id"] for x in inputs]
    assert sorted(os.listdir(folder / "predictions")) == sorted(x["file_name"] for x in written["annotations"])
    for x, output in zip(written["annotations"], outputs, strict=True):
        ids, infos = output["panoptic_seg"]
        np.testing.assert_array_equal(read_ids(folder / "predictions" / x["file_name"]), ids.numpy())
        by_row = coco_panoptic_categories()
        assert [s["category_id"] for s in x["segments_info"]] == [by_row[s["category_id"]].id for s in infos]
    with open(folder / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [x["class"] for x in rows] == coco_panoptic_categories().names
    stuff = [float(x["PQ"]) for x in rows if x["PQ"] and x["kind"] == "stuff"]
    assert np.mean(stuff) == pytest.approx(results["panoptic_seg"]["PQ_st"], abs=0.01)


@pytest.mark.parametrize("prefix", ["../../../", "/"], ids=["relative", "absolute"])
def test_maps_are_written_into_the_folder_of_results(register, annotations, examples, tmp_path, prefix):
    """Wherever their names in the annotations lead."""
    inputs, outputs = perfect(annotations, examples)
    item, json_file, source = (
        annotations["annotations"][0],
        tmp_path / "stranger.json",
        tmp_path / "maps" / "a" / "b" / "c",
    )
    source.mkdir(parents=True)
    target = tmp_path / "maps" / "map.png"
    target.write_bytes((examples / "panoptic_examples" / item["file_name"]).read_bytes())
    before = target.read_bytes()
    item["file_name"] = f"{prefix}map.png" if prefix != "/" else str(target)
    json_file.write_text(json.dumps({**annotations, "annotations": [item]}))
    name = register(json_file, source)
    evaluator = PanopticEvaluator(name, str(tmp_path / "out"))
    evaluator.process(inputs[:1], outputs[:1])
    written = list(tmp_path.rglob("*.png"))
    assert sorted(written) == sorted([target, *(tmp_path / "out" / name / "panoptic" / "predictions").rglob("map.png")])
    assert len(written) == 2
    assert target.read_bytes() == before


def test_nothing_found(dataset, annotations, examples):
    """All void and no segments: everything counts as missed."""
    inputs, outputs = perfect(annotations, examples)
    outputs = [{"panoptic_seg": (torch.zeros_like(x["panoptic_seg"][0]), [])} for x in outputs]
    results = run(PanopticEvaluator(dataset), inputs, outputs)["panoptic_seg"]
    assert results["PQ"] == results["RQ_th"] == results["SQ_st"] == 0


def test_classes_that_do_not_occur_have_no_quality(register, annotations, examples, tmp_path):
    """Things only: nothing to average over stuff."""
    things = {x.id for x in coco_panoptic_categories() if x.is_thing}
    annotations["annotations"] = annotations["annotations"][:1]
    entry = annotations["annotations"][0]
    entry["segments_info"] = [x for x in entry["segments_info"] if x["category_id"] in things]
    (tmp_path / "things.json").write_text(json.dumps(annotations))
    name = register(tmp_path / "things.json", examples / "panoptic_examples")
    results = run(PanopticEvaluator(name), *perfect(annotations, examples))["panoptic_seg"]
    assert results["PQ"] == results["PQ_th"] == 100
    assert math.isnan(results["PQ_st"])


def test_nothing_processed(dataset):
    assert run(PanopticEvaluator(dataset), [], []) == {}


def test_mistakes_name_the_file(dataset, annotations, examples, tmp_path):
    inputs, outputs = perfect(annotations, examples)
    evaluator = PanopticEvaluator(dataset)
    ids, infos = outputs[0]["panoptic_seg"]
    with pytest.raises(UserError, match=r"000000142238.png is 640 x 427 pixels .* 639 x 427"):
        evaluator.process(inputs[:1], [{"panoptic_seg": (ids[:, 1:], infos)}])
    with pytest.raises(UserError, match="no annotation of image 7, seven"):
        evaluator.process([{"image_id": 7, "file_name": "seven.jpg"}], outputs[:1])
    with pytest.raises(UserError, match=r"class 133, but .* has 133 classes"):
        evaluator.process(inputs[:1], [{"panoptic_seg": (ids, [{"id": 1, "category_id": 133}])}])
    name = f"{dataset}_broken"
    try:
        MetadataCatalog.get(name).set(**coco_panoptic_categories().metadata())
        MetadataCatalog.get(name).set(panoptic_root=str(tmp_path), panoptic_json=str(tmp_path / "no.json"))
        with pytest.raises(UserError, match=r"no.json does not exist"):
            PanopticEvaluator(name)
        (tmp_path / "no.json").write_text("[]")
        with pytest.raises(UserError, match=r"no.json does not hold panoptic annotations"):
            PanopticEvaluator(name)
        (tmp_path / "no.json").write_text(json.dumps(annotations))
        (tmp_path / "000000142238.png").write_text("no image")
        with pytest.raises(UserError, match=r"000000142238.png can't be read"):
            PanopticEvaluator(name).process(inputs[:1], outputs[:1])
    finally:
        MetadataCatalog.remove(name)
