import pytest

from detr_d2.engine import load_config
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
        ("MODEL:\n  DETR:\n    NHEADS: many\n", "NHEADS"),
        ("MODEL: [\n", "not valid YAML"),
    ],
    ids=["unknown key", "wrong type", "broken file"],
)
def test_bad_files(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(str(file), [])
    assert message in str(error.value)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.DETR.NHEAD", "4"], "option MODEL.DETR.NHEAD 4: there is no config key MODEL.DETR.NHEAD"),
        (["MODEL.DETR.NHEADS"], "KEY VALUE pairs"),
        (["SOLVER.BASE_LR", "fast"], "option SOLVER.BASE_LR fast"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        load_config("", options)


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config("nowhere.yaml", [])
