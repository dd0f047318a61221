"""tools/benchmark.py, of small models on small images."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"
SMALL = (
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.DETR.HIDDEN_DIM", "32"),
    *("MODEL.DETR.ENC_LAYERS", "1", "MODEL.DETR.DEC_LAYERS", "2", "MODEL.DETR.DIM_FEEDFORWARD", "64"),
    *("MODEL.DETR.NUM_OBJECT_QUERIES", "20"),
)
BOTH = ("--contestants", "python-detr", "ours")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "titles"),
    [
        (
            ["inference", *BOTH, "--size", "64", "96", "--size", "32", "64", *SMALL],
            ["inference: box, 64 x 96, batch 1", "inference: box, 32 x 64, batch 1"],
        ),
        (
            ["training", *BOTH, "--size", "64", "96", "--objects", "3", *SMALL],
            ["training step: box, 64 x 96, batch 2, 3 objects an image"],
        ),
        (
            ["criterion", "--batch", "2", "--objects", "3", *SMALL],
            [f"criterion: {x}, batch 2, 3 objects an image" for x in ("matching", "losses", "gradients")],
        ),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_figures_are_printed_and_written(tool, capsys, tmp_path, arguments, titles):
    file = tmp_path / "figures.json"
    assert tool.main([*arguments, "--rounds", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert [x["title"] for x in content["comparisons"]] == titles
    assert all(f"\n{title}\n" in printed for title in titles)
    assert content["machine"]["torch"]
    for comparison in content["comparisons"]:
        assert [x["name"] for x in comparison["contestants"]] == ["python-detr", "ours"]
        assert all(len(x["seconds"]) == 1 for x in comparison["contestants"])


def test_contestants_have_processes_of_their_own(tool, capsys, monkeypatch):
    """Nothing is run in this one."""
    monkeypatch.setattr("benchmarks.contestants.stopwatch", None)
    assert tool.main(["inference", *BOTH, "--size", "64", "96", *SMALL, "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [x.split()[0] for x in lines[-2:]] == ["python-detr", "ours"]


@pytest.mark.usefixtures("in_this_process")
def test_loading(tool, capsys, monkeypatch, real_data):
    monkeypatch.setattr("benchmarks.loading._CHECKED", 6)
    # Six images are too few to compare the means of what is drawn at random.
    monkeypatch.setattr("benchmarks.loading._TOLERANCE", 1.0)
    arguments = ["--images", "4", "--rounds", "1", "DATASETS.TRAIN", "('benchmark_loading',)"]
    from detectron2.data import DatasetCatalog

    from detr_d2 import register_coco_dataset

    coco = real_data / "coco"
    register_coco_dataset(
        "benchmark_loading", str(coco / "annotations" / "instances_train2017.json"), str(coco / "train2017")
    )
    try:
        assert tool.main(["loading", "--workers", "0", "1", *arguments]) == 0
    finally:
        DatasetCatalog.remove("benchmark_loading")
    printed = capsys.readouterr().out
    assert "loading: 4 images in batches of 2, 0 workers" in printed
    assert "loading: 4 images in batches of 2, 1 workers" in printed
    assert "old recipe" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inference", "--contestants", "theirs"], "--contestants theirs: choose from python-detr, python-detr-bf16"),
        (["inference", "--batch", "0"], "--batch [0]: it takes numbers from 1"),
        (["training", "--size", "8", "800"], "--size [[8, 800]]: it takes numbers from 32"),
        (["training", "MODEL.DETR.NHEAD", "4"], "there is no config key MODEL.DETR.NHEAD"),
        (["criterion", "--json", "no/such/file.json"], "there is no folder"),
        (["loading", "DATASETS.TRAIN", "('nothing',)"], "DETECTRON2_DATASETS names their folder"),
        (["inference", "--model", "masks", "--contestants", "transformers"], "on boxes only"),
        (["inference", "--device", "cuda"], "finds no CUDA GPU"),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_mistakes_are_told_without_a_traceback(tool, capsys, monkeypatch, arguments, message):
    if "boxes only" in message:
        pytest.importorskip("transformers")
        pytest.importorskip("timm")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tool.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_an_interruption(tool, capsys, monkeypatch):
    def run(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "run", run)
    assert tool.main(["criterion"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_without_the_original(tool, capsys, monkeypatch):
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    assert tool.main(["criterion"]) == 1
    assert "pip install --no-deps python-detr" in capsys.readouterr().err
