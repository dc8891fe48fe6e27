"""The callables that a configuration can use: a closed table of those in conf/, and packages that the user trusts.

A name from a file is only looked up here. It is never imported because a file contains it.
"""

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_diffusion.configuration.defaults_lists import groups_in
from lightning_diffusion.configuration.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED, _CHECKOUT = _PACKAGE / "conf", _PACKAGE.parents[1] / "conf"
CONF = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT  # a wheel contains it
TARGET = "_target_"
MISSING = "???"
DATA = ("data",)  # the groups that a model's file can use for its data, and …
DRAWING = ("sampler", "time_grid", "guidance")  # … for drawing samples; for the model itself see `family_groups`


class Targets:
    """Callables by name.

    Args:
        groups: the groups of conf/ whose targets are allowed; None allows all.
        trust: packages, given on the command line, whose classes and functions are allowed too.
        strict: whether the type of a result must be known, as it must for files; that of a class always is.

    Raises:
        ConfigError: `trust` is not a list of packages, or contains one of the standard library.
    """

    def __init__(self, groups: Collection[str] | None = None, trust: Any = (), strict: bool = False) -> None:
        self.own = {name for group, name in _targets_in_conf() if groups is None or group in groups}
        self.trust, self.strict = _packages(trust), strict

    def find(self, name: Any) -> Callable[..., Any]:
        """The callable with this name.

        Raises:
            ConfigError: neither conf/ nor a trusted package has the name. It is not imported.
        """
        if isinstance(name, str) and name in self.own:
            return _import_target(name)
        package = next((p for p in self.trust if isinstance(name, str) and name.startswith(f"{p}.")), None)
        if package is None or not re.fullmatch(r"(?!.*__)[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name, re.ASCII):
            raise ConfigError(
                f"calls {_quote(name)}, which is not part of this project (no option in conf/){_remedy(name)}"
            )
        try:
            found = _import_target(name)
        except Exception as error:  # the import runs the user's own code
            raise ConfigError(f"calls {name}, which cannot be imported ({str(error).splitlines()[0]})") from error
        home = getattr(found, "__module__", None) or ""
        if not (inspect.isclass(found) or inspect.isfunction(found)) or not f"{home}.".startswith(f"{package}."):
            raise ConfigError(
                f"calls {name}, which is not a class or function of {package}; give the module that defines it"
            )
        return found


def require_plain(node: Any, most_depth: int = 32) -> None:
    """Raise ConfigError unless a file's configuration is plain data: dicts with short keys, lists, text and numbers.

    Text with `${` is refused, because OmegaConf would resolve it, and a resolver can call any function.
    """
    if most_depth == 0:
        raise ConfigError("is nested too deeply")
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str) or not 0 < len(key) <= 100 or not key.isprintable():
                raise ConfigError(f"contains the key {_quote(key)}, which is not a short text")
            require_plain(key, most_depth - 1)
            require_plain(value, most_depth - 1)
    elif isinstance(node, list):
        for value in node:
            require_plain(value, most_depth - 1)
    elif isinstance(node, str):
        if "${" in node:
            raise ConfigError(f"contains an interpolation, {_quote(node)}")
    elif isinstance(node, int):
        if abs(node) >= 2**63:
            raise ConfigError("contains a number of more than 64 bits")
    elif not isinstance(node, (float, type(None))):
        raise ConfigError(f"contains an object of type {type(node).__name__}")


def targets_in(node: Any) -> Iterator[Any]:
    """Every value of a key `_target_`."""
    if isinstance(node, dict):
        if TARGET in node:
            yield node[TARGET]
        for value in node.values():
            yield from targets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_in(value)


def _packages(trust: Any) -> tuple[str, ...]:
    if not isinstance(trust, Sequence) or isinstance(trust, str):
        raise ConfigError(f"trust={trust}: not a list of packages; give trust=[{trust}]")
    for package in trust:
        if not isinstance(package, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", package, re.ASCII):
            raise ConfigError(f"trust=[{package}]: not the name of a package; give trust=[my_package]")
        if package.split(".")[0] in sys.stdlib_module_names:
            raise ConfigError(
                f"trust=[{package}]: part of Python's standard library, which has no models; leave it out"
            )
    return tuple(trust)


def _remedy(name: Any) -> str:
    top = str(name).split(".")[0]
    if not re.fullmatch(r"[A-Za-z_]\w*", top, re.ASCII) or top in sys.stdlib_module_names or "." not in str(name):
        return ""
    return f"; if you trust the code of {top}, add trust=[{top}] to the command line"


def _quote(value: Any) -> str:
    """Text from a file for a message: shortened, and escaped unless it is printable ASCII."""
    text = value if isinstance(value, str) else f"a {type(value).__name__}"
    text = text if text.isascii() and text.isprintable() else ascii(text)
    return text if len(text) <= 100 else f"{text[:100]}…"


@functools.cache
def family_groups() -> frozenset[str]:
    """The groups that make up a model: conf/model and the groups that its options and their recipes add, without
    DRAWING."""
    files = [*(CONF / "model").glob("*.yaml"), *(CONF / "recipe").glob("*/*.yaml")]
    added = {group for path in files for group, _ in groups_in(path) if "/" not in group}
    return frozenset({"model"} | added - set(DRAWING))


@functools.cache
def _targets_in_conf() -> set[tuple[str, str]]:
    """Every (group, target) in conf/. A group is a folder, or a key of a program's own file."""
    found: set[tuple[str, str]] = set()
    for path in CONF.rglob("*.yaml"):
        node = yaml.safe_load(path.read_text()) or {}
        parts = {path.parent.name: node} if path.parent != CONF else node
        for group, part in parts.items():
            found |= {(group, name) for name in targets_in(part) if name != MISSING}
    return found


@functools.cache
def _import_target(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
