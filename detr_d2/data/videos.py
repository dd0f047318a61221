"""Video files, read and written frame by frame through OpenCV."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from detr_d2.utils.errors import UserError


class VideoReader:
    """Iterator over the frames of a video, (H, W, 3) RGB arrays."""

    def __init__(self, path: str | Path):
        """Open the file. If it can't be read as a video, raise a UserError."""
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UserError(f"Video {path} can't be read: it is damaged, or OpenCV does not support its format.")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = rate if 0 < rate < 1000 else 25.0
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 else None
        """According to the file's header; None if it lacks the number."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Read all frames, then close the file. If there is no frame, raise a UserError."""
        is_empty = True
        try:
            while (read := self._capture.read())[0]:
                is_empty = False
                yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()
        if is_empty:
            raise UserError(f"Video {self.path} has no frame that can be read: it is damaged.")


class VideoWriter:
    """Writer of an mp4 file, all of whose frames have the size of the first."""

    def __init__(self, path: str | Path, frames_per_second: float):
        self.path = path
        self.frames_per_second = frames_per_second
        self._writer = None

    def write(self, image_rgb: NDArray[np.uint8]) -> None:
        """Append a frame. If OpenCV can't write the file, raise a UserError."""
        if self._writer is None:
            height, width = image_rgb.shape[:2]
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), codec, self.frames_per_second, (width, height))
            if not self._writer.isOpened():
                raise UserError(f"Video {self.path} can't be written: add --no-overlays to skip overlays.")
        self._writer.write(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
