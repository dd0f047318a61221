"""The page, read by a client as a browser does."""

import http.client
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pytest

from detr_d2.utils.errors import UserError
from detr_d2.visualization.live import MjpegServer, Window, open_viewer


@pytest.fixture
def server():
    with MjpegServer(0) as server:
        yield server


def image_of(value):
    return np.full((30, 40, 3), (value, 0, 0), dtype=np.uint8)


def read_part(stream) -> np.ndarray:
    """Read one image of a stream up to its boundary, and return it as RGB."""
    headers = http.client.parse_headers(stream)
    assert headers["Content-Type"] == "image/jpeg"
    content = stream.read(int(headers["Content-Length"]))
    assert stream.readline() == b"\r\n"
    assert stream.readline() == b"--frame\r\n"
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_the_page_shows_the_stream(server):
    with urlopen(server.url) as page:
        assert b'src="/stream"' in page.read()


def test_the_stream_begins_with_the_last_image_and_follows(server):
    server.show(image_of(50))
    assert server.show(image_of(100))
    with urlopen(f"{server.url}/stream") as stream, urlopen(f"{server.url}/stream") as other:
        assert stream.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=frame"
        for x in (stream, other):
            assert x.readline() == b"--frame\r\n"
            assert np.allclose(read_part(x)[0, 0], (100, 0, 0), atol=3)
        server.show(image_of(200))
        for x in (stream, other):
            assert np.allclose(read_part(x)[0, 0], (200, 0, 0), atol=3)


def test_streams_end_with_the_run():
    with MjpegServer(0) as server:
        server.show(image_of(50))
        stream = urlopen(f"{server.url}/stream")
        stream.readline()
        read_part(stream)
    assert stream.read() == b""


def test_other_addresses_and_hosts_are_refused(server):
    for request, code in ((f"{server.url}/etc", 404), (Request(server.url, headers={"Host": "evil.org:80"}), 403)):
        with pytest.raises(HTTPError) as e:
            urlopen(request)
        assert e.value.code == code


def test_only_this_machine_is_served(server):
    assert server._server.server_address[0] == "127.0.0.1"


def test_ports_that_can_not_be_used(server):
    for port in (server._server.server_port, 70000):
        with pytest.raises(UserError, match=f"--serve {port} is not possible"):
            MjpegServer(port)


def test_no_display(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UserError, match="Use --serve PORT"):
        Window()
    with open_viewer(False, None) as viewer:
        assert viewer is None
