"""A program's configuration: resolved, held against the signatures that it calls, and made into objects."""

import re
import shlex
import typing
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.calls import check_node, make
from src.mistake import Mistake, did_you_mean, dotted
from src.signatures import fits
from src.trusted_targets import Targets

PLAIN = r"[\w./:@%+-]+"  # a value that Hydra and a shell read as it stands
Text = str | int | float  # what Hydra reads of a name or a path may look like a number

__all__ = ["Mistake", "Text", "at_least", "build", "check", "did_you_mean", "for_shell", "pasted", "quoted"]


def check(config: DictConfig, slots: Mapping[str, Any]) -> dict[str, Any]:
    """Resolves a configuration and holds every value and every call in it against what is wanted there.

    Args:
        slots: the keys that the program reads -> what each holds, a type as in a signature; one that may be None may
            be missing.

    Returns:
        The configuration as plain containers.

    Raises:
        Mistake: an unknown key or argument, a missing one, a value of the wrong type, or a call of something that is
            neither named in conf/ nor part of a package in `trust`.
    """
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    written: Any = OmegaConf.to_container(config, resolve=False)
    targets = Targets(trust=plain.get("trust", ()))
    for key, wanted in slots.items():
        if key not in plain and not fits(None, wanted):
            raise Mistake(f"{key}: missing; leave it in, or choose another {key}=…")
    for key, node in plain.items():
        if key not in slots:
            known = dotted({name: child for name, child in plain.items() if name in slots})
            raise Mistake(f"{key}: no such key{did_you_mean(key, [*slots, *known])}")
        check_node(node, slots[key], key, targets, written[key])
    return plain


def build(plain: Mapping[str, Any], key: str, **parts: Any) -> Any:
    """What a checked configuration names under a key.

    Args:
        parts: arguments of the call that are objects already.
    """
    return make(plain[key], Targets(trust=plain.get("trust", ())), key, **parts)


def at_least(plain: Mapping[str, Any], least: int, *keys: str) -> None:
    """Raises Mistake where a key's value is no whole number, or too small a one."""
    for key in keys:
        if not isinstance(plain[key], int) or plain[key] < least:
            raise Mistake(f"{key}={plain[key]}: choose a whole number of at least {least}")


def quoted(value: object) -> str:
    """As Hydra's command line reads it literally."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def pasted(key: str, value: object) -> str:
    """key=value as it can be typed into a shell, with the quotes that it and Hydra need."""
    text = str(value)
    return for_shell(f"{key}={text if re.fullmatch(PLAIN, text) else quoted(text)}")


def for_shell(word: str) -> str:
    """A word with the quotes that a shell needs, if it needs any; double ones around single ones."""
    if "'" not in word or re.search(r'[!"$`\\]', word):
        return shlex.quote(word)
    return f'"{word}"'
