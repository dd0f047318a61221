"""Hooks of MkDocs: pages from files outside of docs/, and links between all of them that work on GitHub, too.

README.md becomes index.md, and other texts outside of docs/ become pages. Any other file or folder that a page links to
becomes a page with its text. Pages of the Python API and of the commands are generated.
"""

import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "examples/README.md": "examples.md",
    "configs": "configs.md",
}
"""Pages of the site from texts, and folders, of the repository."""

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Folders of what is built or installed.
_BUILT = {"build", "dist", "node_modules", "__pycache__"}
# Imported by `python -m detr_d2.cli benchmark --help`, and not by the others: torch. docs/BENCHMARKS.md describes it.
_HEAVY = {"benchmark"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES if name.endswith(".md")}
    generated = {PAGES[name]: text for name, text in texts.items()}
    generated |= {"api/detr_d2.md": api_page("detr_d2")}
    generated |= {f"api/{name}.md": api_page(f"detr_d2.{name}") for name in subpackages()}
    generated["commands.md"] = commands_page()
    texts |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for target in {resolve(name, link) for name, text in texts.items() for link in links(text)}:
        if target not in texts and not target.startswith("docs/") and (ROOT / target).exists():
            generated[page_of(target)] = f"# {target}\n\n" + code(ROOT / target)
    for page, text in generated.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace links to files of the repository by links to their pages."""
    uri = page.file.src_uri
    source = next((name for name, target in PAGES.items() if target == uri), f"docs/{uri}")

    def replace(match: re.Match) -> str:
        return os.path.relpath(page_of(resolve(source, match[1])), PurePosixPath(uri).parent)

    # What stands between blocks of code is at even places.
    pieces = re.split(f"({_FENCE.pattern})", markdown, flags=_FENCE.flags)
    return "".join(_LINK.sub(replace, x) if i % 2 == 0 else x for i, x in enumerate(pieces))


def links(text: str) -> list[str]:
    """Return the relative links of a page, without anchors."""
    return _LINK.findall(_FENCE.sub("", text))


def resolve(source: str, link: str) -> str:
    """Return the path, from the root of the repository, that a link in the file ``source`` leads to."""
    return os.path.normpath(PurePosixPath(source).parent / link)


def page_of(path: str) -> str:
    """Return the page, or the image, of the site for a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path) or f"source/{path}.md"


def code(path: Path) -> str:
    """Return the text of a file as a block of code, or those of the files of a folder, each under its name."""
    if path.is_file():
        return f"````{path.suffix[1:] or 'text'}\n{path.read_text(encoding='utf-8')}\n````\n"
    names = sorted(str(x.relative_to(path)) for x in path.rglob("*") if x.is_file() and _BUILT.isdisjoint(x.parts))
    return "\n".join(f"## {name}\n\n{code(path / name)}" for name in names)


def subpackages() -> list[str]:
    """Return the subpackages with public names: all except the commands, and helpers of the others."""
    return sorted(x.parent.name for x in ROOT.glob("detr_d2/*/__init__.py") if "__all__" in x.read_text("utf-8"))


def api_page(module: str) -> str:
    """Return the page of a module, which mkdocstrings fills with its ``__all__``."""
    return f"# {module}\n\n::: {module}\n"


def commands_page() -> str:
    """Return a page with ``--help`` of every command."""
    overview = help_text()
    commands = re.findall(r"^  ([a-z-]+)  ", overview, re.MULTILINE)
    sections = [f"## {x}\n\n```text\n{help_text(x)}```\n" for x in commands if x not in _HEAVY]
    return f"# Commands\n\n```text\n{overview}```\n\n" + "\n".join(sections)


def help_text(*command: str) -> str:
    """Return the help of ``detr-d2``, or of one of its commands, at a width that fits the page."""
    words = [sys.executable, "-m", "detr_d2.cli", *command, "--help"]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
