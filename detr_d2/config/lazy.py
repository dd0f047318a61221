"""Loading of LazyConfigs, configs that are Python files, and of their overrides, with mistakes explained."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detr_d2.config.loading import configs_folder, find_config
from detr_d2.utils.errors import UserError, did_you_mean

_PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


def load_lazy_config(config: str, overrides: Sequence[str] = (), *, trust: bool = False) -> DictConfig:
    """Run the Python file of a LazyConfig, and return its config with ``key=value`` overrides.

    Args:
        config: path, or name of a config of this package: "lazy/detr_r50".
        overrides: in Hydra's grammar, as Detectron2's ``lazyconfig_train_net.py`` takes them: "train.max_iter=100". The
            key must be in the config, or be an argument of what is called there; "+key=value" adds any key.
        trust: True to run a file that is not one of this package.

    Raises:
        UserError: the file can't be used, or an override is wrong; the message names it.
    """
    file = find_config(config)
    if not trust and configs_folder().resolve() not in Path(file).resolve().parents:
        raise UserError(
            f"Config file {file} is a Python program, which is run to load it: if you know where it comes from, add "
            "--trust (trust=True in Python)."
        )
    try:
        cfg = LazyConfig.load(str(file))
    except SyntaxError as e:
        cause = e.__cause__ if isinstance(e.__cause__, SyntaxError) else e
        raise UserError(f"Config file {file} is not valid Python: {cause.msg}, line {cause.lineno}.") from e
    for override in overrides:
        _apply(cfg, override)
    return cfg


def check_parts_given(cfg: DictConfig, file: str) -> None:
    """Raise a UserError if a part that training and evaluation need is missing."""
    missing = [name for name in _PARTS if name not in cfg]
    if missing:
        raise UserError(f"Config file {file} has no {', '.join(missing)}: see configs/lazy/smca_shapes_cpu.py.")


def is_lazy_config(name: str) -> bool:
    """Check whether a config, given by path or name, is a LazyConfig. An unknown name is a UserError."""
    return bool(name) and find_config(name).endswith(".py")


def _apply(cfg: DictConfig, override: str) -> None:
    name, equals, _ = override.partition("=")
    if not equals:
        raise UserError(
            f"Options of a LazyConfig are written key=value; {override} is not. For example: train.device=cpu "
            "train.max_iter=100"
        )
    if not name.startswith("+") and not _is_known(cfg, name):
        keys = [*_all_keys(cfg)]
        same_end = [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]]
        hint = did_you_mean(name, same_end) or did_you_mean(name, keys, "The config's file lists its keys.")
        raise UserError(f"In option {override}: the config has no key {name}. {hint}")
    try:
        LazyConfig.apply_overrides(cfg, [override])
    except Exception as e:
        # Hydra's exceptions have no common base that every version exports.
        if not isinstance(e, OmegaConfBaseException | KeyError | ValueError | NotImplementedError) and not type(
            e
        ).__module__.startswith("hydra."):
            raise
        raise UserError(f"In option {override}: {str(e).splitlines()[0]}") from e


def _is_known(cfg: DictConfig, key: str) -> bool:
    """Check whether a key is in the config, or names an argument of a callable there."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if isinstance(node, ListConfig):
        return name.isdigit() and int(name) < len(node)
    if not isinstance(node, DictConfig):
        return False
    if name in node:
        return True
    target = node.get("_target_")
    return target is not None and name in _arguments(locate(target) if isinstance(target, str) else target)


def _arguments(target) -> set[str]:
    """Return the names of the arguments of a callable, of a class with ``**options`` also those of its bases."""
    constructors = [x for x in target.__mro__ if "__init__" in vars(x)] if inspect.isclass(target) else [target]
    names = set()
    for constructor in constructors:
        parameters = inspect.signature(constructor).parameters.values()
        names |= {x.name for x in parameters if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)}
        if all(x.kind != x.VAR_KEYWORD for x in parameters):
            break
    return names


def _all_keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        if name == "_target_":
            continue
        yield f"{prefix}{name}"
        value = node._get_node(name)
        if isinstance(value, DictConfig):
            yield from _all_keys(value, f"{prefix}{name}.")
