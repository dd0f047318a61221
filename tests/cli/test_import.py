"""The command ``import``, on real files."""

import json
import shlex

import pytest

from detr_d2.cli.main import find_command

run = find_command("import")


@pytest.fixture
def cells(real_data, tmp_path, monkeypatch):
    """Make a working folder with 10 of the VOC files in voc/, and links to their images in images/."""
    monkeypatch.chdir(tmp_path)
    for name, folder, ending in (("voc", "voc", "xml"), ("images", "images", "jpg")):
        (tmp_path / name).mkdir()
        for file in sorted((real_data / "bccd" / folder).glob(f"*.{ending}"))[:10]:
            (tmp_path / name / file.name).symlink_to(file.resolve())
    return tmp_path


def read(name):
    with open(name) as file:
        return json.load(file)


def test_says_what_it_found_and_the_next_command(cells, capsys):
    assert run(["voc", "--output", "train.json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("voc is of the format voc (Pascal VOC): 10 .xml files")
    assert printed[1] == "Splits: none. All 10 images are used."
    assert printed[2].startswith("train.json: 10 images (0 without objects)")
    words = shlex.split(printed[-1])
    assert words[:3] == ["Next:", "detr-d2", "train"]
    # The command is complete: its parser accepts it, and the folder holds the images.
    args = find_command("train").make_parser().parse(words[3:])
    assert args.train_json == "train.json"
    assert args.train_images == "images"
    assert all((cells / "images" / x["file_name"]).is_file() for x in read("train.json")["images"])


def test_a_random_fraction_for_validation(cells, capsys):
    options = ["--output", "train.json", "--val-output", "val.json", "--val-fraction", "0.3"]
    assert run(["voc", *options]) == 0
    assert "--val-json val.json --val-images" in capsys.readouterr().out.splitlines()[-1]
    first = read("val.json")
    assert (len(read("train.json")["images"]), len(first["images"])) == (7, 3)
    assert first["categories"] == read("train.json")["categories"]
    assert run(["voc", *options, "--seed", "3"]) == 0
    assert first != read("val.json")
    assert run(["voc", *options]) == 0
    assert first == read("val.json")


def test_the_splits_of_the_dataset(cells, capsys):
    stems = sorted(x.stem for x in (cells / "voc").iterdir())
    (cells / "trainval.txt").write_text("\n".join(stems[:6]))
    (cells / "test.txt").write_text("\n".join(stems[6:9]))
    assert run(["voc", "--output", "train.json", "--val-output", "val.json"]) == 0
    assert [len(read(x)["images"]) for x in ("train.json", "val.json")] == [6, 3]
    assert "Splits (images): trainval 6, test 3. Used: trainval, test." in capsys.readouterr().out
    for split, count in (("test", 3), ("all", 10)):
        assert run(["voc", "--output", "one.json", "--split", split]) == 0
        assert len(read("one.json")["images"]) == count
    assert run(["voc", "--output", "train.json", "--val-output", "val.json", "--val-fraction", "0.5"]) == 0
    assert [len(read(x)["images"]) for x in ("train.json", "val.json")] == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "coca"], "no format coca. Did you mean coco?"),
        (["--format", "cvat"], "voc has no annotations.xml of CVAT"),
        (["--split", "dev"], "There is no split dev. Those of voc: none"),
        (["--images", "nowhere"], "The image folder nowhere does not exist"),
        (["--images", "voc"], "10 of 10 images do not exist"),
        (["--classes", "cat"], "No object is of the classes cat; there are: "),
        (["--val-fraction", "0.5"], "--val-fraction goes with --val-output"),
        (["--val-output", "train.json"], "are the same file"),
        (["--val-output", "nowhere/val.json"], "nowhere/val.json can't be written"),
        (["--val-output", "val.json", "--val-fraction", "2"], "between 0 and 1"),
    ],
)
def test_mistakes_leave_no_file(cells, capsys, options, message):
    before = sorted(cells.iterdir())
    assert run(["voc", "--output", "train.json", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert sorted(cells.iterdir()) == before


def test_classes_of_via(real_data, tmp_path, capsys):
    words = [str(real_data / "via" / "via2_project.json"), "--images", str(real_data / "coco" / "train2017")]
    words += ["--output", str(tmp_path / "via.json")]
    assert run([*words, "--class-attribute", "nam"]) == 1
    assert "No region has the attribute 'nam'" in capsys.readouterr().err
    assert run([*words, "--class-attribute", "name", "--classes", "cat,cow"]) == 0
    assert "10 objects of 2 classes: cat 1, cow 9" in capsys.readouterr().out
