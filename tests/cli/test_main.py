"""The command ``detr-d2`` itself: help, versions, completion, and the choice of a command."""

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
import torch

import detr_d2
from detr_d2.cli import completion
from detr_d2.cli.main import COMMANDS, find_command, main

OURS = [name for name in COMMANDS if name != "benchmark"]
SCRIPTS = {
    "converter.py": "convert",
    "train_net.py": "train",
    "tools/analyze_model.py": "analyze",
    "tools/check_dataset.py": "check",
    "tools/demo.py": "demo",
    "tools/evaluate_results.py": "evaluate-results",
    "tools/overfit.py": "overfit",
    "tools/plot_training.py": "plot",
    "tools/predict.py": "predict",
    "tools/via_to_coco.py": "import-via",
    "tools/visualize_attention.py": "attention",
}


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]], ids=str)
def test_help_lists_the_commands(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines if re.match(r"  [a-z]", line)]
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    # Aligned.
    assert len({re.match(r"  \S+ +", line).end() for line in listed}) == 1


def test_versions(capsys):
    assert main(["--version"]) == 0
    versions = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(versions) == ["detr_d2", "torch", "detectron2", "Python"]
    assert versions["detr_d2"] == detr_d2.__version__
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    try:
        importlib.import_module("detectron2._C")
        ops = "with compiled ops"
    except ImportError:
        ops = "without compiled ops"
    assert ops in versions["detectron2"]


def test_an_unknown_command(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: there is no command trian. Did you mean train?\n"
    assert main(["xyz"]) == 2
    assert capsys.readouterr().err == "error: there is no command xyz. detr-d2 --help lists the commands.\n"


def test_a_command_gets_its_arguments(capsys):
    assert main(["plot", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_missing_detectron2_is_one_message(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "detectron2" else find_spec(name))
    assert main(["train"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: detr_d2 needs Detectron2")
    assert "pip install" in error


@pytest.mark.parametrize("command", OURS)
def test_help_of_a_command(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: detr-d2 {command} ")
    assert re.search(rf"\nExamples?:\n(.*\n)*.*detr-d2 {command} ", printed)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["completion", "bash"], ["train", "--help"], ["train", "SEED", "1", "-h"]],
    ids=" ".join,
)
def test_answers_without_importing_torch(repository, words):
    command = [sys.executable, "-X", "importtime", "-m", "detr_d2.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "detr_d2.cli.main" in done.stderr
    assert not re.search(r"\| +(torch|detectron2)\b", done.stderr)


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items())
def test_scripts_are_commands(repository, script, command):
    spec = importlib.util.spec_from_file_location("script_under_test", repository / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main is find_command(command)


def test_completion_in_bash(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)

    def complete(*words) -> set[str]:
        words = " ".join(f"'{word}'" for word in words)
        script = f"""
            source {tmp_path / "script"}
            COMP_WORDS=({words})
            COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _detr_d2
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        return set(subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.split())

    assert complete("detr-d2", "pre") == {"predict"}
    assert complete("detr-d2", "co") == {"completion", "convert"}
    assert complete("detr-d2", "predict", "--in") == {"--input"}
    assert complete("detr-d2", "train", "--config-file", "smca", "--num") == {"--num-gpus", "--num-machines"}
    assert complete("detr-d2", "completion", "f") == {"fish"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell, capsys, tmp_path):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    flag = "-l score-thresh" if shell == "fish" else "--score-thresh"
    assert flag in script
    assert "source_model" not in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_every_flag_is_completed():
    for command in OURS:
        parser = find_command(command).make_parser()
        shown = set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", parser.format_help(), re.MULTILINE))
        assert {x for x in completion.list_flags(command) if x.startswith("--")} == shown
