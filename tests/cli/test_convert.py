"""The command ``convert``, and the script converter.py."""

import json
import os

import pytest
import torch

from detr_d2.checkpoint.conversion import TARGETS
from detr_d2.cli import convert
from detr_d2.cli.convert import main


def test_converts_a_file_and_says_what_it_did(run_script, make_cfg, make_original, tmp_path):
    source, output = tmp_path / "detr.pth", tmp_path / "out.pth"
    torch.save({"model": make_original(make_cfg(), num_classes=91).state_dict()}, source)
    result = run_script("converter.py", "--source_model", source, "--output_model", output)
    assert result.returncode == 0, result.stderr
    assert "original DETR" in result.stdout
    assert "92 -> 81" in result.stdout
    assert len(result.stdout.splitlines()) < 10
    assert torch.load(output, weights_only=True)["model"]["detr.class_embed.weight"].shape == (81, 32)


def test_options_reach_the_conversion(make_cfg, make_original, tmp_path, capsys):
    source, output = tmp_path / "detr.pth", tmp_path / "out" / "pytorch_model.bin"
    with torch.device("meta"):
        weights = make_original(make_cfg("MODEL.RESNETS.DEPTH", 50), num_classes=80).state_dict()
    torch.save({"model": {name: torch.zeros(()).expand(x.shape) for name, x in weights.items()}}, source)
    command = ["--input", str(source), "--output", str(output), "--to", "huggingface"]
    assert main([*command, "--coco-ids", "--nheads", "4", "--dc5"]) == 0
    out = capsys.readouterr().out
    assert "81 -> 92" in out
    assert "DetrForObjectDetection.from_pretrained" in out
    assert "MODEL.DETR.NHEADS 4" in out
    assert "MODEL.RESNETS.RES5_DILATION 2" in out
    assert torch.load(output, weights_only=True)["class_labels_classifier.bias"].shape == (92,)
    config = json.loads((output.parent / "config.json").read_text())
    assert (config["encoder_attention_heads"], config["dilation"]) == (4, True)
    assert config["id2label"]["18"] == "dog"


def test_mistakes_end_in_one_message(tmp_path, capsys):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    source, output = str(tmp_path / "cut.pth"), str(tmp_path / "out.pth")
    assert main(["--source_model", source, "--output_model", output]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "cut.pth" in err
    assert os.listdir(tmp_path) == ["cut.pth"]

    assert main(["--source_model", source, "--output_model", source]) == 1
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--source_model", "x"], 2, "--output"),
        (["--source_model", "x", "--output_model", "y", "--num-classes", "0"], 2, "foreground"),
        (["--source_model", "x", "--output_model", "y", "--to", "keras"], 2, "huggingface"),
        (["--source_model", "x", "--output_model", "y", "--nheads", "0"], 2, "heads"),
        (["--help"], 0, "Examples:"),
    ],
)
def test_wrong_arguments_and_help(capsys, arguments, code, text):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == code
    assert text in "".join(capsys.readouterr())


def test_targets_are_those_of_the_export():
    assert convert.TARGETS == TARGETS
