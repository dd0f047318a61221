import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from detr_d2.modeling.postprocessing import QueryMasks, resized_masks


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_the_original_steps_at_once(seed, threshold):
    """PostProcessSegm's own lines, over random sizes."""
    generator = torch.Generator().manual_seed(seed)
    padded, output = (torch.randint(1, 200, (2,), generator=generator).tolist() for _ in range(2))
    image = [int(torch.randint(1, x + 1, (1,), generator=generator)) for x in padded]
    logits = torch.randn(6, *(-(-x // 4) for x in padded), generator=generator) * 3
    masks = resized_masks(logits, padded_size=padded, image_size=image, output_size=output, threshold=threshold)
    expected = F.interpolate(logits[None], size=padded, mode="bilinear", align_corners=False).sigmoid() > threshold
    expected = F.interpolate(expected[..., : image[0], : image[1]].float(), size=output, mode="nearest")[0]
    assert masks.shape == (6, *output)
    assert (masks != expected.bool()).float().mean() < 1e-4


def test_the_threshold_itself_is_too_low():
    """As in the original: a logit of 0 is a probability of exactly a half."""
    sizes = {"padded_size": (4, 4), "image_size": (4, 4), "output_size": (4, 4)}
    assert not resized_masks(torch.zeros(1, 2, 2), **sizes).any()
    assert resized_masks(torch.full((1, 2, 2), 1e-6), **sizes).all()


def test_no_masks():
    """Edge case C36."""
    masks = resized_masks(torch.zeros(0, 3, 4), padded_size=(12, 16), image_size=(12, 16), output_size=(5, 6))
    assert masks.shape == (0, 5, 6)
    assert masks.dtype == torch.bool


def test_every_query_is_made_once():
    asked = []

    def make(queries):
        asked.extend(queries.tolist())
        return queries.view(-1, 1, 1).float().expand(-1, 2, 3)

    masks = QueryMasks(make, 10, torch.device("cpu"))
    for queries in ([7, 2, 7], [2, 9], [9, 7, 2], [0]):
        assert_close(masks(torch.tensor(queries))[:, 0, 0], torch.tensor(queries).float())
    assert asked == [2, 7, 9, 0]
