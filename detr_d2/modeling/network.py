"""The network: backbone, transformer, heads (arXiv 2005.12872, section 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.modeling.backbone import BackboneWithPosition
from detr_d2.modeling.layers import MLP, class_layer
from detr_d2.modeling.mask_head import AttentionMaps, MaskHead
from detr_d2.structures import FeatureLevel, MaskInputs, Memory, Output, PaddedBatch, Queries
from detr_d2.utils.precision import without_autocast

_MASK_MODULES = ("bbox_attention", "mask_head")


class DetrNetwork(nn.Module):
    """Network that predicts classes and boxes of the object queries and, on request, their masks.

    Args:
        backbone: backbone with its position embedding.
        transformer: entry of :data:`~detr_d2.modeling.transformer.DETR_TRANSFORMER_REGISTRY`.
        num_classes: number of foreground classes; the no-object class is added here.
        num_queries: largest number of objects that can be detected in an image.
        class_prior: initial probability of each class, for a sigmoid head (arXiv 1708.02002, section 3.3).
        attention_maps: attention maps that the mask head reads. None: no masks.
        mask_head: mask head. None: no masks.
        mask_chunk: number of queries whose masks are computed at once; see :class:`MaskHead`.
    """

    def __init__(
        self,
        *,
        backbone: BackboneWithPosition,
        transformer: nn.Module,
        num_classes: int,
        num_queries: int,
        class_prior: float | None = None,
        attention_maps: AttentionMaps | None = None,
        mask_head: MaskHead | None = None,
        mask_chunk: int | None = None,
    ):
        super().__init__()
        hidden_dim = transformer.hidden_dim
        self.backbone = backbone
        self.is_multi_scale = hasattr(transformer, "build_projection")
        if self.is_multi_scale:
            self.input_proj = transformer.build_projection(backbone)
        else:
            self.input_proj = nn.Conv2d(backbone.num_channels, hidden_dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.transformer = transformer
        self.class_embed = class_layer(hidden_dim, num_classes, class_prior)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=3)
        self.bbox_attention = attention_maps
        self.mask_head = mask_head
        self.mask_chunk = mask_chunk

    @property
    def num_queries(self) -> int:
        """Number of object queries."""
        return self.query_embed.num_embeddings

    def box_modules(self) -> list[nn.Module]:
        """Return the children that classes and boxes are computed with."""
        return [module for name, module in self.named_children() if name not in _MASK_MODULES]

    def forward(self, batch: PaddedBatch, *, all_layers: bool, queries: Queries | None = None) -> Output:
        """Predict classes and boxes.

        Args:
            batch: normalized images.
            all_layers: predict after every decoder layer (L of them) instead of the last alone (L = 1).
            queries: the model's own and the training-only ones. None: the model's own.
        """
        return self.forward_with_memory(batch, all_layers=all_layers, queries=queries)[0]

    def forward_with_memory(
        self, batch: PaddedBatch, *, all_layers: bool, queries: Queries | None = None
    ) -> tuple[Output, Memory]:
        """Return the predictions, and the encoder's output they were made from; arguments as for :meth:`forward`."""
        dtype = next(self.input_proj.parameters()).dtype
        if queries is None:
            # Weights may be cast to a lower precision, see detr_d2.inference; activations follow them.
            queries = Queries.of_model(self.query_embed.weight.to(dtype))
        features, pos = self.backbone(batch)
        if self.is_multi_scale:
            features = self.input_proj(features, batch, self.backbone[1])
        else:
            features = features._replace(tensor=self.input_proj(features.tensor))
        pos = pos.to(dtype)
        hidden, reference, memory = self.transformer(features, pos, queries, all_layers=all_layers)
        # The eight bits of bfloat16 are not enough for boxes.
        with without_autocast(hidden.device):
            exact = hidden.to(self.class_embed.weight.dtype)
            logits, boxes = self.class_embed(exact), self.bbox_embed(exact).float()
        if reference is not None:
            boxes = boxes + F.pad(reference.float(), (0, 2))
        mask_inputs = None
        if self.mask_head is not None:
            level = FeatureLevel(features.tensor, features.valid_sizes)
            own = hidden[-1][:, : self.num_queries]
            mask_inputs = MaskInputs(own, level, memory, features.padding_mask, features.finer)
        encoded = Memory(memory, features.padding_mask, features.image_sizes)
        return Output(logits, boxes.sigmoid(), mask_inputs), encoded

    def masks(self, inputs: MaskInputs, queries: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the masks of chosen object queries.

        Args:
            inputs: of :meth:`forward`, of a model with a mask head.
            queries: for each image (M,) int64; M may be 0.

        Returns:
            For each image (M, h, w) logits over its valid size, at the size of the backbone's finest level.
        """
        if not all(level.is_valid_throughout for level in (inputs.source, *inputs.finer)):
            images = (inputs.of_image(index) for index in range(len(queries)))
            return tuple(self.masks(image, [chosen])[0] for image, chosen in zip(images, queries, strict=True))
        counts = [len(x) for x in queries]
        if not any(counts):
            return tuple(inputs.hidden.new_zeros(0, 1, 1) for _ in counts)
        maps = self.bbox_attention(inputs.hidden, inputs.memory, inputs.padding_mask)
        chosen = torch.cat(list(queries))
        images = torch.tensor([index for index, count in enumerate(counts) for _ in range(count)])
        images = images.to(chosen.device, non_blocking=True)
        finer = [level.tensor for level in inputs.finer]
        logits = self.mask_head(inputs.source.tensor, maps[images, chosen], finer, images, self.mask_chunk)
        return logits.split(counts)
