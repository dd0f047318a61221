import argparse

import pytest

from detr_d2.engine import setup
from detr_d2.utils.errors import UserError


@pytest.fixture
def arguments(repository, tmp_path):
    """A function that makes the arguments of a script for the COCO config."""

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
