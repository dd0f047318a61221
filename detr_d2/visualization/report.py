"""A report as one HTML file that holds its images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class ReportImage:
    """(H, W, 3) uint8 RGB, or a plot, with a caption; ``width`` is its share of the page's width, in [0, 1]."""

    content: NDArray[np.uint8] | Figure
    caption: str = ""
    width: float = 1.0

    @property
    def source(self) -> str:
        """The PNG itself, as the address of an HTML image."""
        buffer = io.BytesIO()
        if isinstance(self.content, Figure):
            self.content.savefig(buffer, format="png", dpi=150)
        else:
            Image.fromarray(self.content).save(buffer, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Bar:
    """A number from 0 to 100, shown as a bar between its name and a note."""

    name: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a report; empty fields are not shown."""

    title: str
    text: str = ""
    images: Sequence[ReportImage] = ()
    bars: Sequence[Bar] = ()
    facts: Sequence[tuple[str, str]] = ()
    """Rows of a table: name and value."""
    commands: Sequence[str] = ()


def render_report(title: str, lead: str, statistics: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """Return HTML that needs no other file.

    Args:
        title, lead: the headline, and the result in a sentence or two. Text, not HTML, as everything else here.
        statistics: the most important numbers, as (number, name).
        sections: what follows, in order.
    """
    template = resources.files("detr_d2.visualization").joinpath("templates/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(title=title, lead=lead, statistics=statistics, sections=sections)
