import pytest

from detr_d2.utils.errors import UserError
from detr_d2.utils.output_folder import output_folder


def write(path, text="new", **options):
    with output_folder(path, marker="done", **options) as folder:
        (folder / "done").write_text(text)


def test_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "out"
    with output_folder(path, marker="done") as folder:
        (folder / "done").touch()
        assert not path.exists()
    assert [x.name for x in path.parent.iterdir()] == ["out"]


def test_a_failure_leaves_what_looks_unfinished_and_is_replaced(tmp_path):
    def fail():
        with output_folder(tmp_path / "out", marker="done") as folder:
            (folder / "half").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [x.name for x in tmp_path.iterdir()] == ["out.incomplete"]
    write(tmp_path / "out")
    assert [x.name for x in tmp_path.rglob("*")] == ["out", "done"]


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path):
    def fail():
        with output_folder(tmp_path / "out", marker="done") as folder:
            (folder / "pictures").mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_results_are_replaced_on_request_alone(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "first")
    with pytest.raises(UserError, match="add --overwrite"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "done").read_text() == "first"
    write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "done").read_text() == "new"


def test_what_others_wrote_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        write(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "thesis.tex", overwrite=True)
    with pytest.raises(UserError, match="can't be made"):
        write(tmp_path / "thesis.tex" / "out")
    assert [x.name for x in tmp_path.iterdir()] == ["thesis.tex"]
