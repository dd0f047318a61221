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


def test_keys_of_timm_models_are_options():
    """They are new keys, which only files could hold."""
    options = ["MODEL.TIMM.ARGS.output_stride", "8", "MODEL.TIMM.ARGS.output_stride", "16", "MODEL.TIMM.ARGS.act", "x"]
    assert load_config("", options).MODEL.TIMM.ARGS == {"output_stride": 16, "act": "x"}


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


PLANTED = "MODEL:\n  DETR:\n    NHEADS: !!python/object/apply:os.system ['touch {touched}']\n"


def plant(folder, touched, *, in_base: bool) -> str:
    """Write a config that would make the file ``touched``, itself or through what it inherits from; return its path."""
    names = ["base.yaml", "top.yaml"] if in_base else ["top.yaml"]
    (folder / names[0]).write_text(PLANTED.format(touched=touched))
    if in_base:
        (folder / "top.yaml").write_text("_BASE_: base.yaml\n")
    return str(folder / "top.yaml")


@pytest.mark.parametrize("in_base", [False, True])
def test_code_in_a_file_does_not_run(tmp_path, in_base):
    touched = tmp_path / "touched"
    file = plant(tmp_path, touched, in_base=in_base)
    source = "base" if in_base else "top"
    with pytest.raises(
        UserError, match=rf"{source}\.yaml contains more than plain values in line 3 .*os\.system.*--trust"
    ):
        load_config(file)
    assert not touched.exists()
    assert load_config(file, trust=True).MODEL.DETR.NHEADS == 0
    assert touched.exists()


def test_tuples_and_what_detectron2_dumps_are_read(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("DATASETS:\n  TRAIN: !!python/tuple [a, b]\nMODEL:\n  PIXEL_MEAN: [1, 2, 3]\n")
    cfg = load_config(str(file))
    assert cfg.DATASETS.TRAIN == ("a", "b")
    file.write_text(cfg.dump())
    # As Detectron2 reads its own.
    expected = load_config("")
    expected.merge_from_file(str(file))
    assert load_config(str(file)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: bad.yaml\n", "its own _BASE_"),
        ("_BASE_: nowhere.yaml\n", r"its _BASE_, can't be read .*nowhere\.yaml"),
        ("MODEL: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{y}: &{y} [{','.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
            "over 100000 values",
        ),
        ("", "no keys with values"),
        ("MODEL: \x00\n", "not valid YAML"),
    ],
    ids=["own base", "no base", "nested", "aliases", "empty", "control character"],
)
def test_hostile_files(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / "bad.yaml"))
