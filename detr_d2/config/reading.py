"""Reading of config files without running what they contain."""

import io
from collections.abc import Iterator
from typing import IO, Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from detr_d2.utils.errors import UserError

# Values in a file, those of an alias counted every time it is used. Configs have hundreds.
_MAX_VALUES = 100_000


def merge_from_file(cfg: CfgNode, file: str, *, trust: bool = False) -> None:
    """Merge a YAML file and its ``_BASE_`` into ``cfg``, as ``cfg.merge_from_file(file)``, which runs Python in it.

    Only plain values and ``!!python/tuple`` are read, unless ``trust`` is True: for files of known origin.

    Raises:
        UserError: a file contains other tags, is missing, not YAML or not a config; the message names it and the line.
    """
    try:
        if trust:
            cfg.merge_from_file(file)
        else:
            content = CfgNode(_SafeReader.load_yaml_with_base(file))
            if content.get("VERSION", cfg.VERSION) != cfg.VERSION:
                raise UserError(f"Config file {file} has VERSION {content.VERSION}: convert it to {cfg.VERSION}.")
            cfg.merge_from_other_cfg(content)
    except RecursionError as e:
        raise UserError(f"Config file {file} is nested too deeply, or is its own _BASE_: correct it.") from e
    except OSError as e:
        raise UserError(f"Config file {file}, or its _BASE_, can't be read ({e}): correct the path.") from e


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with tuples, which configs of Python programs often contain."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node))


class _SafeReader(CfgNode):
    """Reader of files, and of the files that they inherit from, whose values are plain."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        with PathManager.open(filename, "rb") as file:
            text = file.read()
        try:
            content = yaml.load(text, _Loader)
        except yaml.constructor.ConstructorError as e:
            place = f"line {e.problem_mark.line + 1}" if e.problem_mark else "a line"
            raise UserError(
                f"Config file {filename} contains more than plain values in {place} ({e.problem}), which may run code: "
                "write the value itself. Only if you know where the file comes from, add --trust."
            ) from e
        except yaml.YAMLError as e:
            raise UserError(f"Config file {filename} is not valid YAML: {' '.join(str(e).split())}") from e
        if not isinstance(content, dict):
            raise UserError(f"In config file {filename}: there are no keys with values in it; see configs/*.yaml.")
        if sum(1 for _ in zip(_values(content), range(_MAX_VALUES), strict=False)) == _MAX_VALUES:
            raise UserError(f"Config file {filename} contains over {_MAX_VALUES} values: it is not a config.")
        return io.StringIO(yaml.safe_dump(content))


def _values(content: Any) -> Iterator[Any]:
    """Yield every value in nested dicts and lists."""
    yield content
    if isinstance(content, dict | list):
        for x in content.values() if isinstance(content, dict) else content:
            yield from _values(x)
