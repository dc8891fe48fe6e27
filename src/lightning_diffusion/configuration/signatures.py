"""The parameters and the result of a callable. Its signature is the schema of a configuration that calls it."""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


class Signature(typing.NamedTuple):
    """Named parameters, the annotation of **others or None, and the type of the result, Any if unknown."""

    parameters: dict[str, inspect.Parameter]
    others: Any
    returns: Any


@functools.cache
def signature_of(function: Callable[..., Any]) -> Signature:
    """The signature of a callable; for a class, with the parameters of the base classes that get its **options."""
    if not inspect.isclass(function):
        own, others = _parameters(function)
        return Signature(own, others, _hints(function).get("return", Any))
    parameters: dict[str, inspect.Parameter] = {}
    others = None
    for cls in function.__mro__:
        if "__init__" in vars(cls):
            own, others = _parameters(vars(cls)["__init__"])
            parameters = own | parameters
            if others is None:
                break
    return Signature(parameters, others, function)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value matches an annotation. True if the annotation does not restrict plain values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if isinstance(value, Mapping):
        return annotation not in PLAIN and ("_target_" in value or not needs_call(annotation))
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, type(None)):
        return isinstance(value, annotation)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(fits, value, arguments))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value if arguments)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return False
    return not needs_call(annotation)


def result_fits(returned: Any, partial: bool, annotation: Any, strict: bool) -> bool:
    """Whether the result of a call matches an annotation.

    Args:
        returned: the annotation of the call's result.
        partial: whether the result is the callable itself, with arguments filled in.
        strict: whether a result of unknown type is refused if a type is expected.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or annotation is object:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(result_fits(returned, partial, argument, strict) for argument in arguments)
    if origin is Callable:
        wanted = arguments[1] if partial and len(arguments) == 2 else Any
        return result_fits(returned, False, wanted, strict)
    if partial or annotation in PLAIN or origin is not None:
        return False
    if not inspect.isclass(annotation):
        return True
    returned = typing.get_origin(returned) or returned
    return issubclass(returned, annotation) if inspect.isclass(returned) else not strict


def item_annotation(annotation: Any) -> Any:
    """The annotation of a container's items: X for list[X], Sequence[X] and dict[str, X]; Any if unknown."""
    for part in typing.get_args(annotation) if _is_union(annotation) else (annotation,):
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if inspect.isclass(origin) and issubclass(origin, (Sequence, Mapping)) and arguments:
            return arguments[-1] if arguments[-1] is not Ellipsis else arguments[0]
    return Any


def needs_call(annotation: Any) -> bool:
    """Whether only the result of a call matches: an object or a function."""
    if typing.get_origin(annotation) is Callable:
        return True
    return inspect.isclass(annotation) and annotation not in (Any, object, dict, list, Path) and annotation not in PLAIN


def describe(annotation: Any) -> str:
    """An annotation in words, for messages about values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_union(annotation):
        return " or ".join(describe(argument) for argument in arguments)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"a mapping of names to {describe(arguments[1])}"
    if origin is Callable:
        return "an option of its group"
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    if origin is not None and arguments:
        return f"a list of {describe(arguments[0])}"
    return PLAIN.get(annotation) or f"an option of its group, a {getattr(annotation, '__name__', annotation)}"


def describe_types(annotation: Any) -> str:
    """The types that an annotation allows for a call's result, in words, for messages."""
    if _is_union(annotation):
        return " or ".join(
            describe_types(argument) for argument in typing.get_args(annotation) if argument is not type(None)
        )
    if typing.get_origin(annotation) is Callable:
        return f"a function that returns {describe_types(typing.get_args(annotation)[-1])}"
    return PLAIN.get(annotation) or f"of type {getattr(annotation, '__name__', annotation)}"


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], Any]:
    hints, found, others = _hints(function), {}, None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind == parameter.VAR_KEYWORD:
            others = hints.get(name, Any)
        elif parameter.kind not in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) and name != "self":
            found[name] = parameter.replace(annotation=hints.get(name, Any))
    return found, others


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # the annotations of other packages cannot always be resolved
        return {}
