"""A program's arguments: its configuration, resolved, checked against the signatures that it calls, and typed.

A program declares a frozen dataclass of its arguments. Its fields are the keys that it reads, filled in by `parse`:

    @dataclass(frozen=True)
    class Arguments:
        num_samples: int
        label: int | None  # can be missing, because it can be None
        sampler: Node[Sampler]  # a part, checked but not made yet
"""

import re
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from omegaconf import DictConfig, OmegaConf

from lightning_diffusion.configuration.calls import check_node, make
from lightning_diffusion.configuration.errors import ConfigError, did_you_mean, dotted
from lightning_diffusion.configuration.signatures import fits
from lightning_diffusion.configuration.trusted_targets import TARGET, Targets

A = TypeVar("A")
T_co = TypeVar("T_co", covariant=True)

Text = str | int | float  # a name or a path, which Hydra reads as a number if it looks like one


@dataclass(frozen=True)
class Node(Generic[T_co]):
    """A part of a checked configuration that is not made yet.

    Args:
        key: its place in the configuration.
        node: plain containers, for records and messages.
        targets: the callables that it can use.
    """

    key: str
    node: Any
    targets: Targets

    def make(self, **parts: Any) -> T_co:
        """Make the part, a new one at each call.

        Args:
            parts: arguments of the call that are objects already.

        Raises:
            ConfigError: a constructor failed.
        """
        made: T_co = make(self.node, self.targets, self.key, **parts)
        return made

    @property
    def name(self) -> str:
        """The last part of its target's name."""
        return str(self.node[TARGET]).rpartition(".")[2]


_NODES, _RECORD = object(), object()
Nodes = Annotated[Mapping[str, Node[Any]], _NODES]  # every part by its key, including those that others refer to
Record = Annotated[dict[str, Any], _RECORD]  # the whole configuration as plain containers, for files


def parse(config: DictConfig, arguments: type[A], groups: Collection[str] = (), whole: type | None = None) -> A:
    """Resolve a configuration and check every value and every call in it against the expected types.

    Args:
        arguments: a frozen dataclass. Its fields are the keys that the program reads, except fields of type Nodes or
            Record. Other keys are allowed only if these refer to them, and are checked where they are used.
        groups: keys that are allowed even if nothing refers to them.
        whole: all arguments of the program, if `arguments` are only some of them; the others are left unchecked.

    Raises:
        ConfigError: an unknown or missing key or argument, a value of the wrong type, or a call of something that is
            neither used in conf/ nor part of a package in `trust`.
    """
    keys, known = keys_of(arguments), keys_of(whole or arguments)
    plain, targets = _checked(config, known, groups, known.keys() - keys.keys())
    hints: dict[str, Any] = typing.get_type_hints(arguments, include_extras=True)
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        if _is(hint, _RECORD):
            values[name] = plain
        elif _is(hint, _NODES):
            values[name] = {key: Node(key, node, targets) for key, node in plain.items() if isinstance(node, Mapping)}
        elif _holds_node(hint) and plain.get(name) is not None:
            values[name] = Node(name, plain[name], targets)
        else:
            values[name] = plain.get(name)
    return arguments(**values)


def keys_of(arguments: type) -> dict[str, Any]:
    """The keys that fill a dataclass of arguments -> the type of each, as in a signature."""
    hints = typing.get_type_hints(arguments, include_extras=True)
    return {name: _annotation_of(hint) for name, hint in hints.items() if not (_is(hint, _NODES) or _is(hint, _RECORD))}


def at_least(least: int, **values: Any) -> None:
    """Raise ConfigError unless each value is a whole number of at least `least`."""
    for key, value in values.items():
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{key}={value}: choose a whole number of at least {least}")


def _is(hint: Any, mark: object) -> bool:
    return mark in getattr(hint, "__metadata__", ())


def _holds_node(hint: Any) -> bool:
    return any(typing.get_origin(each) is Node for each in (hint, *typing.get_args(hint)))


def _annotation_of(hint: Any) -> Any:
    """The annotation without Node[…]: T of Node[T], T | None of Node[T] | None."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Node:
        return inner[0]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_annotation_of, inner))]  # noqa: UP007 - of any number of types
    return hint


def _checked(
    config: DictConfig, slots: Mapping[str, Any], groups: Collection[str], later: Collection[str]
) -> tuple[dict[str, Any], Targets]:
    """The checked configuration as plain containers, and the callables that it can use.

    Args:
        slots: the keys that the program reads -> the type of each.
        later: keys that are left out here.
    """
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    written: Any = OmegaConf.to_container(config, resolve=False)
    targets = Targets(trust=plain.get("trust", ()))
    plain = {key: node for key, node in plain.items() if key not in later}
    for key, wanted in slots.items():
        if key not in later and key not in plain and not fits(None, wanted):
            raise ConfigError(f"{key}: missing; keep this key, or choose another {key}=…")
    parts = {*groups, *_referred_to({key: written[key] for key in plain if key in slots}, written)}
    for key, node in sorted(plain.items(), key=lambda item: item[0] in slots):  # a part before those that refer to it
        if key not in slots and key not in parts:
            known = dotted({name: child for name, child in plain.items() if name in slots or name in parts})
            raise ConfigError(f"{key}: no such key{did_you_mean(key, [*slots, *known])}")
        check_node(node, slots.get(key, Any), key, targets, written[key])
    return plain, targets


def _referred_to(nodes: Any, written: Mapping[str, Any]) -> set[str]:
    """The root keys that ${…} or ${oc.select:…,…} in these nodes refers to, directly and indirectly."""
    found: set[str] = set()
    waiting = [nodes]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (Mapping, list)):
            waiting.extend(node.values() if isinstance(node, Mapping) else node)
        for key in re.findall(r"\$\{(?:oc\.select:)?(\w+)", node) if isinstance(node, str) else ():
            if key in written and key not in found:
                found.add(key)
                waiting.append(written[key])
    return found
