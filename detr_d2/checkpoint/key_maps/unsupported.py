"""Models that are recognised only to say what they are."""

from detr_d2.checkpoint.key_maps.base import CheckpointFormat


def _unsupported(name: str, *signature: str) -> CheckpointFormat:
    return CheckpointFormat(name=name, signature=signature, rules=())


UNSUPPORTED = (
    _unsupported("a Deformable DETR", r".*\.sampling_offsets\.weight"),
    _unsupported("a Conditional DETR", r".*\.ca_qcontent_proj\.weight"),
    _unsupported("a Detectron2 R-CNN", r"(roi_heads|proposal_generator)\..+"),
    _unsupported("another Detectron2 detection model", r"backbone\.bottom_up\..+"),
    _unsupported("a Caffe2 ResNet (MSRA or Detectron1 weights)", r"(res|blob_res).*_branch\d\w_.+"),
    _unsupported(
        "a segmentation checkpoint that the original's d2/converter.py garbled (convert the original file instead)",
        r"detr\.backbone\.0\.backbone\.(detr|stem\.detr)\..+",
    ),
)
