import argparse

import pytest
import torch

from detr_d2.engine import launching as cli
from detr_d2.engine import run
from detr_d2.engine.launching import take_options
from detr_d2.utils.errors import UserError


@pytest.fixture
def args():
    return argparse.Namespace(num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto")


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_success(args, num_gpus):
    args.num_gpus = num_gpus
    seen = []
    assert run(seen.append, args) == 0
    assert seen == [args]


def test_each_process_keeps_the_memory_that_it_frees(args, monkeypatch):
    order = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: order.append("kept"))
    monkeypatch.setattr(cli, "launch", lambda main, *rest, args, **options: [main(*args) for _ in range(2)])
    assert run(lambda args: order.append("main"), args) == 0
    assert order == ["kept", "main"] * 2


def test_a_users_mistake_is_one_message(args, capsys):
    def main(args):
        raise UserError("MODEL.X is wrong: set Y.")

    assert run(main, args) == 1
    assert capsys.readouterr().err == "error: MODEL.X is wrong: set Y.\n"


def test_the_message_of_a_loaders_worker_loses_its_traceback(args, capsys):
    def main(args):
        raise UserError(
            "Caught UserError in DataLoader worker process 0.\nTraceback …\nd.UserError: a.jpg is broken.\n"
        )

    assert run(main, args) == 1
    assert capsys.readouterr().err == "error: a.jpg is broken.\n"


def test_other_errors_keep_their_traceback(args):
    def main(args):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run(main, args)


def test_an_interruption(args, capsys):
    def main(args):
        raise KeyboardInterrupt

    assert run(main, args) == 130
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
    assert run(lambda args: pytest.fail("ran"), args) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_more_gpus_than_there_are(args, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args.num_gpus = 8
    assert run(lambda args: None, args) == 1
    assert "--num-gpus is 8, but this machine has 2" in capsys.readouterr().err


def test_config_keys_are_parted_from_values_of_flags(tmp_path, monkeypatch):
    """Also from flags that take any number; files called like keys stay where they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "INPUT.JPG").touch()
    words = ["--input", "a.jpg", "INPUT.JPG", "DSC_1.JPG", "MODEL.WEIGHTS", "w.pth", "SEED", "3", "--top", "2"]
    assert take_options(words) == (
        ["--input", "a.jpg", "INPUT.JPG", "DSC_1.JPG", "--top", "2"],
        ["MODEL.WEIGHTS", "w.pth", "SEED", "3"],
    )
    assert take_options(["--input", "a.jpg", "MODEL.WEIGHTS"]) == (["--input", "a.jpg"], ["MODEL.WEIGHTS"])
