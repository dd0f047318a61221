"""The notebooks, run with tiny settings."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
NAMES = ["attention", "finetuning", "first_look", "panoptic"]
# Images that the cells show.
IMAGES = {"attention": 4, "finetuning": 3, "first_look": 1, "panoptic": 3}


def test_notebooks_are_kept_without_outputs():
    assert [x.stem for x in NOTEBOOKS] == NAMES
    for path in NOTEBOOKS:
        cells = [x for x in json.loads(path.read_text())["cells"] if x["cell_type"] == "code"]
        assert not any(x["outputs"] or x["execution_count"] for x in cells), path.name


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebooks_run(path, repository, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra 'notebooks'")
    pytest.importorskip("ipykernel", reason="needs the extra 'notebooks'")
    import nbformat

    settings = {"STEPS": "2", "IMAGES": "10", "EXPORT": "model.ts", "OUTPUT": str(tmp_path / "output")}
    paths = {"PYTHONPATH": str(repository), "DETR_D2_CACHE": str(tmp_path / "cache"), "IPYTHONDIR": str(tmp_path)}
    # Detectron2's dependencies warn when they are imported.
    for name, value in {**settings, **paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == IMAGES[path.stem]
    # The training logs into a variable.
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert (tmp_path / "output" / "model_final.pth").is_file()
