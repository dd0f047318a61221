"""Export of trained models to files that run without this package, and the use of these files."""

from detr_d2.export.exported_model import ExportedModel
from detr_d2.export.exporting import default_dtype, export_model
from detr_d2.export.formats import FORMATS, is_exported
from detr_d2.export.graph import ExportGraph, GraphOptions
from detr_d2.export.quantization import CalibrationImages, Quantization
from detr_d2.export.using import build_predictor, default_score, prepare_for_inference, use_exported
from detr_d2.export.verification import Verification, verify, verify_golden

__all__ = [
    "FORMATS",
    "CalibrationImages",
    "ExportGraph",
    "ExportedModel",
    "GraphOptions",
    "Quantization",
    "Verification",
    "build_predictor",
    "default_dtype",
    "default_score",
    "export_model",
    "is_exported",
    "prepare_for_inference",
    "use_exported",
    "verify",
    "verify_golden",
]
