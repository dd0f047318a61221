import importlib.util
import json

import pytest

CONTENT = {
    "images": [{"id": 3, "height": 50, "width": 50, "file_name": "a.jpg"}],
    "annotations": [{"id": 1, "image_id": 3, "category_id": 7, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}],
    "categories": [{"id": 7, "name": "cat"}],
}
RESULT = {"image_id": 3, "category_id": 7, "bbox": [0, 0, 9, 9], "score": 0.8}


@pytest.fixture
def evaluate(repository, tmp_path, monkeypatch):
    """A function that runs the tool on the contents of the two files, text or what JSON can hold."""
    spec = importlib.util.spec_from_file_location("evaluate_results", repository / "tools" / "evaluate_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)

    def run(annotations=CONTENT, results=(RESULT,), *words: str) -> None:
        for name, content in (("annotations.json", annotations), ("results.json", results)):
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        files = ["--annotations", "annotations.json", "--results", "results.json", "--output", "report"]
        module.main([*files, *words])

    return run


def test_writes_and_prints(evaluate, tmp_path, capsys):
    evaluate()
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
        (CONTENT, '[{"image_id": 3,', "results.json is not complete JSON"),
        ("", [RESULT], "annotations.json is not complete JSON"),
        ([RESULT], [RESULT], "annotations.json has no list of images"),
        ({**CONTENT, "annotations": []}, [RESULT], "annotations.json has no annotated objects"),
        ({**CONTENT, "annotations": [{"segments_info": []}]}, [RESULT], "annotations.json holds panoptic annotations"),
        ({**CONTENT, "annotations": [{"bbox": []}]}, [RESULT], "check_dataset.py says what is wrong with it"),
        (CONTENT, CONTENT, "results.json is no list"),
        (CONTENT, [RESULT, "cat"], "result 1 is not an object"),
        (CONTENT, [{**RESULT, "image_id": 4}], "result 0 is of image 4, which the annotations do not have"),
        (CONTENT, [{**RESULT, "category_id": 0}], "result 0 has the category 0, and the annotations have 7"),
        (CONTENT, [{k: v for k, v in RESULT.items() if k != "score"}], "result 0 has no 'score'"),
    ],
)
def test_a_mistake_is_one_line(evaluate, tmp_path, annotations, results, message):
    with pytest.raises(SystemExit) as e:
        evaluate(annotations, results)
    # A text as the code makes Python print it to stderr and end with 1.
    assert str(e.value.code).startswith("error: ")
    assert message in e.value.code
    assert not (tmp_path / "report").exists()


def test_masks_are_needed_for_masks(evaluate):
    with pytest.raises(SystemExit, match="result 0 has no 'segmentation', which the task 'segm' needs"):
        evaluate(CONTENT, [RESULT], "--task", "segm")


def test_the_output_is_a_folder(evaluate, tmp_path):
    (tmp_path / "report").write_text("")
    with pytest.raises(SystemExit, match="--output report is a file"):
        evaluate()


def test_the_threshold_is_a_score(evaluate):
    with pytest.raises(SystemExit, match=r"--score-thresh is 50\.0: give a number from 0 to 1"):
        evaluate(CONTENT, [RESULT], "--score-thresh", "50")
