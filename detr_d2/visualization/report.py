"""A report as one HTML file that holds its pictures."""

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
class Picture:
    """(H, W, 3) uint8 RGB, or a figure, with a line below it. ``width``: how much of the page it takes, in [0, 1]."""

    content: NDArray[np.uint8] | Figure
    caption: str = ""
    width: float = 1.0

    @property
    def source(self) -> str:
        """The picture itself, as the address of an HTML image."""
        buffer = io.BytesIO()
        if isinstance(self.content, Figure):
            self.content.savefig(buffer, format="png", dpi=150)
        else:
            Image.fromarray(self.content).save(buffer, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

    @property
    def share(self) -> str:
        return f"{100 * self.width:.4g}%"


@dataclass(frozen=True)
class Bar:
    """A number from 0 to 100, shown as a bar, with a word on what it is of and a note beside it."""

    name: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report; what is empty is not shown."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    bars: Sequence[Bar] = ()
    facts: Sequence[tuple[str, str]] = ()
    """Rows of a table: what, and how much of it."""
    commands: Sequence[str] = ()


def render_report(title: str, lead: str, figures: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """HTML that needs no other file.

    Args:
        title, lead: what this is, and what it says in a sentence or two. Text, not HTML, as everything else here.
        figures: the most important numbers, as (number, what it is).
        sections: what follows, in order.
    """
    template = resources.files("detr_d2.visualization").joinpath("templates/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(title=title, lead=lead, figures=figures, sections=sections)
