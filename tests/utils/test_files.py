import os
import resource

import pytest

from detr_d2.utils.errors import UserError
from detr_d2.utils.files import atomic_file, output_folder, read_json, write_json


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail():
        with atomic_file(str(path)) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_replaces_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def write_folder(path, text="new", **options):
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
    write_folder(tmp_path / "out")
    assert [x.name for x in tmp_path.rglob("*")] == ["out", "done"]


def test_a_failure_before_anything_is_written_leaves_nothing(tmp_path):
    def fail():
        with output_folder(tmp_path / "out", marker="done") as folder:
            (folder / "images").mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_results_are_replaced_on_request_alone(tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", "first")
    with pytest.raises(UserError, match="add --overwrite"):
        write_folder(tmp_path / "out")
    assert (tmp_path / "out" / "done").read_text() == "first"
    write_folder(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "done").read_text() == "new"


def test_what_others_wrote_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        write_folder(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        write_folder(tmp_path / "thesis.tex", overwrite=True)
    with pytest.raises(UserError, match="can't be made"):
        write_folder(tmp_path / "thesis.tex" / "out")
    assert [x.name for x in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_unicode(tmp_path, encoding):
    (tmp_path / "file.json").write_text('{"name": "Größe"}', encoding=encoding)
    assert read_json(tmp_path / "file.json") == {"name": "Größe"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file.json does not exist: give the path of a table"),
        (b'{"images": [1, 2', r"file.json is not valid JSON \(Expecting .* line 1 column 17 .*\): save it again"),
        (b"", "file.json is not valid JSON"),
        ('{"name": "Größe"}'.encode("latin-1"), "file.json is not a table, since it is not text in UTF-8 .*: save it"),
        (b"[" * 200000, "file.json is not a table, since its JSON is nested too deeply: save it again"),
    ],
    ids=["missing", "cut off", "empty", "other encoding", "nested"],
)
def test_json_errors_name_the_file_and_the_fix(tmp_path, content, message):
    if content is not None:
        (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "file.json", what="a table", fix="save it again")


def test_json_from_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"is a folder: give the path of a JSON file\."):
        read_json(tmp_path)


def test_a_folder_that_another_process_is_writing_stays(tmp_path):
    """A lock that is taken twice in one process behaves as in two."""
    with output_folder(tmp_path / "out", marker="done") as folder:
        (folder / "half").touch()
        with pytest.raises(UserError, match=r"Another process is writing the output folder .*out: wait"):
            write_folder(tmp_path / "out")
        assert (folder / "half").exists()
        (folder / "done").touch()
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["done", "half"]
    write_folder(tmp_path / "out", overwrite=True)
    assert [x.name for x in (tmp_path / "out").iterdir()] == ["done"]


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / "out.incomplete" / "images").mkdir(parents=True)
    (tmp_path / "out.incomplete" / "images" / "half").touch()
    (tmp_path / "out.incomplete" / "link").symlink_to(tmp_path)
    (tmp_path / "file.tmp").write_bytes(b"longer than the file")
    write_folder(tmp_path / "out")
    with atomic_file(tmp_path / "file") as file:
        file.write(b"new")
    assert sorted(str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*")) == ["file", "out", "out/done"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_two_processes_write_one_file(tmp_path):
    """Each its own temporary file; the last one replaces the other's."""
    with atomic_file(tmp_path / "file") as first:
        first.write(b"first")
        with atomic_file(tmp_path / "file") as second:
            second.write(b"second")
        assert (tmp_path / "file").read_bytes() == b"second"
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """As a limit on the size of files, which stands for it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"), atomic_file(path) as file:
            file.write(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_json_is_written_whole(tmp_path):
    """What can't be written leaves the earlier content."""
    path = tmp_path / "a.json"
    write_json(path, {"name": "Grün"}, indent=1)
    assert path.read_bytes() == '{\n "name": "Grün"\n}'.encode()
    assert read_json(path) == {"name": "Grün"}
    with pytest.raises(TypeError):
        write_json(path, {"name": object()})
    assert read_json(path) == {"name": "Grün"}
    assert [x.name for x in tmp_path.iterdir()] == ["a.json"]
