"""The data that subpackages hand to each other."""

from detr_d2.structures.padded_batch import PaddedBatch, Size
from detr_d2.structures.predictions import Decoded, FeatureLevel, Features, MaskInputs, Memory, Output, ProjectedLevel
from detr_d2.structures.queries import Queries, QueryBlock
from detr_d2.structures.sized_batch import SizedBatch
from detr_d2.structures.targets import Targets, check_instances

__all__ = [
    "Decoded",
    "FeatureLevel",
    "Features",
    "MaskInputs",
    "Memory",
    "Output",
    "PaddedBatch",
    "ProjectedLevel",
    "Queries",
    "QueryBlock",
    "Size",
    "SizedBatch",
    "Targets",
    "check_instances",
]
