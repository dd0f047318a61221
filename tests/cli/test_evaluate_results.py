import json

import pytest

from detr_d2.cli.evaluate_results import main

CONTENT = {
    "images": [{"id": 3, "height": 50, "width": 50, "file_name": "a.jpg"}],
    "annotations": [{"id": 1, "image_id": 3, "category_id": 7, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
    "categories": [{"id": 7, "name": "cat"}],
}
RESULT = {"image_id": 3, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 0.8}


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Return a function that runs the command on the contents of the two files, text or what JSON can hold."""
    monkeypatch.chdir(tmp_path)

    def run(annotations=CONTENT, results=(RESULT,), *words: str) -> int:
        for name, content in (("annotations.json", annotations), ("results.json", results)):
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        files = ["--annotations", "annotations.json", "--input", "results.json", "--output", "report"]
        return main([*files, *words])

    return run


def assert_error(capsys, message):
    """One line, no traceback."""
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_writes_and_prints(evaluate, tmp_path, capsys):
    assert evaluate() == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:4] == ["class", "images", "objects", "AP"]
    assert table[3].split() == ["cat", "1", "1", "100", "100", "100", "0.4", "100", "100", "100", "1"]
    assert table[-1] == "Wrote the report to report."
    assert (tmp_path / "report" / "precision_recall.png").read_bytes().startswith(b"\x89PNG")


def test_no_results_and_a_threshold(evaluate, tmp_path):
    evaluate(CONTENT, [])
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["overall"]["ap"] == 0
    evaluate(CONTENT, [RESULT], "--score-thresh", "0.9")
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["confusion"]["matrix"] == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("annotations", "results", "message"),
    [
        (CONTENT, '[{"image_id": 3,', "results.json is not valid JSON"),
        ("", [RESULT], "annotations.json is not valid JSON"),
        ([RESULT], [RESULT], "annotations.json holds a JSON list, where COCO's format has an object"),
        ({"images": [{}]}, [RESULT], "annotations.json has no list 'categories'"),
        ({**CONTENT, "annotations": []}, [RESULT], "annotations.json has no annotated objects"),
        (
            {**CONTENT, "annotations": [{"segments_info": []}]},
            [RESULT],
            "annotations.json is in COCO's panoptic format",
        ),
        ({**CONTENT, "annotations": [{"bbox": []}]}, [RESULT], "`detr-d2 check` says what is wrong with it"),
        (CONTENT, CONTENT, "results.json does not hold a list"),
        (CONTENT, [RESULT, "cat"], "result 1 is not an object"),
        (CONTENT, [{**RESULT, "image_id": 4}], "result 0 is of image 4, which the annotations do not have"),
        (CONTENT, [{**RESULT, "category_id": 0}], "result 0 has the category 0, and the annotations have 7"),
        (CONTENT, [{k: v for k, v in RESULT.items() if k != "score"}], "result 0 has no 'score'"),
        (CONTENT, [{**RESULT, "image_id": {}}], "result 0 has the image_id {}: correct it"),
        (CONTENT, [{**RESULT, "score": "high"}], "result 0 has the score 'high': correct it"),
        (CONTENT, [{**RESULT, "bbox": [1, 2, None, 4]}], "result 0 has the bbox [1, 2, None, 4]: correct it"),
        ({**CONTENT, "images": CONTENT["images"] * 2}, [RESULT], "annotations.json has 2 images of id"),
        (
            {**CONTENT, "annotations": [{**x, "category_id": 99} for x in CONTENT["annotations"]]},
            [RESULT],
            "has no category, box or 'iscrowd' of the format",
        ),
    ],
)
def test_a_mistake_is_one_line(evaluate, tmp_path, capsys, annotations, results, message):
    assert evaluate(annotations, results) == 1
    assert_error(capsys, message)
    assert not (tmp_path / "report").exists()


def test_masks_are_needed_for_masks(evaluate, capsys):
    assert evaluate(CONTENT, [RESULT], "--task", "segm") == 1
    assert_error(capsys, "result 0 has no 'segmentation', which the task 'segm' needs")


def test_the_output_is_a_folder(evaluate, tmp_path, capsys):
    (tmp_path / "report").write_text("")
    assert evaluate() == 1
    assert_error(capsys, "--output report is a file")


def test_the_threshold_is_a_score(evaluate, capsys):
    assert evaluate(CONTENT, [RESULT], "--score-thresh", "50") == 1
    assert_error(capsys, "--score-thresh is 50.0: give a number from 0 to 1")


def test_the_old_name_of_the_results(evaluate):
    """Flags that stand later count."""
    assert evaluate(CONTENT, [RESULT], "--results", "nowhere.json") == 1
