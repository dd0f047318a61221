import os

import pytest
import torch

from detr_d2.checkpoint import DetrCheckpointer, read_checkpoint
from detr_d2.checkpoint.architecture import infer_architecture
from detr_d2.checkpoint.conversion import convert_checkpoint, target_config
from detr_d2.utils.errors import UserError


def test_a_converted_file_has_exactly_the_models_tensors(save_original, make_model, tmp_path):
    source, weights = save_original(num_classes=91)
    output = tmp_path / "new folder" / "out.pth"
    summary = convert_checkpoint(str(source), str(output))
    checkpoint = read_checkpoint(str(output))
    model = make_model("MODEL.DETR.NUM_CLASSES", 80)
    model.load_state_dict(checkpoint["model"], strict=True)
    assert checkpoint.keys() == {"model", "class_names"}
    assert checkpoint["class_names"][16] == "dog"
    # dog is COCO's id 18.
    torch.testing.assert_close(
        model.state_dict()["detr.class_embed.weight"][16], weights["class_embed.weight"][18], rtol=0, atol=0
    )
    assert os.listdir(output.parent) == ["out.pth"]
    assert "92 -> 81" in str(summary)
    assert "MODEL.DETR.HIDDEN_DIM 32" in str(summary)
    assert len(str(summary).splitlines()) < 8


@pytest.mark.parametrize(
    ("source_classes", "num_classes", "rows"),
    [
        (91, None, 81),
        (91, 80, 81),
        (91, 91, 92),
        (91, 3, None),
        (5, None, 6),
        (5, 5, 6),
        (5, 80, None),
        (250, None, 134),
        (250, 133, 134),
        (250, 250, 251),
    ],
)
def test_the_head_follows_the_number_of_classes(save_original_shapes, tmp_path, source_classes, num_classes, rows):
    source = save_original_shapes("MODEL.DETR.NUM_CLASSES", source_classes)
    output = str(tmp_path / "out.pth")
    convert_checkpoint(str(source), output, num_classes=num_classes)
    checkpoint = read_checkpoint(output)
    if rows is None:
        assert not [name for name in checkpoint["model"] if "class_embed" in name]
    else:
        assert checkpoint["model"]["detr.class_embed.bias"].shape == (rows,)
    assert ("class_names" in checkpoint) == (rows in (81, 134))


def test_a_file_without_a_head_starts_training(save_original, make_model, tmp_path, caplog):
    source, _ = save_original(num_classes=91)
    output = str(tmp_path / "out.pth")
    convert_checkpoint(str(source), output, num_classes=3)
    model = make_model("MODEL.DETR.NUM_CLASSES", 3)
    caplog.set_level("INFO", logger="detr_d2")
    DetrCheckpointer(model).load(output)
    assert "class_embed re-initialized, the file holds none" in caplog.text
    with pytest.raises(UserError, match="no class head"):
        DetrCheckpointer(model, allow_new_head=False).load(output)


@pytest.mark.parametrize("options", [("MODEL.DETR.PRE_NORM", True), ("MODEL.DETR.POSITION_EMBEDDING", "learned")])
def test_variants_of_the_original_are_recognized(save_original_shapes, tmp_path, options):
    key, value = options
    summary = convert_checkpoint(str(save_original_shapes(*options)), str(tmp_path / "out.pth"))
    assert summary.architecture[key] == value
    assert f"{key} {value}" in str(summary)


def test_converting_twice_changes_nothing(save_original, tmp_path):
    source, _ = save_original(num_classes=91)
    convert_checkpoint(str(source), str(tmp_path / "a.pth"))
    convert_checkpoint(str(tmp_path / "a.pth"), str(tmp_path / "b.pth"))
    a, b = (read_checkpoint(str(tmp_path / name)) for name in ("a.pth", "b.pth"))
    assert a["class_names"] == b["class_names"]
    assert a["model"].keys() == b["model"].keys()
    for name, x in a["model"].items():
        assert torch.equal(x, b["model"][name])


def damage(weights: dict, how: str) -> dict:
    if how == "missing":
        del weights["transformer.decoder.layers.1.linear2.weight"]
    elif how == "unexpected":
        weights["transformer.level_embed"] = torch.zeros(4, 32)
    elif how == "reshaped":
        weights["input_proj.weight"] = torch.zeros(32, 100, 1, 1)
    elif how == "no backbone stage":
        return {name: x for name, x in weights.items() if "layer4" not in name}
    elif how == "backbone only":
        prefix = "backbone.0.body."
        return {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    elif how == "half an SMCA":
        weights["transformer.decoder.layers.0.point2.weight"] = torch.zeros(8, 32)
    elif how == "nothing":
        return {}
    return weights


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"only in the model: detr\.transformer\.decoder\.layers\.1\.linear2\.weight"),
        ("unexpected", r"only in the file: detr\.transformer\.level_embed"),
        ("reshaped", r"input_proj\.weight: \(32, 100, 1, 1\) in the file, \(32, 512, 1, 1\) in the model"),
        ("no backbone stage", "backbone is not a ResNet"),
        ("backbone only", r"need no conversion: set MODEL\.WEIGHTS"),
        ("half an SMCA", r"SMCA type1.*only in the model: .*transformer\.decoder"),
        ("nothing", "no known format"),
    ],
)
def test_what_does_not_fit_is_not_written(save_original_shapes, tmp_path, how, message):
    source = save_original_shapes()
    torch.save({"model": damage(torch.load(source)["model"], how)}, source)
    with pytest.raises(UserError, match=rf"(?s)original\.pth.*{message}"):
        convert_checkpoint(str(source), str(tmp_path / "folder" / "out.pth"))
    assert not (tmp_path / "folder").exists()


def test_a_truncated_source_leaves_nothing(save_original, tmp_path):
    """The error names the file, and no output is written."""
    whole, _ = save_original()
    source = tmp_path / "cut.pth"
    source.write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"cut\.pth.*truncated"):
        convert_checkpoint(str(source), str(tmp_path / "out.pth"))
    assert os.listdir(tmp_path) == ["cut.pth"]


def test_an_output_that_exists_is_kept_without_force(save_original_shapes, tmp_path):
    source = save_original_shapes()
    output = tmp_path / "out.pth"
    output.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"out\.pth exists.*--force"):
        convert_checkpoint(str(source), str(output))
    assert output.read_bytes() == b"precious"
    convert_checkpoint(str(source), str(output), force=True)
    assert "model" in read_checkpoint(str(output))


def test_an_output_that_cant_be_written_is_named(save_original_shapes, tmp_path, monkeypatch):
    source = save_original_shapes()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/out\.pth can't be written"):
        convert_checkpoint(str(source), str(tmp_path / "file" / "out.pth"))
    with pytest.raises(UserError, match="is a folder"):
        convert_checkpoint(str(source), str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"out\.pth can't be written.*No space"):
        convert_checkpoint(str(source), str(tmp_path / "out.pth"))
    assert sorted(os.listdir(tmp_path)) == ["file", "original.pth"]


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "parameters"), [(50, 41_524_768), (101, 60_464_672)])
def test_published_sizes(make_cfg, make_original, tmp_path, depth, parameters):
    """R50 and R101 as published: 41 and 60 million parameters (table 1 of the paper), COCO's 92 rows."""
    sizes = {
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.DETR.HIDDEN_DIM": 256,
        "MODEL.DETR.NHEADS": 8,
        "MODEL.DETR.DIM_FEEDFORWARD": 2048,
        "MODEL.DETR.ENC_LAYERS": 6,
        "MODEL.DETR.DEC_LAYERS": 6,
        "MODEL.DETR.NUM_OBJECT_QUERIES": 100,
    }
    original = make_original(make_cfg(*(x for item in sizes.items() for x in item)), num_classes=91)
    assert sum(x.numel() for x in original.parameters()) == parameters
    source, output = str(tmp_path / "source.pth"), str(tmp_path / "out.pth")
    torch.save({"model": original.state_dict()}, source)
    summary = convert_checkpoint(source, output)
    changed = [key for key in summary.architecture if f"{key} " in str(summary).splitlines()[-1]]
    assert changed == ([] if depth == 50 else ["MODEL.RESNETS.DEPTH"])
    converted = read_checkpoint(output)["model"]
    assert infer_architecture(converted)["MODEL.RESNETS.DEPTH"] == depth
    assert target_config(summary.architecture).MODEL.DETR.NUM_CLASSES == 80


@pytest.mark.parametrize("levels", [["res3", "res4", "res5"], ["res4", "res5"]])
def test_a_transformer_of_several_levels_is_inferred(make_model, tmp_path, levels):
    """Its keys are written to the config that goes with the weights."""
    expected = {
        "MODEL.DETR.TRANSFORMER": "MultiScaleSmcaTransformer",
        "MODEL.DETR.SMCA.SHARED_CROSS_LEVEL": False,
        "MODEL.DETR.SMCA.POINTWISE": False,
        "MODEL.DETR.SMCA.DYNAMIC_SCALE": "type3",
        "MODEL.DETR.NHEADS": 4,
        "MODEL.RESNETS.OUT_FEATURES": levels,
    }
    model = make_model(*(x for item in expected.items() for x in item))
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    summary = convert_checkpoint(str(tmp_path / "own.pth"), str(tmp_path / "out.pth"))
    assert {key: summary.architecture[key] for key in expected} == expected
    assert "multi-scale SMCA type3" in str(summary)
