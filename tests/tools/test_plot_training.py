import importlib.util
import json

import pytest


@pytest.fixture
def plot_training(repository, tmp_path, monkeypatch):
    """The tool's main function, in a folder with the runs a/x and b/x."""
    for name in ("a", "b"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "metrics.json").write_text(json.dumps({"iteration": 19, "total_loss": 3.0}))
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("plot_training", repository / "tools" / "plot_training.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_draws_runs_of_the_same_name(plot_training, tmp_path, capsys):
    plot_training(["a/x", "b/x/metrics.json", "--output", "curves.svg"])
    assert capsys.readouterr().out == "Wrote curves.svg.\n"
    # Paths tell the runs apart in the legend; matplotlib notes every text of a picture in a comment.
    text = (tmp_path / "curves.svg").read_text()
    assert "<!-- a/x -->" in text
    assert "<!-- b/x/metrics.json -->" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["a/x", "--metrics", "AP"], "No run has the metric 'AP'. There are: total_loss."),
        (["a/x", "--output", "curves.jpgg"], "end its name in .png, .pdf or .svg"),
        (["a/x", "--output", "nowhere/curves.png"], "make the folder nowhere first"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(plot_training, tmp_path, words, message):
    with pytest.raises(SystemExit) as e:
        plot_training(words)
    # A text as the code makes Python print it to stderr and end with 1.
    assert str(e.value.code).startswith("error: ")
    assert message in e.value.code
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a", "b"]
