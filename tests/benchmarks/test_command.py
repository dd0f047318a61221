"""The command line, with small models on small images."""

import json
import shutil

import pytest

from benchmarks import command

SMALL = (
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.DETR.HIDDEN_DIM", "32"),
    *("MODEL.DETR.ENC_LAYERS", "1", "MODEL.DETR.DEC_LAYERS", "2", "MODEL.DETR.DIM_FEEDFORWARD", "64"),
    *("MODEL.DETR.NUM_OBJECT_QUERIES", "20"),
)
BOTH = ("--implementations", "python-detr", "ours")


@pytest.mark.parametrize(
    ("arguments", "titles"),
    [
        (
            ["inference", *BOTH, "--size", "64", "96", "--size", "32", "64", *SMALL],
            ["inference: box, 64 x 96, batch 1", "inference: box, 32 x 64, batch 1"],
        ),
        (
            ["training", *BOTH, "--size", "64", "96", "--objects", "3", *SMALL],
            ["training step: box, 64 x 96, batch 2, 3 objects per image"],
        ),
        (
            ["criterion", "--batch", "2", "--objects", "3", *SMALL],
            [f"criterion: {x}, batch 2, 3 objects per image" for x in ("matching", "losses", "gradients")],
        ),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_statistics_are_printed_and_written(capsys, tmp_path, arguments, titles):
    file = tmp_path / "statistics.json"
    assert command.main([*arguments, "--rounds", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    assert [x["title"] for x in content["comparisons"]] == titles
    assert all(f"\n{title}\n" in printed for title in titles)
    assert content["machine"]["torch"]
    for comparison in content["comparisons"]:
        assert [x["name"] for x in comparison["implementations"]] == ["python-detr", "ours"]
        assert all(len(x["seconds"]) == 1 for x in comparison["implementations"])


@pytest.mark.slow
def test_implementations_have_their_own_processes(capsys, monkeypatch):
    """Nothing runs in this one."""
    monkeypatch.setattr("benchmarks.comparison.stopwatch", None)
    assert command.main(["inference", *BOTH, "--size", "64", "96", *SMALL, "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [x.split()[0] for x in lines[-2:]] == ["python-detr", "ours"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_loading(capsys, monkeypatch, real_data):
    monkeypatch.setattr("benchmarks.loading._CHECKED", 6)
    # Means of six randomly augmented images differ.
    monkeypatch.setattr("benchmarks.loading._TOLERANCE", 1.0)
    arguments = ["--images", "4", "--rounds", "1", "DATASETS.TRAIN", "('benchmark_loading',)"]
    from detectron2.data import DatasetCatalog

    from detr_d2 import register_coco_dataset

    coco = real_data / "coco"
    register_coco_dataset(
        "benchmark_loading", str(coco / "annotations" / "instances_train2017.json"), str(coco / "train2017")
    )
    try:
        assert command.main(["loading", "--workers", "0", "1", *arguments]) == 0
    finally:
        DatasetCatalog.remove("benchmark_loading")
    printed = capsys.readouterr().out
    assert "loading: 4 images in batches of 2, 0 workers" in printed
    assert "loading: 4 images in batches of 2, 1 workers" in printed
    assert "old recipe" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["inference", "--contestants", "theirs"],
            "--implementations theirs: choose from python-detr, python-detr-bf16",
        ),
        (["criterion", "--implementations", "ours@docs"], "ours@docs: docs is not a checkout of detr_d2"),
        (["inference", "--batch", "0"], "--batch [0]: give numbers of at least 1"),
        (["training", "--size", "8", "800"], "--size [[8, 800]]: give numbers of at least 32"),
        (["training", "MODEL.DETR.NHEAD", "4"], "there is no config key MODEL.DETR.NHEAD"),
        (["criterion", "--json", "no/such/file.json"], "there is no folder"),
        (["loading", "DATASETS.TRAIN", "('nothing',)"], "DETECTRON2_DATASETS names their folder"),
        (["inference", "--model", "masks", "--implementations", "transformers"], "on boxes only"),
        (["inference", "--device", "cuda"], "finds no CUDA GPU"),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_mistakes_are_reported_without_a_traceback(capsys, monkeypatch, arguments, message):
    if "boxes only" in message:
        pytest.importorskip("transformers")
        pytest.importorskip("timm")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_an_interruption(capsys, monkeypatch):
    def run(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", run)
    assert command.main(["criterion"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_without_the_original(capsys, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["criterion"]) == 1
    assert "pip install --no-deps python-detr" in capsys.readouterr().err


@pytest.mark.slow
def test_another_checkout(capsys, tmp_path, repository):
    """Its process imports the other checkout's code, here with another random seed."""
    for folder in ("benchmarks", "configs", "detr_d2"):
        shutil.copytree(repository / folder, tmp_path / folder)
    training = tmp_path / "benchmarks" / "training.py"
    training.write_text(training.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    names = ("--implementations", "ours", f"ours@{tmp_path}")
    assert command.main(["criterion", *names, "--batch", "2", "--objects", "3", "--rounds", "1", *SMALL]) == 1
    assert f"ours@{tmp_path} and ours disagree" in capsys.readouterr().err


@pytest.mark.parametrize("measure", ["gap", "time"])
def test_matchers(capsys, monkeypatch, tmp_path, measure):
    monkeypatch.setattr("benchmarks.matchers.SIZES", ((1, 2, 20, 7),))
    file = tmp_path / "annotations.json"
    images = [{"id": 1, "width": 40, "height": 30}]
    objects = [{"image_id": 1, "category_id": 1, "bbox": [x, 2, 10, 20], "iscrowd": x // 20} for x in (0, 10, 20)]
    file.write_text(json.dumps({"images": images, "annotations": objects}))
    sizes = ("--problems", "10", "--queries", "20", "--objects", "5", "--repeats", "1")
    assert command.main(["matchers", measure, *sizes, "--annotations", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    if measure == "gap":
        optimal = [x.split(" | ") for x in lines if "| HungarianMatcher |" in x]
        assert [x[0] for x in optimal] == [
            "| uniform",
            "| normal",
            "| untrained",
            "| trained",
            "| crowd",
            "| annotations",
        ]
        assert all(x[3:] == [*["0.000"] * 4, "100.000 |"] for x in optimal)
    else:
        assert lines[-1].startswith("| 1 x 2 | 20 | 7 | ")


def test_the_module(run_script):
    found = run_script("benchmarks/__main__.py", "criterion", "--batch", "0")
    assert found.returncode == 1
    assert found.stderr.endswith("error: --batch [0]: give numbers of at least 1.\n")


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("work", ["inference", "training"])
def test_configs_side_by_side(capsys, work):
    """Their results are not compared: the number of queries differs."""
    configs = ["detr_shapes_cpu", "smca_shapes_fast_cpu"]
    arguments = ["configs", work, "--config-file", *configs, "--size", "64", "96", "--batch", "2", "--rounds", "1"]
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"configs: {work}, 64 x 96, batch 2" in lines
    assert [x.split()[0] for x in lines[-2:]] == configs


@pytest.mark.usefixtures("in_this_process")
def test_configs_that_do_not_exist(capsys):
    assert command.main(["configs", "training", "--config-file", "smca_r51", "--rounds", "1"]) == 1
    assert "smca_r50" in capsys.readouterr().err
