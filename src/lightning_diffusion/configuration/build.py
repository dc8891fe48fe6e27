"""A program's configuration: resolved, held against the signatures that it calls, and made into objects."""

import re
import typing
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_diffusion.configuration.calls import check_node, make
from lightning_diffusion.configuration.errors import ConfigError, did_you_mean, dotted
from lightning_diffusion.configuration.signatures import fits
from lightning_diffusion.configuration.trusted_targets import Targets

Text = str | int | float  # what Hydra reads of a name or a path may look like a number

__all__ = ["ConfigError", "Text", "at_least", "build", "check", "did_you_mean"]


def check(
    config: DictConfig,
    slots: Mapping[str, Any],
    groups: Collection[str] = (),
    later: Collection[str] = (),
) -> dict[str, Any]:
    """Resolves a configuration and holds every value and every call in it against what is wanted there.

    Args:
        slots: the keys that the program reads -> what each holds, a type as in a signature; one that may be None may
            be missing. Other keys are parts that these refer to, and are held against what is wanted there.
        groups: keys that may be there though nothing refers to them.
        later: keys that are left out here and checked by another call.

    Returns:
        The configuration as plain containers.

    Raises:
        ConfigError: an unknown key or argument, a missing one, a value of the wrong type, or a call of something that
            is neither named in conf/ nor part of a package in `trust`.
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
    return plain


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


def build(plain: Mapping[str, Any], key: str, **parts: Any) -> Any:
    """What a checked configuration names under a key.

    Args:
        parts: arguments of the call that are objects already.
    """
    return make(plain[key], Targets(trust=plain.get("trust", ())), key, **parts)


def at_least(plain: Mapping[str, Any], least: int, *keys: str) -> None:
    """Raises ConfigError where a key's value is no whole number, or too small a one."""
    for key in keys:
        if not isinstance(plain[key], int) or plain[key] < least:
            raise ConfigError(f"{key}={plain[key]}: choose a whole number of at least {least}")
