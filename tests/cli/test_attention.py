"""The command ``attention``, with a small model that is not trained."""

import numpy as np
import pytest
from PIL import Image

from detr_d2.cli.attention import main


@pytest.fixture
def visualize(save_trained, real_data, tmp_path):
    """Return a function that runs the command on a photograph, and returns the exit code."""
    image = min((real_data / "coco" / "val2017").iterdir())

    def run(*words, model=()) -> int:
        config, weights = save_trained(*model)
        flags = ["--config-file", str(config), "--input", str(image), "--output", str(tmp_path / "attention.png")]
        return main([*flags, *map(str, words), "MODEL.WEIGHTS", str(weights)])

    return run


SMCA = ("MODEL.DETR.TRANSFORMER", "SmcaTransformer", "MODEL.DETR.CLASS_LOSS", "focal")


@pytest.mark.parametrize("model", [(), SMCA], ids=["DETR", "SMCA"])
@pytest.mark.parametrize(
    ("words", "panels"),
    [
        (("--top", 2), 3),
        (("--per-head", "--layer", 0, "--queries", 3, 6), 2 * 5),
        (("--encoder-point", 100, 50, "--encoder-point", 10, 10), 3),
    ],
    ids=["best", "queries", "points"],
)
def test_writes_an_image(visualize, tmp_path, monkeypatch, model, words, panels):
    from detr_d2.visualization import attention

    drawn = []
    draw = attention.draw_panels
    monkeypatch.setattr(attention, "draw_panels", lambda x, columns: (drawn.extend(x), draw(x, columns))[1])
    assert visualize(*words, model=model) == 0
    assert len(drawn) == panels
    written = np.asarray(Image.open(tmp_path / "attention.png"))
    assert written.ndim == 3
    assert written.std() > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--queries", 7), "no query 7: the model has 7"),
        (("--layer", 3), "no layer 3 in the decoder"),
        (("--layer", 2, "--encoder-point", 1, 1), "no layer 2 in the encoder"),
        (("--encoder-point", 5000, 1), "--encoder-point 5000 1 is outside the image"),
        (("--top", 0), "--top is 0"),
        (("--output", "attention.jpg"), "give the path of a .png file"),
        (("--output", "nowhere/attention.png"), "in a folder that exists"),
        (("--input", "nowhere.jpg"), "nowhere.jpg does not exist"),
    ],
)
def test_mistakes(visualize, tmp_path, capsys, words, message):
    assert visualize(*words) == 1
    (error,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error:"))
    assert message in error
    assert not (tmp_path / "attention.png").exists()
