"""Reader of XML files of unknown origin."""

from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from detr_d2.utils.errors import UserError

# Annotations are nested four or five deep.
_MAX_DEPTH = 100


def read_xml(path: Path) -> ElementTree.Element:
    """Return the root element of an XML file.

    Document type declarations are refused: with them, small files can define entities of gigabytes or name others.

    Raises:
        UserError: the file can't be read, is not XML, declares a document type, or is nested too deeply.
    """
    parser, builder, depth = expat.ParserCreate(), ElementTree.TreeBuilder(), 0
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise UserError(f"{path} is nested over {_MAX_DEPTH} elements deep: it holds no annotations.")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise UserError(f"{path} has a document type declaration (DOCTYPE), which is not read: remove it.")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"{path} can't be read ({e}): correct the path.") from e
    except (expat.ExpatError, ValueError, LookupError) as e:
        raise UserError(f"{path} is not valid XML ({e}): perhaps it was cut off while it was copied.") from e
    return builder.close()


def text_of(element: ElementTree.Element, path: str) -> str:
    """Return the stripped text of a child element; "" if there is none."""
    return (element.findtext(path) or "").strip()
