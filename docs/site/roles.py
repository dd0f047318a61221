"""Extension of griffe: roles in docstrings, such as ``:class:`~detr_d2.Detr```, become links of the site."""

import re

import griffe

_ROLE = re.compile(r":(?:py:)?(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Replacement of the roles in every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Replace the roles in the docstring of ``obj``."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = _ROLE.sub(lambda match: link(obj, match[2], short=bool(match[1])), text)


def link(obj: griffe.Object, name: str, short: bool) -> str:
    """Return a link to ``name``, seen from ``obj``, which remains plain text if the site has no such entry."""
    try:
        target = obj.resolve(name)
    except griffe.NameResolutionError:
        target = name
    text = name.rpartition(".")[2] if short else name
    return f'<autoref optional identifier="{target}"><code>{text}</code></autoref>'
