"""Video files and live streams, read and written frame by frame through OpenCV."""

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from detr_d2.utils.errors import UserError


class VideoReader:
    """Iterator over the frames of a video, (H, W, 3) RGB arrays.

    Of a live stream, frames are skipped that come while the last one is being used.
    """

    def __init__(self, path: str | Path, is_live: bool = False):
        """Open a file, a URL, or a live stream: its address, or the number of a camera.

        If it can't be read as a video, raise a UserError.
        """
        self.path = path
        self.is_live = is_live
        self._capture = cv2.VideoCapture(int(path) if is_live and str(path).isdecimal() else str(path))
        if not self._capture.isOpened():
            if is_live:
                raise UserError(f"Camera or stream {path} can't be opened: check its number or address.")
            raise UserError(f"Video {path} can't be read: it is damaged, or OpenCV does not support its format.")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.frames_per_second = rate if 0 < rate < 1000 else 25.0
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if count > 0 else None
        """According to the file's header; None if it lacks the number."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Read all frames, then close the file. If there is no frame, raise a UserError."""
        is_empty = True
        newest = _Newest(self._capture) if self.is_live else None
        try:
            while (frame := newest.read() if newest else self._capture.read()[1]) is not None:
                is_empty = False
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            if newest:
                newest.stop()
            self._capture.release()
        if is_empty:
            raise UserError(f"Video {self.path} has no frame that can be read: it is damaged.")


class _Newest:
    """The newest frame of a stream, which a thread reads in real time: a predictor that is slower does not lag."""

    def __init__(self, capture: cv2.VideoCapture):
        self._capture = capture
        self._changed = threading.Condition()
        self._frame: NDArray[np.uint8] | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def read(self) -> NDArray[np.uint8] | None:
        """Wait for a frame that was not returned before; None at the end of the stream."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._is_over)
            frame, self._frame = self._frame, None
            return frame

    def stop(self) -> None:
        self._is_over = True
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over:
            is_read, frame = self._capture.read()
            with self._changed:
                if is_read:
                    self._frame = frame
                self._is_over |= not is_read
                self._changed.notify()


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
