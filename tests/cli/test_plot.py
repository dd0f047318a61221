import json

import pytest

from detr_d2.cli.plot import main


@pytest.fixture
def plot(tmp_path, monkeypatch):
    """Return the command's main function, in a folder with the runs a/x and b/x."""
    for name in ("a", "b"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "metrics.json").write_text(json.dumps({"iteration": 19, "total_loss": 3.0}))
    monkeypatch.chdir(tmp_path)
    return main


@pytest.mark.parametrize("flag", [[], ["--input"]], ids=["words", "--input"])
def test_plots_runs_of_the_same_name(plot, tmp_path, capsys, flag):
    assert plot([*flag, "a/x", "b/x/metrics.json", "--output", "curves.svg"]) == 0
    assert capsys.readouterr().out == "Wrote curves.svg.\n"
    # Paths distinguish the runs in the legend; matplotlib notes every text of a plot in a comment.
    text = (tmp_path / "curves.svg").read_text()
    assert "<!-- a/x -->" in text
    assert "<!-- b/x/metrics.json -->" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give the folders of the runs"),
        (["nowhere"], "nowhere does not exist"),
        (["a/x", "--metrics", "AP"], "No run has the metric 'AP'. There are: total_loss."),
        (["a/x", "--output", "curves.jpgg"], "end its name in .png, .pdf or .svg"),
        (["a/x", "--output", "nowhere/curves.png"], "make the folder nowhere first"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(plot, tmp_path, capsys, words, message):
    assert plot(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a", "b"]
