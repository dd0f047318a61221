"""From a YAML file and command-line options to a config, with mistakes explained."""

import difflib
import re
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from detr_d2.config.defaults import add_detr_config
from detr_d2.utils.errors import UserError


def load_config(config_file: str, options: list[str]) -> CfgNode:
    """Detectron2's defaults, DETR's, a YAML file's and ``KEY VALUE`` pairs, each over the one before.

    Raises:
        UserError: names the file or option, the key, and the key that was probably meant.
    """
    cfg = get_cfg()
    add_detr_config(cfg)
    if config_file:
        if not PathManager.isfile(config_file):
            raise UserError(f"The config file {config_file} does not exist: give the path of a YAML file.")
        _merge(cfg, cfg.merge_from_file, config_file, source=f"config file {config_file}")
    if flags := [word for word in options if word.startswith("--")]:
        raise UserError(f"{flags[0]} stands among the options KEY VALUE: put flags before them.")
    if len(options) % 2:
        raise UserError(f"Options come as KEY VALUE pairs, but there are {len(options)} words: {' '.join(options)}")
    for key, value in zip(options[::2], options[1::2], strict=True):
        _merge(cfg, cfg.merge_from_list, [key, _as_float(cfg, key, value)], source=f"option {key} {value}")
    return cfg


def _merge(cfg: CfgNode, merge, values, source: str) -> None:
    try:
        merge(values)
    except (KeyError, AssertionError, ValueError, TypeError) as e:
        raise UserError(f"In {source}: {_explain(cfg, str(e.args[0]))}") from e
    except AttributeError as e:
        # What fvcore makes of a text, or any file that happens to be one in YAML's eyes.
        raise UserError(
            f"In {source}: there are no keys with values in it; give a YAML file such as configs/*.yaml."
        ) from e
    except Exception as e:
        if type(e).__module__.startswith("yaml"):
            raise UserError(f"In {source}: not valid YAML: {e}") from e
        raise


def _as_float(cfg: CfgNode, key: str, value: str) -> str:
    """Detectron2 refuses a whole number, "1", where a key takes a fraction."""
    return f"{value}.0" if isinstance(_held(cfg, key), float) and re.fullmatch(r"[+-]?\d+", value) else value


def _held(cfg: CfgNode, key: str) -> Any:
    held = cfg
    for name in key.split("."):
        held = held.get(name) if isinstance(held, CfgNode) else None
    return held


# Of an exception of yacs: the type of what was given, what was given, and the key.
_MISMATCH = r"Type mismatch .*<class '([\w.]+)'>\) with values .* vs\. (.*)\) for config key: ([\w.]+)"
_FORMS = {"bool": "True or False", "float": "a number", "int": "a whole number", "str": "a text"}
"""What to set a key to, by the type of its default."""


def _explain(cfg: CfgNode, message: str) -> str:
    if match := re.search(_MISMATCH, message, re.DOTALL):
        return _explain_type(cfg, *match.groups())
    match = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if not match:
        return message
    key = match[1]
    similar = difflib.get_close_matches(key, _all_keys(cfg), n=1)
    hint = f" Did you mean {similar[0]}?" if similar else " See docs of the keys in detr_d2/config/defaults.py."
    return f"there is no config key {key}.{hint}"


def _explain_type(cfg: CfgNode, given: str, value: str, key: str) -> str:
    value = repr(value) if given == "str" else value
    held = _held(cfg, key)
    if isinstance(held, CfgNode):
        return f"{key} is {value}, but holds keys of its own: set one of those."
    form = f'"({value},)"' if isinstance(held, tuple | list) else _FORMS[type(held).__name__]
    return f"{key} is {value}: set {form}."


def _all_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for name, value in node.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys.extend(_all_keys(value, f"{prefix}{name}."))
    return keys
