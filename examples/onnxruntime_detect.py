"""Detect objects in images with a model that ``detr-d2 export`` wrote. Needs numpy, Pillow and onnxruntime alone.

python examples/onnxruntime_detect.py model.onnx photo.jpg more/*.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resized(image: Image.Image, min_size: int, max_size: int) -> Image.Image:
    """Resize the shorter side to min_size pixels, or less where the longer would exceed max_size; 0: not at all."""
    shorter, longer = min(image.size), max(image.size)
    if longer / shorter * min_size > max_size:
        min_size = round(max_size * shorter / longer)
    sides = [min_size if side == shorter else int(min_size * longer / shorter) for side in image.size]
    return image.resize(sides, Image.Resampling.BILINEAR) if min_size else image


def main(model: str, paths: list[str], threshold: float = 0.5) -> None:
    """Print the detections of each image."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    info = json.loads(session.get_modelmeta().custom_metadata_map["detr_d2_info"])
    for path in paths:
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        pixels = np.asarray(resized(image, info["min_size"], info["max_size"]), dtype=info["dtype"])
        if info["image_format"] == "BGR":
            pixels = pixels[:, :, ::-1]
        images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        sizes = np.array([pixels.shape[:2]], dtype=np.int64)
        boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"images": images, "sizes": sizes})
        # Boxes are in the pixels of the resized image.
        boxes = boxes[0] * np.tile(np.array(image.size) / sizes[0, ::-1], 2)
        for k in np.flatnonzero(scores[0] >= threshold):
            box = ", ".join(f"{x:.1f}" for x in boxes[k])
            print(f"{path}: {info['class_names'][labels[0, k]]} {scores[0, k]:.3f} [{box}]")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
