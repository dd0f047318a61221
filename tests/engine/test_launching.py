import argparse

import pytest
import torch

import detr_d2.engine
from detr_d2.cli.command import launch
from detr_d2.engine import launch_processes, launching, setup
from detr_d2.utils.errors import UserError


@pytest.fixture
def args():
    return argparse.Namespace(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_success(args, num_gpus):
    args.num_gpus = num_gpus
    seen = []
    assert launch(seen.append, args) == 0
    assert seen == [args]


def test_a_process_keeps_the_memory_that_it_frees(args, monkeypatch):
    order = []
    monkeypatch.setattr(launching, "keep_freed_memory", lambda: order.append("kept"))
    launch_processes(lambda args: order.append("main"), args)
    assert order == ["kept", "main"]


def test_a_mistake_of_the_user_is_one_message(args, capsys):
    def main(args):
        raise UserError("MODEL.X is wrong: set Y.")

    assert launch(main, args) == 1
    assert capsys.readouterr().err == "error: MODEL.X is wrong: set Y.\n"


def test_the_message_of_a_loaders_worker_loses_its_traceback(args, capsys):
    def main(args):
        raise UserError(
            "Caught UserError in DataLoader worker process 0.\nTraceback …\nd.UserError: a.jpg is broken.\n"
        )

    assert launch(main, args) == 1
    assert capsys.readouterr().err == "error: a.jpg is broken.\n"


def test_other_errors_keep_their_traceback(args):
    def main(args):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        launch(main, args)


def test_an_interruption(args, capsys):
    def main(args):
        raise KeyboardInterrupt

    assert launch(main, args) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"num_gpus": -1}, "--num-gpus is -1: give"),
        ({"num_gpus": 0, "num_machines": 2}, "--num-gpus is 0: give"),
        ({"num_machines": 0}, "--num-machines is 0: give 1 or more."),
        ({"machine_rank": 2, "num_machines": 2}, "--machine-rank is 2: give each of the 2 machines its own"),
        ({"machine_rank": -1}, "--machine-rank is -1: give"),
    ],
    ids=str,
)
def test_counts_of_no_processes(args, capsys, counts, message):
    vars(args).update(counts)
    assert launch(lambda args: pytest.fail("ran"), args) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_more_gpus_than_there_are(args, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args.num_gpus = 8
    assert launch(lambda args: None, args) == 1
    assert "--num-gpus is 8, but this machine has 2" in capsys.readouterr().err


def test_the_former_name_in_copies_of_the_training_script(args):
    with pytest.warns(DeprecationWarning, match=r"detr_d2\.engine\.run is now detr_d2\.cli\.command\.launch"):
        assert detr_d2.engine.run is launch


@pytest.fixture
def arguments(repository, tmp_path):
    """Return a function that makes the arguments of a script for the COCO config."""

    def make(*options: str, eval_only: bool = False) -> argparse.Namespace:
        config = str(repository / "configs" / "detr_256_6_6_torchvision.yaml")
        opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "output"), *options]
        return argparse.Namespace(config_file=config, opts=opts, eval_only=eval_only)

    return make


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("SOLVER.IMS_PER_BATCH", "0"), r"SOLVER.IMS_PER_BATCH 0 .*--num-gpus"),
        (("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "half"), "SOLVER.AMP.DTYPE is 'half': choose one of"),
        (("MODEL.DETR.HIDDEN_DIM", "30"), "MODEL.DETR.HIDDEN_DIM"),
    ],
)
def test_refused_before_anything_is_written(arguments, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        setup(arguments(*options))
    assert not (tmp_path / "output").exists()


def test_output_that_can_not_be_written(arguments, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "output"):
        with pytest.raises(UserError, match=f"OUTPUT_DIR is {folder}, which can't be written to .*: choose another"):
            setup(arguments("OUTPUT_DIR", str(folder)))


def test_evaluation_does_not_mind_the_batch_of_training(arguments, tmp_path):
    cfg = setup(arguments("SOLVER.IMS_PER_BATCH", "0", eval_only=True))
    assert cfg.is_frozen()
    assert (tmp_path / "output" / "config.yaml").is_file()
