"""The mask head for all object queries of a padded batch, without a loop over images."""

from itertools import pairwise

from torch import Tensor, arange, cat
from torch.nn import GroupNorm
from torch.nn import functional as F

from detr_d2.modeling.network import DetrNetwork
from detr_d2.structures import MaskInputs, SizedBatch

# Object queries whose masks are computed at once: the loop over them is unrolled in the exported file.
_CHUNK = 20


def padded_masks(network: DetrNetwork, inputs: MaskInputs, queries: Tensor, count: int, batch: SizedBatch) -> Tensor:
    """Compute the masks of chosen object queries, each image's as if it were alone.

    The same numbers as of :meth:`DetrNetwork.masks`, which computes one image of a padded batch after the other. Here
    padded features are zero before every convolution and are left out of every group norm.

    Args:
        network: network with a mask head.
        inputs: of the network's forward.
        queries: (B, K) int64 queries of each image.
        count: K, which is the same for all sizes and batches.
        batch: the images.

    Returns:
        (B, K, h, w) logits at the size of the backbone's finest level. Within the valid size of an image they are its
        masks; beyond they have no meaning.
    """
    maps = network.bbox_attention(inputs.hidden, inputs.memory, inputs.padding_mask)
    maps = maps[arange(maps.shape[0])[:, None], queries]
    stages = _Stages(network, inputs, batch)
    # A slice, since a traced split is for numbers that divide.
    return cat([stages.logits(maps[:, i : i + _CHUNK], min(_CHUNK, count - i)) for i in range(0, count, _CHUNK)], dim=1)


class _Stages:
    """The convolutions of a mask head: the response to the images, once, and then that to some queries' maps."""

    def __init__(self, network: DetrNetwork, inputs: MaskInputs, batch: SizedBatch):
        self.head = head = network.mask_head
        backbone = network.backbone[0]
        levels = [inputs.source.tensor, *(level.tensor for level in inputs.finer)][:4]
        strides = [backbone.strides[name] for name in (backbone.level, *backbone.finer_levels)][:4]
        self.factors = [before // after for before, after in pairwise(strides)]
        self.inside = [batch.valid_mask(x.shape[-2:], s).float() for x, s in zip(levels, strides, strict=True)]
        source_weight, self.maps_weight = head.lay1.weight.split(
            (head.hidden_dim, network.bbox_attention.nheads), dim=1
        )
        first = F.conv2d(levels[0] * self.inside[0], source_weight, head.lay1.bias, padding=1)
        convolutions = zip(
            (head.lay3, head.lay4, head.lay5), (head.adapter1, head.adapter2, head.adapter3), strict=True
        )
        finer = zip(convolutions, levels[1:], self.inside[1:], strict=True)
        self.responses = [first, *(conv(adapter(x) * inside) for (conv, adapter), x, inside in finer)]

    def logits(self, maps: Tensor, count: int) -> Tensor:
        """Return (B, K, h, w) logits for the (B, K, heads, H, W) attention maps of ``count`` queries, K."""
        head = self.head
        response, *finer = (_per_query(x, count) for x in self.responses)
        inside, *finer_inside = (_per_query(x, count) for x in self.inside)
        x = F.conv2d(maps.flatten(0, 1) * inside, self.maps_weight, padding=1) + response
        x = F.relu(_masked_norm(head.gn1, x, inside)) * inside
        x = F.relu(_masked_norm(head.gn2, head.lay2(x), inside)) * inside
        norms = ((head.lay3, head.gn3), (head.lay4, head.gn4), (head.lay5, head.gn5))
        for factor, (conv, norm), response, inside in zip(self.factors, norms, finer, finer_inside, strict=True):
            # Sizes are rounded up at each stride: nearest neighbors are repeated features, also in an odd last row. A
            # slice of a larger interpolation would tie torch.export to whether it is odd.
            if factor > 1:
                x = x[:, :, arange(inside.shape[-2]) // factor][..., arange(inside.shape[-1]) // factor]
            x = F.conv2d(x * inside, conv.weight, padding=1) + response
            x = F.relu(_masked_norm(norm, x, inside)) * inside
        return head.out_lay(x)[:, 0].unflatten(0, (-1, count))


def _per_query(x: Tensor, count: int) -> Tensor:
    """Repeat each of (B, …) images for ``count`` queries: (B * count, …)."""
    return x[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)


def _masked_norm(norm: GroupNorm, x: Tensor, inside: Tensor) -> Tensor:
    """Apply a group norm (arXiv 1803.08494, equations 1 to 3) whose statistics are those of the valid positions.

    Args:
        norm: the norm.
        x: (N, C, h, w) features.
        inside: (N, 1, h, w) float, 1 within the valid sizes, 0 beyond.
    """
    groups = x.unflatten(1, (norm.num_groups, -1))
    weights = inside[:, None]
    count = weights.sum((2, 3, 4), keepdim=True) * groups.shape[2]
    mean = (groups * weights).sum((2, 3, 4), keepdim=True) / count
    centered = groups - mean
    variance = (centered.square() * weights).sum((2, 3, 4), keepdim=True) / count
    normalized = (centered * (variance + norm.eps).rsqrt()).flatten(1, 2)
    return normalized * norm.weight[:, None, None] + norm.bias[:, None, None]
