"""Loading of a config from its name and command-line options, with mistakes explained."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from detr_d2.config.checks import config_value
from detr_d2.config.defaults import add_detr_config
from detr_d2.config.published import PUBLISHED
from detr_d2.config.reading import merge_from_file
from detr_d2.utils.errors import UserError, did_you_mean


def load_config(config: str, options: Sequence[str] = (), *, trust: bool = False) -> CfgNode:
    """Return Detectron2's defaults, DETR's, those of :func:`find_config`'s file, and ``KEY VALUE`` pairs.

    Each overrides the ones before; ``config`` "" stands for no file. Python code in the file is refused, where
    Detectron2's ``cfg.merge_from_file`` runs it, unless ``trust`` is True.

    Raises:
        UserError: a file, key or value is wrong; the message names the one that was probably meant.
    """
    cfg = get_cfg()
    add_detr_config(cfg)
    if config:
        file = find_config(config)
        if file.endswith(".py"):
            raise UserError(
                f"Config file {file} is a LazyConfig, which only `detr-d2 train` and `detr-d2 eval` read: give a YAML "
                "config of the same model; see docs/LAZYCONFIG.md."
            )
        _merge(cfg, partial(merge_from_file, cfg, trust=trust), file, source=f"config file {file}")
    if flags := [word for word in options if word.startswith("--")]:
        raise UserError(f"{flags[0]} is among the options KEY VALUE: put flags before them.")
    if len(options) % 2:
        raise UserError(f"Options come as KEY VALUE pairs, but there are {len(options)} words: {' '.join(options)}")
    for key, value in zip(options[::2], options[1::2], strict=True):
        _merge(cfg, partial(_merge_option, cfg), (key, value), source=f"option {key} {value}")
    return cfg


def find_config(name: str) -> str:
    """Return the path of the file ``name`` if there is one, otherwise that of the :func:`packaged_config`."""
    return name if PathManager.isfile(name) else packaged_config(name)


def packaged_config(name: str) -> str:
    """Return the path of a config of this package.

    ``name`` is a file relative to ``configs/``, with or without ".yaml", or a published model ("detr-r50"). Of a
    LazyConfig ("lazy/detr_r50") the ending is ".py".

    Raises:
        UserError: there is no such config; the message lists similar names.
    """
    folder = configs_folder()
    file = PUBLISHED[name].config if name in PUBLISHED else f"{name.removesuffix('.yaml')}.yaml"
    for path in (folder / file, folder / f"{name.removesuffix('.py')}.py"):
        if path.is_file():
            return str(path)
    files = (*folder.rglob("*.yaml"), *folder.glob("lazy/*.py"))
    names = [*sorted(str(x.relative_to(folder).with_suffix("")) for x in files), *PUBLISHED]
    hint = did_you_mean(Path(file).stem, names, f"Choose one of {', '.join(names)}.")
    raise UserError(
        f"The config {name} does not exist: there is no such file, config of this package or published model. {hint}"
    )


def configs_folder() -> Path:
    """Return the folder of this package's configs."""
    # Installed, the configs are in the package; in a checkout they are in the folder that holds it.
    package = Path(__file__).resolve().parents[1]
    return next(x for x in (package / "configs", package.parent / "configs") if x.is_dir())


def _merge(cfg: CfgNode, merge: Callable[[Any], None], values: Any, source: str) -> None:
    try:
        merge(values)
    except UserError:
        raise
    except (KeyError, AssertionError, ValueError, TypeError) as e:
        raise UserError(f"In {source}: {_explain(cfg, str(e.args[0]))}") from e


def _merge_option(cfg: CfgNode, option: tuple[str, str]) -> None:
    key, value = option
    parent, _, name = key.rpartition(".")
    node = config_value(cfg, parent)
    if isinstance(node, CfgNode) and node.is_new_allowed() and name not in node:
        # A key of the user's own, as in MODEL.TIMM.ARGS, which Detectron2 accepts in files alone.
        node[name] = CfgNode._decode_cfg_value(value)
    else:
        cfg.merge_from_list([key, _as_float(cfg, key, value)])


def _as_float(cfg: CfgNode, key: str, value: str) -> str:
    """Return "1.0" for "1" if the key is a float, since Detectron2 refuses an integer for it."""
    is_float = isinstance(config_value(cfg, key), float)
    return f"{value}.0" if is_float and re.fullmatch(r"[+-]?\d+", value) else value


# Groups: the type of the given value, the value, and the key.
_MISMATCH = r"Type mismatch .*<class '([\w.]+)'>\) with values .* vs\. (.*)\) for config key: ([\w.]+)"
# Expected values by the type of a key's default.
_FORMS = {"bool": "True or False", "float": "a number", "int": "an integer", "str": "a string"}


def _explain(cfg: CfgNode, message: str) -> str:
    """Return advice for the user, given the message of an exception of yacs."""
    if match := re.search(r"Non-existent (?:config )?key: ([\w.]+)", message):
        comments = "The keys are explained in detr_d2/config/defaults.py."
        hint = did_you_mean(match[1], _all_keys(cfg), comments, limit=1)
        return f"there is no config key {match[1]}. {hint}"
    match = re.search(_MISMATCH, message, re.DOTALL)
    if not match:
        return message
    given, value, key = match.groups()
    value = repr(value) if given == "str" else value
    current = config_value(cfg, key)
    if isinstance(current, CfgNode):
        return f"{key} is {value}, but holds keys of its own: set one of those."
    form = f'"({value},)"' if isinstance(current, tuple | list) else _FORMS[type(current).__name__]
    return f"{key} is {value}: set {form}."


def _all_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from _all_keys(value, f"{prefix}{name}.")
