"""Reports that are one file."""

import base64
import io
import re

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from detr_d2.cli.demo_report import ReportImage, Section, render_report

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def test_images_are_inside_and_nothing_is_fetched():
    section = Section("Seen", images=[ReportImage(PIXELS, "a caption", width=0.5), ReportImage(Figure(figsize=(2, 1)))])
    html = render_report("Title", "Lead.", [("61.2", "box AP")], [section])
    sources = re.findall(r'src="([^"]+)"', html)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    images = [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources]
    assert np.array_equal(np.asarray(images[0]), PIXELS)
    assert images[1].size == (300, 150)
    assert 'style="width: 50%"' in html
    assert not re.search(r"https?://|<link|<script", html)


def test_text_is_text():
    section = Section("A <b>title</b>", text="1 < 2", commands=["python x.py 'a&b'"], facts=[("name", "<me>")])
    html = render_report("<script>", "& more", [], [section])
    assert "<script>" not in html
    assert "&lt;b&gt;title" in html
    assert "1 &lt; 2" in html
    assert "&lt;me&gt;" in html


def test_bars_are_as_long_as_their_numbers():
    html = render_report("T", "L", [], [Section("S", bars=[("disc of 12", 41.25)])])
    assert "width: 41.2%" in html
    assert "disc of 12" in html
