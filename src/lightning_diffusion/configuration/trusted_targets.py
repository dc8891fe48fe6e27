"""What a configuration may call: a closed table of what conf/ names, and packages that the command line trusts.

A name that comes out of a file is only ever looked up here. It never becomes an import by itself.
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

from lightning_diffusion.configuration.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED, _CHECKOUT = _PACKAGE / "conf", _PACKAGE.parents[1] / "conf"
CONF = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT  # a wheel carries it inside
TARGET = "_target_"
MISSING = "???"
DATA = ("data",)  # groups that a model's file may draw on for its data, and …
DRAWING = ("sampler", "time_grid", "guidance")  # … for how samples are drawn; for the model itself `family_groups`


class Targets:
    """Callables by name.

    Args:
        groups: of conf/ whose targets are in the table; None takes all of them.
        trust: packages whose classes and functions may be called too, from the command line.
        strict: whether what a callable returns must be known, as in a file; a class always tells.

    Raises:
        ConfigError: `trust` is not a list of packages, or names one of Python's own.
    """

    def __init__(self, groups: Collection[str] | None = None, trust: Any = (), strict: bool = False) -> None:
        self.own = {name for group, name in _targets_in_conf() if groups is None or group in groups}
        self.trust, self.strict = _packages(trust), strict

    def find(self, name: Any) -> Callable[..., Any]:
        """The callable of that name.

        Raises:
            ConfigError: a name that neither conf/ nor a trusted package has; nothing is imported for it.
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
        except Exception as error:  # importing runs the user's own code
            raise ConfigError(f"calls {name}, which cannot be imported ({str(error).splitlines()[0]})") from error
        home = getattr(found, "__module__", None) or ""
        if not (inspect.isclass(found) or inspect.isfunction(found)) or not f"{home}.".startswith(f"{package}."):
            raise ConfigError(f"calls {name}, which is no class or function of {package}; name it where it is defined")
        return found


def require_plain(node: Any, most_depth: int = 32) -> None:
    """Raises ConfigError unless a file's configuration is plain data: dicts with short names, lists, text and numbers.

    Text that holds `${` is refused: OmegaConf would resolve it, and its resolvers call what they are told to.
    """
    if most_depth == 0:
        raise ConfigError("is nested too deeply")
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str) or not 0 < len(key) <= 100 or not key.isprintable():
                raise ConfigError(f"has the key {_quote(key)}")
            require_plain(key, most_depth - 1)
            require_plain(value, most_depth - 1)
    elif isinstance(node, list):
        for value in node:
            require_plain(value, most_depth - 1)
    elif isinstance(node, str):
        if "${" in node:
            raise ConfigError(f"holds an interpolation, {_quote(node)}")
    elif isinstance(node, int):
        if abs(node) >= 2**63:
            raise ConfigError("holds a number of more than 64 bits")
    elif not isinstance(node, (float, type(None))):
        raise ConfigError(f"holds an object of type {type(node).__name__}")


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
        raise ConfigError(f"trust={trust}: give a list of packages, trust=[{trust}]")
    for package in trust:
        if not isinstance(package, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", package, re.ASCII):
            raise ConfigError(f"trust=[{package}]: choose packages by name, trust=[my_package]")
        if package.split(".")[0] in sys.stdlib_module_names:
            raise ConfigError(f"trust=[{package}]: Python's own library holds no models; leave it out")
    return tuple(trust)


def _remedy(name: Any) -> str:
    top = str(name).split(".")[0]
    if not re.fullmatch(r"[A-Za-z_]\w*", top, re.ASCII) or top in sys.stdlib_module_names or "." not in str(name):
        return ""
    return f"; if you trust the code of {top}, add trust=[{top}] to the command line"


def _quote(value: Any) -> str:
    """A file's own words in a message: short, and with what looks like another letter spelt out."""
    text = value if isinstance(value, str) else f"a {type(value).__name__}"
    text = text if text.isascii() and text.isprintable() else ascii(text)
    return text if len(text) <= 100 else f"{text[:100]}…"


@functools.cache
def family_groups() -> frozenset[str]:
    """The groups that a model consists of: conf/model, and those that its options choose from, but for DRAWING."""
    found = {"model"}
    for path in (CONF / "model").glob("*.yaml"):
        entries = (yaml.safe_load(path.read_text()) or {}).get("defaults", [])
        found |= {group.lstrip("/") for entry in entries if isinstance(entry, dict) for group in entry}
    return frozenset(found - set(DRAWING))


@functools.cache
def _targets_in_conf() -> set[tuple[str, str]]:
    """Every (group, target) in conf/; a group is a folder, or a key of a program's own file."""
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
