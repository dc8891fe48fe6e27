"""A program's arguments: its configuration resolved, held against the signatures that it calls, and typed.

A program declares a frozen dataclass of its arguments. The fields are the keys that it reads, and `parse` fills them:

    @dataclass(frozen=True)
    class Arguments:
        num_samples: int
        label: int | None  # one that may be None may be missing
        sampler: Node[Sampler]  # a part, checked and not made yet
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

Text = str | int | float  # what Hydra reads of a name or a path may look like a number


@dataclass(frozen=True)
class Node(Generic[T_co]):
    """A part of a checked configuration, which is not made yet.

    Args:
        key: where it stands.
        node: plain containers, for records and for what is told.
        targets: what it may call.
    """

    key: str
    node: Any
    targets: Targets

    def make(self, **parts: Any) -> T_co:
        """The part itself, a new one at each call.

        Args:
            parts: arguments of the call that are objects already.

        Raises:
            ConfigError: whatever a constructor raises.
        """
        made: T_co = make(self.node, self.targets, self.key, **parts)
        return made

    @property
    def name(self) -> str:
        """The last part of the name of what it calls."""
        return str(self.node[TARGET]).rpartition(".")[2]


_NODES, _RECORD = object(), object()
Nodes = Annotated[Mapping[str, Node[Any]], _NODES]  # every part by its key, those that others refer to included
Record = Annotated[dict[str, Any], _RECORD]  # the whole configuration as plain containers, to be written down


def parse(config: DictConfig, arguments: type[A], groups: Collection[str] = (), whole: type | None = None) -> A:
    """Resolves a configuration and holds every value and every call in it against what is wanted there.

    Args:
        arguments: a frozen dataclass. Its fields are the keys that the program reads; a field of type Nodes or Record
            is none of them. Other keys are parts that these refer to, and are held against what is wanted there.
        groups: keys that may be there though nothing refers to them.
        whole: all of the program's arguments, where `arguments` are some of them: the others are left to another call.

    Raises:
        ConfigError: an unknown key or argument, a missing one, a value of the wrong type, or a call of something that
            is neither named in conf/ nor part of a package in `trust`.
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
    """The keys that fill a dataclass of arguments -> what each holds, a type as in a signature."""
    hints = typing.get_type_hints(arguments, include_extras=True)
    return {name: _annotation_of(hint) for name, hint in hints.items() if not (_is(hint, _NODES) or _is(hint, _RECORD))}


def at_least(least: int, **values: Any) -> None:
    """Raises ConfigError where a key's value is no whole number, or too small a one."""
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
        return typing.Union[tuple(map(_annotation_of, inner))]  # noqa: UP007 - of as many as there are
    return hint


def _checked(
    config: DictConfig, slots: Mapping[str, Any], groups: Collection[str], later: Collection[str]
) -> tuple[dict[str, Any], Targets]:
    """The configuration as plain containers, and what it may call.

    Args:
        slots: the keys that the program reads -> what each holds.
        later: keys that are left out here.
    """
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    written: Any = OmegaConf.to_container(config, resolve=False)
    targets = Targets(trust=plain.get("trust", ()))
    plain = {key: node for key, node in plain.items() if key not in later}
    for key, wanted in slots.items():
        if key not in later and key not in plain and not fits(None, wanted):
            raise ConfigError(f"{key}: missing; leave it in, or choose another {key}=…")
    parts = {*groups, *_referred_to({key: written[key] for key in plain if key in slots}, written)}
    for key, node in plain.items():
        if key not in slots and key not in parts:
            known = dotted({name: child for name, child in plain.items() if name in slots or name in parts})
            raise ConfigError(f"{key}: no such key{did_you_mean(key, [*slots, *known])}")
        check_node(node, slots.get(key, Any), key, targets, written[key])
    return plain, targets


def _referred_to(nodes: Any, written: Mapping[str, Any]) -> set[str]:
    """The root keys that ${…} in these nodes leads to, and in what it leads to."""
    found: set[str] = set()
    waiting = [nodes]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (Mapping, list)):
            waiting.extend(node.values() if isinstance(node, Mapping) else node)
        for key in re.findall(r"\$\{(\w+)", node) if isinstance(node, str) else ():
            if key in written and key not in found:
                found.add(key)
                waiting.append(written[key])
    return found
