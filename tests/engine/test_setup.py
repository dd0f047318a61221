import argparse

import pytest
import torch

from detr_d2.engine import load_config, setup
from detr_d2.errors import UserError


def test_options_come_over_the_file(repository):
    file = repository / "configs" / "detr_256_6_6_torchvision.yaml"
    cfg = load_config(str(file), ["SOLVER.BASE_LR", "0.5", "MODEL.DETR.COST_L1", "3.0"])
    assert cfg.SOLVER.BASE_LR == 0.5
    assert cfg.MODEL.DETR.COST_L1 == 3.0
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "MODEL:\n  DETR:\n    NUM_CLASES: 3\n",
            "no config key MODEL.DETR.NUM_CLASES. Did you mean MODEL.DETR.NUM_CLASSES",
        ),
        ("MODEL:\n  DETR:\n    NHEADS: many\n", "MODEL.DETR.NHEADS is 'many': set a whole number."),
        ("MODEL: [\n", "not valid YAML"),
        ("just a text\n", "no keys with values"),
    ],
    ids=["unknown key", "wrong type", "broken file", "no mapping"],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(file), [])
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_whole_numbers_will_do_for_fractions():
    options = ["MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", "0", "SOLVER.BASE_LR", "1", "SOLVER.MAX_ITER", "7"]
    cfg = load_config("", options)
    assert (cfg.MODEL.DETR.PANOPTIC.SCORE_THRESHOLD, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.0, 1.0, 7)
    assert [type(x) for x in (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER)] == [float, int]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.DETR.NHEAD", "4"], "option MODEL.DETR.NHEAD 4: there is no config key MODEL.DETR.NHEAD"),
        (["MODEL.DETR.NHEADS"], "KEY VALUE pairs"),
        (["SOLVER.BASE_LR", "fast"], "option SOLVER.BASE_LR fast: SOLVER.BASE_LR is 'fast': set a number."),
        (["SOLVER.ACCUMULATE", "2.5"], "SOLVER.ACCUMULATE is 2.5: set a whole number."),
        (["INPUT.FAST_RESIZE_TRAIN", "maybe"], "INPUT.FAST_RESIZE_TRAIN is 'maybe': set True or False."),
        (["SOLVER.ACTIVATION_CHECKPOINTS", "backbone"], """is 'backbone': set "('backbone',)"."""),
        (["SOLVER.STEPS", "100"], 'SOLVER.STEPS is 100: set "(100,)".'),
        (["MODEL.WEIGHTS", "3"], "MODEL.WEIGHTS is 3: set a text."),
        (["MODEL.DETR.MASK", "3"], "MODEL.DETR.MASK is 3, but holds keys of its own"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError) as error:
        load_config("", options)
    assert message in str(error.value)


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config("nowhere.yaml", [])


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
        (("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"), "float16, which needs a CUDA GPU"),
        (("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "half"), "SOLVER.AMP.DTYPE is 'half': choose one of"),
        (("SOLVER.ACCUMULATE", "5"), "SOLVER.ACCUMULATE is 5: set a divisor of 64"),
        (("SOLVER.ACCUMULATE", "0"), "SOLVER.ACCUMULATE is 0: set a divisor of 64"),
        (("SOLVER.MAX_ITER", "0"), "SOLVER.MAX_ITER is 0: set 1 or more"),
        (("DATALOADER.NUM_WORKERS", "-1"), "DATALOADER.NUM_WORKERS is -1: set 0 or more"),
        (("SOLVER.CHECKPOINT_PERIOD", "0"), "SOLVER.CHECKPOINT_PERIOD is 0: set 1 or more"),
        (("SOLVER.ACTIVATION_CHECKPOINTS", "('head',)"), "is 'head': choose one of backbone, transformer"),
        (
            ("SOLVER.COMPILE", "True", "MODEL.MASK_ON", "True", "MODEL.DETR.FROZEN_WEIGHTS", "boxes.pth"),
            "SOLVER.COMPILE True compiles .* MODEL.DETR.FROZEN_WEIGHTS keeps",
        ),
        (("SOLVER.ACTIVATION_CHECKPOINTS", "None"), "SOLVER.ACTIVATION_CHECKPOINTS is None: set"),
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu(arguments):
    with pytest.raises(UserError, match=r"MODEL.DEVICE is cuda.*add MODEL.DEVICE cpu"):
        setup(arguments("MODEL.DEVICE", "cuda"))


def test_evaluation_does_not_mind_the_batch_of_training(arguments, tmp_path):
    cfg = setup(arguments("SOLVER.IMS_PER_BATCH", "0", eval_only=True))
    assert cfg.is_frozen()
    assert (tmp_path / "output" / "config.yaml").is_file()
