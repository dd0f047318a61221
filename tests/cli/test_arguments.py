import pytest

from detr_d2.cli.arguments import CommandParser, add_training_flags, take_options


@pytest.fixture
def parser():
    parser = CommandParser("test", "")
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_alias("--input", "--source_model", "--source-model")
    add_training_flags(parser)
    return parser


def test_config_keys_are_separated_from_values_of_flags(tmp_path, monkeypatch):
    """Also from flags that take any number; files called like keys stay where they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "INPUT.JPG").touch()
    words = ["--input", "a.jpg", "INPUT.JPG", "DSC_1.JPG", "MODEL.WEIGHTS", "w.pth", "SEED", "3", "--top", "2"]
    assert take_options(words) == (
        ["--input", "a.jpg", "INPUT.JPG", "DSC_1.JPG", "--top", "2"],
        ["MODEL.WEIGHTS", "w.pth", "SEED", "3"],
    )
    assert take_options(["--input", "a.jpg", "MODEL.WEIGHTS"]) == (["--input", "a.jpg"], ["MODEL.WEIGHTS"])
    assert take_options(["OUTPUT_DIR", "TEST", "SEED", "1"]) == ([], ["OUTPUT_DIR", "TEST", "SEED", "1"])


def test_config_keys_stand_anywhere(parser):
    args = parser.parse(["SEED", "1", "--input", "a", "b", "MODEL.WEIGHTS", "w.pth", "--resume", "MODLE.X", "3"])
    assert args.input == ["a", "b"]
    assert args.resume
    assert args.opts == ["MODLE.X", "3", "SEED", "1", "MODEL.WEIGHTS", "w.pth"]


def test_output_is_the_config_key(parser):
    assert parser.parse(["--output", "out", "--input", "a", "SEED", "1"]).opts == ["SEED", "1", "OUTPUT_DIR", "out"]


@pytest.mark.parametrize("flag", ["--input", "--source_model", "--source-model", "--in", "--source"])
def test_old_spellings_and_abbreviations(parser, flag):
    assert parser.parse([flag, "a"]).input == ["a"]


def test_help_shows_one_spelling(parser):
    assert "--input" in parser.format_help()
    assert "source" not in parser.format_help()


@pytest.mark.parametrize("words", [[], ["--input"], ["--input", "a", "--nothing"]])
def test_wrong_usage(parser, capsys, words):
    with pytest.raises(SystemExit) as exit_:
        parser.parse(words)
    assert exit_.value.code == 2
    assert "usage: detr-d2 test" in capsys.readouterr().err
