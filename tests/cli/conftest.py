"""What the tests of the commands share."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco


@pytest.fixture
def real_coco(monkeypatch, request):
    """Return a function that registers COCO's datasets in a folder, by default that of the real data."""
    before = [dict(DatasetCatalog.data), dict(MetadataCatalog.data)]

    def register(folder=None) -> None:
        folder = request.getfixturevalue("real_data") if folder is None else folder
        monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
        for name in [x for x in DatasetCatalog.list() if x.startswith(("coco_", "keypoints_coco_"))]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_all_coco(str(folder))

    yield register
    for catalog, entries in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data.clear()
        catalog.data.update(entries)
