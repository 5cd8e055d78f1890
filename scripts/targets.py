"""Check each `_target_` of a configuration and its settings by reading the source of the target.

Modules are not imported: many of them import torch and transformers, which takes seconds, and a wrong name should be
reported at once. Some names are not in the source, such as names created at import or base classes of other packages.
These are accepted here, and Hydra reports a mistake when it creates the part.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from envs.core import UnknownNameError

OF_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check_targets(config: DictConfig) -> None:
    """Raises `UnknownNameError` or `ModuleNotFoundError` for a wrong `_target_` or an unknown setting."""
    for place, part in _parts(OmegaConf.to_container(config)):
        if (known := settings_of(part["_target_"], place)) is None:
            continue
        given = part.keys() - set(OF_HYDRA)
        if unknown := given - known.keys():
            shown = [name for name, has_default in known.items() if has_default or name in given]
            raise UnknownNameError(f"setting of {place}", min(unknown), shown)


def _parts(value: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part of a configuration that has a `_target_`, with its key."""
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield place, value
        for key, member in value.items():
            yield from _parts(member, f"{place}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for number, member in enumerate(value):
            yield from _parts(member, f"{place}[{number}]")


def settings_of(target: str, place: str = "_target_") -> Mapping[str, bool] | None:
    """The keyword arguments of `target`, and whether each has a default; None if its source does not show them.

    `place` is its key in the configuration, for errors. Raises `UnknownNameError` or `ModuleNotFoundError` if `target`
    does not exist.
    """
    module, _, name = target.rpartition(".")
    tree = _source_of(module, place)
    if tree is None:
        return None
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    node = defined.get(name)
    if isinstance(node, ast.FunctionDef):
        return _parameters(node)
    if isinstance(node, ast.ClassDef):
        return _settings_of_class(node, module, tree)
    if imported := _imported(tree).get(name):
        return settings_of(imported, place)
    others = (node for member in tree.body if member not in defined.values() for node in ast.walk(member))
    if name not in {getattr(node, part, None) for node in others for part in ("id", "name", "asname")}:
        raise UnknownNameError(f"name in {module}, of {place}._target_,", name, [n for n in defined if n[0] != "_"])
    return None


def _settings_of_class(node: ast.ClassDef, module: str, tree: ast.Module) -> Mapping[str, bool] | None:
    methods = {member.name: member for member in node.body if isinstance(member, ast.FunctionDef)}
    if "__init__" in methods:
        return _parameters(methods["__init__"], of_a_class=True)
    own: dict[str, bool] = {}
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [member for member in node.body if isinstance(member, ast.AnnAssign)]
        own = {
            ast.unparse(field.target): field.value is not None
            for field in fields
            if not ast.unparse(field.annotation).startswith("ClassVar")
        }
    if not node.bases:
        return own
    base, *others = (ast.unparse(base) for base in node.bases)
    local = {member.name for member in tree.body if isinstance(member, ast.ClassDef)}
    inherited = None if others else settings_of(f"{module}.{base}") if base in local else _of(_imported(tree).get(base))
    return None if inherited is None else {**inherited, **own}


def _of(target: str | None) -> Mapping[str, bool] | None:
    return settings_of(target) if target else None


def _parameters(function: ast.FunctionDef, *, of_a_class: bool = False) -> Mapping[str, bool] | None:
    """The keyword arguments of a function, and whether each has a default; None if it accepts any."""
    arguments = function.args
    if arguments.kwarg is not None:
        return None
    by_place = [*arguments.posonlyargs, *arguments.args]
    defaults = [False] * (len(by_place) - len(arguments.defaults)) + [True] * len(arguments.defaults)
    named = {argument.arg: default for argument, default in zip(by_place, defaults, strict=True)}
    named |= {a.arg: d is not None for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    hidden = {argument.arg for argument in arguments.posonlyargs} | ({by_place[0].arg} if of_a_class else set())
    return {name: default for name, default in named.items() if name not in hidden}


def _imported(tree: ast.Module) -> dict[str, str]:
    """The names that a module imports from others, with their full names."""
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 0]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in froms for alias in node.names}


@cache
def _source_of(module: str, place: str) -> ast.Module | None:
    """The parsed source of a module; None if it has none. Raises `ModuleNotFoundError`."""
    parent, _, name = module.rpartition(".")
    spec = _spec(module)
    if spec is None:
        above = _spec(parent)
        if above is not None and above.submodule_search_locations is None:
            return None  # `module` is a class in `parent`, perhaps
        if above is not None:
            raise UnknownNameError(
                f"module of {parent}, in {place}._target_,", name,
                [found.name for found in pkgutil.iter_modules(above.submodule_search_locations)],
            )  # fmt: skip
        raise ModuleNotFoundError(f"{place}._target_: there is no module {module!r} here; is its folder in PYTHONPATH?")
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return ast.parse(Path(spec.origin).read_bytes())


def _spec(module: str) -> Any:
    """The spec of a module; None if there is no such module. Imports its parent packages."""
    try:
        return find_spec(module)
    except (ModuleNotFoundError, ValueError):  # ValueError: the empty name
        return None
