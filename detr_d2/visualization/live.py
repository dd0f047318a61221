"""Images shown while they are made: in a window, or on a page of this machine."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
from numpy.typing import NDArray

from detr_d2.utils.errors import UserError

_PAGE = b"""<!DOCTYPE html><title>detr-d2</title>
<body style="margin:0;background:#222"><img src="/stream" style="width:100vw;height:100vh;object-fit:contain">"""
_BOUNDARY = b"--frame\r\n"


class Window:
    """Window with the last image that it was given. If there is no display, raise a UserError."""

    _TITLE = "detr-d2: q ends the run"

    def __init__(self):
        # Without a display, some of OpenCV's libraries end the process.
        has_display = not sys.platform.startswith("linux") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
        try:
            if not has_display:
                raise cv2.error("there is no display")
            cv2.namedWindow(self._TITLE, cv2.WINDOW_NORMAL)
        except cv2.error as e:
            raise UserError(
                "--show can't open a window: there is no display, or OpenCV is installed as opencv-python-headless. "
                "Use --serve PORT to see the images in a browser."
            ) from e

    def show(self, image_rgb: NDArray[np.uint8]) -> bool:
        """Show an image, and return False if the user has pressed q or Escape."""
        cv2.imshow(self._TITLE, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1) & 0xFF not in (ord("q"), 27)

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *error: object) -> None:
        cv2.destroyWindow(self._TITLE)


class MjpegServer:
    """Page at 127.0.0.1 with the last image that it was given, as a stream of JPEGs for any number of browsers.

    Args:
        port: number of the port; 0 for any that is free.

    Raises:
        UserError: the port can't be used.
    """

    def __init__(self, port: int):
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as e:
            raise UserError(f"--serve {port} is not possible ({e}): give another port, from 1024 to 65535.") from e
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def show(self, image_rgb: NDArray[np.uint8]) -> bool:
        """Show an (H, W, 3) image, and return True."""
        _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR))
        self._server.publish(encoded.tobytes())
        return True

    def __enter__(self) -> "MjpegServer":
        return self

    def __exit__(self, *error: object) -> None:
        """End the streams, after their last image."""
        self._server.publish(None)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def open_viewer(window: bool, port: int | None) -> AbstractContextManager[Window | MjpegServer | None]:
    """Open a window, or a page at a port, or neither."""
    if window:
        return Window()
    return nullcontext() if port is None else MjpegServer(port)


class _Server(ThreadingHTTPServer):
    def __init__(self, *args):
        super().__init__(*args)
        self._changed = threading.Condition()
        self._count, self._jpeg, self._is_over = 0, b"", False

    def publish(self, jpeg: bytes | None) -> None:
        """Set the newest image; None: there will be no more."""
        with self._changed:
            if jpeg is None:
                self._is_over = True
            else:
                self._jpeg = jpeg
                self._count += 1
            self._changed.notify_all()

    def images(self) -> Iterator[bytes]:
        """Yield the newest image and those that follow, without those that come while one is being used."""
        seen = 0
        while True:
            with self._changed:
                while self._count == seen and not self._is_over:
                    self._changed.wait()
                if self._count == seen:
                    return
                seen, jpeg = self._count, self._jpeg
            yield jpeg


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        # A page of another host name that leads here (DNS rebinding) could otherwise read the images.
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(403)
        elif self.path == "/":
            self._start("text/html; charset=utf-8")
            self.wfile.write(_PAGE)
        elif self.path == "/stream":
            self._start("multipart/x-mixed-replace; boundary=frame")
            self._stream()
        else:
            self.send_error(404)

    def _start(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def _stream(self) -> None:
        try:
            self.wfile.write(_BOUNDARY)
            for jpeg in self.server.images():
                header = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                # Browsers show an image when the boundary after it arrives.
                self.wfile.write(header + jpeg + b"\r\n" + _BOUNDARY)
        except ConnectionError:
            # The browser was closed.
            return

    def log_message(self, *args: object) -> None:
        """Log nothing."""
