"""The network: backbone, transformer, heads (arXiv 2005.12872, section 3.2)."""

import math

from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from detr_d2.modeling.backbone import BackboneWithPosition
from detr_d2.modeling.heads import MLP
from detr_d2.modeling.mask_head import AttentionMaps, MaskHead
from detr_d2.structures import MaskFeatures, Predictions
from detr_d2.utils.precision import without_autocast


class DetrNetwork(nn.Module):
    """Images in, classes and boxes of the object queries out, and on request their masks."""

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
        """
        Args:
            num_classes: foreground classes; the no-object class is added here.
            num_queries: the largest number of objects that can be found in an image.
            class_prior: initial probability of each class, for a sigmoid head (arXiv 1708.02002, section 3.3).
            attention_maps, mask_head: both or none; what makes masks.
            mask_chunk: for how many queries at once masks are made; see :class:`MaskHead`.
        """
        super().__init__()
        hidden_dim = transformer.hidden_dim
        self.backbone = backbone
        self.input_proj = nn.Conv2d(backbone.num_channels, hidden_dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.transformer = transformer
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        if class_prior is not None:
            nn.init.constant_(self.class_embed.bias, math.log(class_prior / (1 - class_prior)))
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=3)
        self.bbox_attention = attention_maps
        self.mask_head = mask_head
        self.mask_chunk = mask_chunk

    def forward(self, images: ImageList, *, all_layers: bool) -> Predictions:
        """
        Args:
            images: normalised and padded with zeros on the right and at the bottom.
            all_layers: predict after every decoder layer (L of them) instead of the last alone (L = 1).
        """
        features, pos = self.backbone(images)
        source = self.input_proj(features.tensor)
        hidden, reference, memory = self.transformer(
            features._replace(tensor=source), pos, self.query_embed.weight, all_layers=all_layers
        )
        # The eight bits of bfloat16 would not do for boxes.
        with without_autocast(hidden.device):
            exact = hidden.to(self.class_embed.weight.dtype)
            logits, boxes = self.class_embed(exact), self.bbox_embed(exact).float()
        if reference is not None:
            boxes = boxes + F.pad(reference.float(), (0, 2))
        mask_features = None
        if self.mask_head is not None:
            mask_features = MaskFeatures(
                hidden[-1],
                source,
                memory,
                features.padding_mask,
                features.levels,
                features.frames,
                features.level_frames,
            )
        return Predictions(logits, boxes.sigmoid(), mask_features)

    def mask_logits(self, features: MaskFeatures, images: Tensor, queries: Tensor) -> Tensor:
        """The masks of M chosen object queries.

        Args:
            features: of :meth:`forward`, of a model with a mask head.
            images: (M,) int64 indices in the batch. queries: (M,) int64.

        Returns:
            (M, h, w) logits over the padded images, at the size of the backbone's finest level.
        """
        maps = self.bbox_attention(features.hidden, features.memory, features.padding_mask)
        return self.mask_head(features.source, maps[images, queries], features.levels, images, self.mask_chunk)
