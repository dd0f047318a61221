"""HTML pages that need no other file."""

import base64
from importlib import resources
from typing import Any

import jinja2


def render_template(name: str, /, **values: Any) -> str:
    """Return a page from a template of this folder; values are escaped."""
    template = resources.files("detr_d2.cli").joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """Return the address of an image, of the format ``kind`` ("png"), that holds the content of its file."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
