"""A configuration checked against the signatures that it calls, before anything is built.

A node with `_target_` is a call; the callable's signature is its schema: argument names, and the plain types among
their annotations. Ranges and clashes are the constructors' own business (ValueError).
"""

import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


class Mistake(Exception):
    """The user's, in one line that names the key and the remedy."""


def check(config: DictConfig, known: Sequence[str] = (), called: Sequence[str] = ()) -> dict[str, Any]:
    """Resolves a configuration and holds every call in it against the callable's signature.

    Args:
        known: the top-level keys that the program reads.
        called: those among them that must be calls.

    Returns:
        The configuration as plain containers.

    Raises:
        Mistake: an unknown or missing argument, a value of the wrong type, a `_target_` that does not exist.
    """
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    written = OmegaConf.to_container(config, resolve=False)
    for key in plain:
        if known and key not in known:
            raise Mistake(f"{key}: no such key{did_you_mean(key, known)}")
    for key in called:
        if "_target_" not in (plain[key] if isinstance(plain.get(key), Mapping) else ()):
            raise Mistake(f"{key}._target_: missing; give an option of the group, {key}=…")
    _check_node(plain, written, "")
    return plain


def at_least(plain: Mapping[str, Any], least: int, *keys: str) -> None:
    """Raises Mistake where a key's value is no whole number, or too small a one."""
    for key in keys:
        if not isinstance(plain[key], int) or plain[key] < least:
            raise Mistake(f"{key}={plain[key]}: choose a whole number of at least {least}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The part of a message that names the nearest spelling, or all that there is to choose from."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; choose among {', '.join(sorted(known))}" if known else ""


def quoted(value: object) -> str:
    """As Hydra's command line reads it literally."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _check_node(node: Any, written: Any, path: str) -> None:
    """`written` is the node before interpolation: where it refers to another key, that key is the one to name."""
    path = _source(written) or path
    if isinstance(node, Mapping):
        if "_target_" in node:
            _check_call(node, written, path)
        for key, value in node.items():
            _check_node(value, _inside(written, key), f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _check_node(value, _inside(written, i), f"{path}[{i}]")


def _check_call(node: Mapping[str, Any], written: Any, path: str) -> None:
    target = node["_target_"]
    try:
        function = get_object(target)
    except Exception as error:
        raise Mistake(f"{path}._target_={target}: cannot be imported ({str(error).splitlines()[0]})") from error
    parameters, open_ended = _parameters(function)
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    for key, value in arguments.items():
        name = _source(_inside(written, key)) or f"{path}.{key}"
        if key not in parameters:
            if not open_ended:
                raise Mistake(f"{path}.{key}: no such key{did_you_mean(key, parameters)}")
        elif not _fits(value, parameters[key].annotation):
            raise Mistake(f"{name}={value!r}: expected {_name(parameters[key].annotation)}")
    if not node.get("_partial_"):
        for key, parameter in parameters.items():
            if parameter.default is parameter.empty and key not in arguments:
                raise Mistake(f"{path}.{key}: missing; {target} needs it")


def _source(written: Any) -> str | None:
    """The key that `${a.b}` refers to, a.b; None for anything else."""
    match = re.fullmatch(r"\$\{([\w.]+)\}", written) if isinstance(written, str) else None
    return match[1] if match else None


def _inside(written: Any, key: Any) -> Any:
    """The child of a node as it was written; None below an interpolation."""
    return written[key] if isinstance(written, (Mapping, list)) else None


def _parameters(function: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """Named parameters, with those of the base classes that **options pass on; and whether any name is taken."""
    functions = (
        [vars(c)["__init__"] for c in function.__mro__ if "__init__" in vars(c)]
        if inspect.isclass(function)
        else [function]
    )
    parameters: dict[str, inspect.Parameter] = {}
    for function in functions:
        signature = inspect.signature(function)
        hints = _hints(function)
        variadic = False
        for name, parameter in signature.parameters.items():
            if parameter.kind == parameter.VAR_KEYWORD:
                variadic = True
            elif parameter.kind != parameter.VAR_POSITIONAL and name != "self":
                parameters.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if not variadic:
            return parameters, False
    return parameters, True


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # a third party's annotations may not resolve
        return {}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value can be meant by an annotation; True where the annotation says nothing of plain values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if isinstance(value, Mapping):
        return annotation not in (bool, int, float, str, type(None)) and (
            "_target_" in value or not _is_built(annotation)
        )
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, type(None)):
        return isinstance(value, annotation)
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value if arguments)
    return not _is_built(annotation)


def _is_built(annotation: Any) -> bool:
    """Whether only what a `_target_` makes can be meant: an object or a function."""
    if typing.get_origin(annotation) is Callable:
        return True
    return inspect.isclass(annotation) and annotation not in (Any, object, dict, list, Path) and annotation not in PLAIN


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_name(argument) for argument in arguments)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is not None and arguments:
        return f"a list of {_name(arguments[0])}"
    if origin is Callable:
        return "an option of its group"
    return PLAIN.get(annotation) or f"an option of its group, a {getattr(annotation, '__name__', annotation)}"
