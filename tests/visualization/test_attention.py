import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detr_d2.modeling import AttentionRecord
from detr_d2.utils.errors import UserError
from detr_d2.visualization import attention, draw_encoder_attention, draw_query_attention
from detr_d2.visualization.attention import Panel, draw_panels, heat_map, overlay_heat

IMAGE = np.random.default_rng(0).integers(256, size=(150, 200, 3), dtype=np.uint8)


def record(size=(3, 4), image_size=(96, 128), heads=2, queries=4) -> AttentionRecord:
    generator = torch.Generator().manual_seed(0)
    features = size[0] * size[1]
    weights = [torch.rand(1, heads, queries, features, generator=generator).softmax(-1) for _ in range(2)]
    encoder = [torch.rand(1, heads, features, features, generator=generator).softmax(-1) for _ in range(2)]
    return AttentionRecord(encoder, weights, size, 32, [image_size], None, encoder_points=None)


def detections() -> Instances:
    """Query 3 is the best, then 1 under two classes; 0 and 2 have no detection."""
    boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 80.0], [90.0, 20.0, 180.0, 140.0], [90.0, 20.0, 180.0, 140.0]]))
    fields = {"pred_classes": torch.tensor([0, 1, 2]), "scores": torch.tensor([0.5, 0.9, 0.7])}
    fields["queries"] = torch.tensor([1, 3, 1])
    return Instances((150, 200), pred_boxes=boxes, **fields)


@pytest.fixture
def panels(monkeypatch):
    drawn = []
    draw = attention.draw_panels
    monkeypatch.setattr(attention, "draw_panels", lambda x, columns: (drawn.append((x, columns)), draw(x, columns))[1])
    return drawn


def test_heat_is_at_the_position_of_the_feature():
    """One feature, row 1, column 2 of 3 x 4, of an image of 96 x 128 that was resized from 150 x 200."""
    weights = torch.zeros(3, 4)
    weights[1, 2] = 1
    heat = heat_map(weights, record(), (150, 200))
    assert heat.shape == (150, 200)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert (row, column) == pytest.approx((1.5 * 32 * 150 / 96, 2.5 * 32 * 200 / 128), abs=1)
    assert heat.max() == pytest.approx(1, abs=0.01)
    assert heat.min() == 0


def test_heat_leaves_the_padding_out():
    """The image covers 32 x 64 pixels, so 1 x 2 features of 3 x 4, and half of the second if it ends at 48."""
    weights = torch.zeros(3, 4)
    weights[0, 1] = 1
    whole = heat_map(weights, record(image_size=(32, 64)), (100, 200))
    assert whole.argmax(1)[50] == pytest.approx(150, abs=1)
    part = heat_map(weights, record(image_size=(32, 48)), (100, 150))
    assert np.allclose(part, whole[:, :150], atol=0.05)


def test_a_backbone_that_floors_its_features():
    """Odd image sizes: 3 x 4 features of 120 pixels are 3.75 strides high."""
    assert heat_map(torch.ones(3, 4), record(image_size=(120, 128)), (30, 3000)) == pytest.approx(1, abs=1e-5)


def test_the_largest_weight_is_the_brightest():
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[1, 2] = 0.05
    drawn_image = overlay_heat(np.full((4, 4, 3), 100, dtype=np.uint8), heat)
    assert (drawn_image.shape, drawn_image.dtype) == ((4, 4, 3), np.uint8)
    assert drawn_image.sum(-1).argmax() == 6
    assert overlay_heat(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.float32)).shape == (1, 1, 3)


def test_best_detections_are_drawn(panels):
    drawn_image = draw_query_attention(IMAGE, detections(), record(), ["cat", "dog", "bird"], top=2)
    assert drawn_image.dtype == np.uint8
    ((drawn, _),) = panels
    assert [x.caption for x in drawn] == ["image", "dog 90%", "bird 70%"]
    assert [x.note for x in drawn] == ["decoder layer 2 of 2", "query 3", "query 1"]
    assert [x.boxes[0][0] for x in drawn[1:]] == [(90, 20, 180, 140)] * 2
    assert len(drawn[0].boxes) == 2
    weights = record().decoder[-1][0, :, 3].mean(0)
    expected = overlay_heat(IMAGE, heat_map(weights.unflatten(0, (3, 4)), record(), (150, 200)))
    assert np.array_equal(drawn[1].image, expected)


def test_chosen_queries_layer_and_heads(panels):
    draw_query_attention(IMAGE, detections(), record(), queries=[2, 1], layer=0, per_head=True)
    ((drawn, columns),) = panels
    assert columns == 3
    assert [x.caption for x in drawn] == ["no detection", "head 0", "head 1", "class 2 70%", "head 0", "head 1"]
    assert [x.note for x in drawn] == ["query 2", "", "", "query 1", "", ""]
    assert [drawn[i].corner for i in (0, 3)] == ["decoder layer 1 of 2"] * 2
    weights = record().decoder[0][0, 1, 2]
    assert np.array_equal(
        drawn[2].image, overlay_heat(IMAGE, heat_map(weights.unflatten(0, (3, 4)), record(), (150, 200)))
    )


def test_no_detections(panels):
    draw_query_attention(IMAGE, detections()[:0], record())
    draw_query_attention(IMAGE, detections()[:0], record(), per_head=True)
    assert [[x.caption for x in drawn] for drawn, _ in panels] == [["no detections"]] * 2


def test_encoder_attention(panels):
    draw_encoder_attention(IMAGE, record(), [(0.1, 0.9), (0.6, 0.5)])
    ((drawn, _),) = panels
    assert [x.caption for x in drawn] == ["image", "from point 1", "from point 2"]
    assert drawn[0].note == "encoder layer 2 of 2"
    assert [mark[0] for mark in drawn[0].marks] == [(20, 135), (120, 75)]
    weights = record().encoder[-1][0, :, 6].mean(0)
    expected = overlay_heat(IMAGE, heat_map(weights.unflatten(0, (3, 4)), record(), (150, 200)))
    assert np.array_equal(drawn[2].image, expected)


def test_missing_queries_layers_and_points():
    with pytest.raises(UserError, match="no query 4: the model has 4"):
        draw_query_attention(IMAGE, detections(), record(), queries=[4])
    with pytest.raises(UserError, match="no layer 2 in the decoder"):
        draw_query_attention(IMAGE, detections(), record(), layer=2)
    with pytest.raises(UserError, match="No points"):
        draw_encoder_attention(IMAGE, record())


@pytest.mark.parametrize("size", [(1, 1), (30, 900), (900, 30)])
def test_images_of_any_shape(size):
    """Of one pixel, very wide, very high."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    drawn_image = draw_query_attention(image, detections(), record(), top=2)
    assert min(drawn_image.shape[:2]) > 20


def test_long_captions_leave_the_note_free():
    image = np.zeros((300, 100, 3), dtype=np.uint8)
    both, note = (draw_panels([Panel(image, x, "query 17")], 1) for x in ("a very long name of a class, 99%", ""))
    _rows, columns = np.nonzero(note[:35].min(-1) < 250)
    left = columns.min()
    assert np.array_equal(both[:35, left - 3 :], note[:35, left - 3 :])
    assert (both[:35, :left] < 100).any()
