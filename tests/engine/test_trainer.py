import pytest

from detr_d2.engine import loading_options
from detr_d2.errors import UserError


def test_loading_options(make_cfg):
    assert loading_options(make_cfg()) == {"resize_queries": False, "classes_by_name": False}
    cfg = make_cfg("MODEL.DETR.LOAD.QUERIES", "resize", "MODEL.DETR.LOAD.CLASSES", "by_name")
    assert loading_options(cfg) == {"resize_queries": True, "classes_by_name": True}


@pytest.mark.parametrize("key", ["MODEL.DETR.LOAD.QUERIES", "MODEL.DETR.LOAD.CLASSES"])
def test_unknown_loading_options(make_cfg, key):
    with pytest.raises(UserError, match=f"{key} is 'sometimes': choose one of"):
        loading_options(make_cfg(key, "sometimes"))
