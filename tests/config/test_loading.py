from pathlib import Path

import pytest

from detr_d2.config import find_config, load_config, packaged_config
from detr_d2.utils.errors import UserError


def test_options_override_the_file(repository):
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
        ("MODEL:\n  DETR:\n    NHEADS: many\n", "MODEL.DETR.NHEADS is 'many': set an integer."),
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


def test_integers_are_accepted_for_floats():
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
        (["SOLVER.ACCUMULATE", "2.5"], "SOLVER.ACCUMULATE is 2.5: set an integer."),
        (["INPUT.FAST_RESIZE_TRAIN", "maybe"], "INPUT.FAST_RESIZE_TRAIN is 'maybe': set True or False."),
        (["SOLVER.ACTIVATION_CHECKPOINTS", "backbone"], """is 'backbone': set "('backbone',)"."""),
        (["SOLVER.STEPS", "100"], 'SOLVER.STEPS is 100: set "(100,)".'),
        (["MODEL.WEIGHTS", "3"], "MODEL.WEIGHTS is 3: set a string."),
        (["MODEL.DETR.MASK", "3"], "MODEL.DETR.MASK is 3, but holds keys of its own"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError) as error:
        load_config("", options)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["smca_shapes_cpu", "smca_shapes_cpu.yaml"])
def test_packaged_configs_have_names(repository, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert Path(find_config(name)) == repository / "configs" / "smca_shapes_cpu.yaml"
    assert load_config(name, []).MODEL.DETR.TRANSFORMER == "SmcaTransformer"


def test_published_models_have_configs(repository):
    assert Path(find_config("detr-r101-dc5")) == repository / "configs" / "detr_256_6_6_torchvision_r101_dc5.yaml"


def test_a_file_comes_before_the_packaged_config_of_its_name(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("detr_shapes_cpu.yaml").write_text(f"_BASE_: {repository}/configs/detr_shapes_cpu.yaml\nSEED: 7\n")
    assert load_config("detr_shapes_cpu.yaml", []).SEED == 7
    assert load_config("detr_shapes_cpu", []).SEED != 7
    assert Path(packaged_config("detr_shapes_cpu.yaml")).parent == repository / "configs"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("folder/smca_shape_cpu.yaml", "Did you mean smca_shapes_cpu or "),
        ("detr-r60", "Did you mean detr-r50 or "),
        ("nowhere.yaml", "Choose one of Base-DETR, .*smca_shapes_cpu, .*detr-r50"),
    ],
)
def test_missing_config(name, hint):
    with pytest.raises(UserError, match=rf"The config {name} does not exist.* {hint}"):
        load_config(name, [])
