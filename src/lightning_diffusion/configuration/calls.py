"""Configuration nodes as calls: first all are checked against the signatures, then made from the inside out.

A mapping with `_target_` is a call of that name with the other keys as its arguments; `_partial_: true` fills in the
arguments without calling. Every object of a configuration is made here.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from lightning_diffusion.configuration.errors import ConfigError, did_you_mean
from lightning_diffusion.configuration.signatures import (
    Signature,
    describe,
    describe_types,
    fits,
    item_annotation,
    needs_call,
    result_fits,
    signature_of,
)
from lightning_diffusion.configuration.trusted_targets import TARGET, Targets

PARTIAL = "_partial_"


def check_node(node: Any, annotation: Any, path: str, targets: Targets, written: Any = None) -> None:
    """Check a node, and everything in it, against a type.

    Args:
        node: plain data.
        annotation: the expected type, as in a signature; Any for anything.
        path: of the node, a.b.c.
        targets: the callables that are allowed.
        written: the node before interpolation. If it refers to another key, messages name that key.

    Raises:
        ConfigError: an unknown or missing argument, a value of the wrong type, or a call that is not allowed.
    """
    path = _source(written) or path
    if isinstance(node, Mapping) and TARGET in node:
        return _check_call(node, annotation, path, targets, written)
    if not fits(node, annotation):
        if isinstance(node, Mapping) and needs_call(annotation):
            raise ConfigError(f"{path}.{TARGET}: missing; give an option of the group, {path}=…")
        raise ConfigError(f"{path}={node!r}: expected {describe(annotation)}")
    if isinstance(node, Mapping):
        for key, child in node.items():
            inner = f"{path}.{key}" if path else str(key)
            check_node(child, item_annotation(annotation), inner, targets, _inside(written, key))
    elif isinstance(node, list):
        for i, child in enumerate(node):
            check_node(child, item_annotation(annotation), f"{path}[{i}]", targets, _inside(written, i))


def make(node: Any, targets: Targets, path: str = "", **parts: Any) -> Any:
    """Make the object of a checked node.

    Args:
        parts: arguments of the outermost call that are objects already.

    Raises:
        ConfigError: a constructor failed; the message gets the node's path unless it names a key.
    """
    if isinstance(node, list):
        return [make(child, targets, f"{path}[{i}]") for i, child in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    arguments = {
        key: make(child, targets, f"{path}.{key}" if path else str(key))
        for key, child in node.items()
        if key not in (TARGET, PARTIAL) and key not in parts
    } | parts
    if TARGET not in node:
        return arguments
    function = targets.find(node[TARGET])
    if node.get(PARTIAL):
        return functools.partial(function, **arguments)
    try:
        return function(**arguments)
    except ConfigError:
        raise
    except Exception as error:  # a third-party constructor can raise anything
        text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
        raise ConfigError(text if re.match(r"[\w.]+(=|: )", text) else f"{path}: {text}") from error


def _check_call(node: Mapping[str, Any], annotation: Any, path: str, targets: Targets, written: Any) -> None:
    target, partial = node[TARGET], node.get(PARTIAL, False)
    try:
        signature = signature_of(targets.find(target))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}.{TARGET}={target}: its arguments cannot be checked, because it has no signature"
        ) from error
    if not isinstance(partial, bool):
        raise ConfigError(f"{path}.{PARTIAL}={partial!r}: expected true or false")
    if not result_fits(signature.returns, partial, annotation, targets.strict):
        raise ConfigError(f"{path}.{TARGET}={target}: not {describe_types(annotation)}; choose another {path}=…")
    arguments = {key: child for key, child in node.items() if key not in (TARGET, PARTIAL)}
    for key, child in arguments.items():
        wanted = _annotation(signature, key, path)
        check_node(child, wanted, f"{path}.{key}", targets, _inside(written, key))
    if not partial:
        for key, parameter in signature.parameters.items():
            if parameter.default is parameter.empty and key not in arguments:
                raise ConfigError(f"{path}.{key}: missing; {target} needs it")


def _annotation(signature: Signature, key: str, path: str) -> Any:
    if key in signature.parameters:
        return signature.parameters[key].annotation
    if signature.others is None or key.startswith("_"):
        raise ConfigError(f"{path}.{key}: no such key{did_you_mean(key, signature.parameters)}")
    return signature.others


def _source(written: Any) -> str | None:
    """a.b, the key that `${a.b}` refers to; None for anything else."""
    match = re.fullmatch(r"\$\{([\w.]+)\}", written) if isinstance(written, str) else None
    return match[1] if match else None


def _inside(written: Any, key: Any) -> Any:
    """The child of a node before interpolation; None below an interpolation."""
    return written[key] if isinstance(written, (Mapping, list)) else None
