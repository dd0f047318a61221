"""Reading and writing videos, frame by frame, through OpenCV."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from detr_d2.utils.errors import UserError

_DEFAULT_RATE = 25.0


class VideoReader:
    """The frames of a video as (H, W, 3) RGB arrays."""

    def __init__(self, path: str | Path):
        """
        Raises:
            UserError: the file can't be read as a video.
        """
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise UserError(f"Video {path} can't be read: it is damaged, or OpenCV does not know its kind.")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = rate if 0 < rate < 1000 else _DEFAULT_RATE
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 else None
        """As the file's header says; None if it does not."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """
        Raises:
            UserError: there is not one frame.
        """
        found = False
        try:
            while (read := self._capture.read())[0]:
                found = True
                yield cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()
        if not found:
            raise UserError(f"Video {self.path} has no frame that can be read: it is damaged.")


class VideoWriter:
    """Writes an mp4 file; the size of the first frame is that of all."""

    def __init__(self, path: str | Path, frames_per_second: float):
        self.path = path
        self.frames_per_second = frames_per_second
        self._writer = None

    def write(self, image_rgb: NDArray[np.uint8]) -> None:
        """
        Raises:
            UserError: OpenCV can't write here.
        """
        if self._writer is None:
            height, width = image_rgb.shape[:2]
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), codec, self.frames_per_second, (width, height))
            if not self._writer.isOpened():
                raise UserError(f"Video {self.path} can't be written: add --no-overlays to go without.")
        self._writer.write(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
