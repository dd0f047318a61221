"""The network: backbone, transformer, heads (arXiv 2005.12872, section 3.2)."""

from detectron2.structures import ImageList
from torch import nn

from detr_d2.modeling.backbone import BackboneWithPosition
from detr_d2.modeling.heads import MLP
from detr_d2.structures import Predictions


class DetrNetwork(nn.Module):
    """Images in, classes and boxes of the object queries out."""

    def __init__(self, *, backbone: BackboneWithPosition, transformer: nn.Module, num_classes: int, num_queries: int):
        """
        Args:
            num_classes: foreground classes; the no-object class is added here.
            num_queries: the largest number of objects that can be found in an image.
        """
        super().__init__()
        hidden_dim = transformer.hidden_dim
        self.backbone = backbone
        self.input_proj = nn.Conv2d(backbone.num_channels, hidden_dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.transformer = transformer
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, num_layers=3)

    def forward(self, images: ImageList, *, all_layers: bool) -> Predictions:
        """
        Args:
            images: normalised and padded with zeros on the right and at the bottom.
            all_layers: predict after every decoder layer (L of them) instead of the last alone (L = 1).
        """
        features, pos = self.backbone(images)
        hidden = self.transformer(
            self.input_proj(features.tensor),
            features.padding_mask,
            pos,
            self.query_embed.weight,
            all_layers=all_layers,
        )
        return Predictions(self.class_embed(hidden), self.bbox_embed(hidden).float().sigmoid())
