"""Settings from an untrusted JSON file, and the part of a model that they describe."""

import json
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lightning_diffusion.system.files import Unreadable, read_text

MOST = 2**20  # bytes of a JSON file; a thousand β take 25,000
SHORT = reprlib.Repr()  # shortens values in messages
SHORT.maxstring = 80

REMEDY = "choose another model, or sample this one with diffusers"


class Settings:
    """A JSON object whose values are checked for type and range when they are read.

    A method that reads a value raises ValueError if it does not fit, in one line with the file and the key.

    Args:
        path: of the file.
        content: values by key.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    @classmethod
    def read(cls, path: Path) -> "Settings":
        """Reads a file. Raises ValueError unless it is a JSON object, neither too large nor nested too deeply."""
        try:
            content = json.loads(read_text(path, MOST), object_pairs_hook=_unique)
        except Unreadable as error:
            raise ValueError(f"pretrained={error}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"pretrained={path}: not a JSON file ({_line(error)})") from error
        if not isinstance(content, dict):
            raise ValueError(f"pretrained={path}: {_short(content)} instead of a JSON object")
        return cls(path, content)

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def among(self, known: Iterable[str], kind: str = "setting") -> None:
        """Refuses unknown keys, except those that begin with "_", which are the library's own notes."""
        known = set(known)
        for key in self.content:
            if key not in known and not key.startswith("_"):
                raise ValueError(f"pretrained={self.path}: {_short(key)}: unknown {kind}; {REMEDY}")

    def with_defaults(self, defaults: dict[str, Any]) -> "Settings":
        return Settings(self.path, defaults | self.content)

    def refuse(self, key: str, why: str) -> NoReturn:
        raise ValueError(f"pretrained={self.path}: {key}={_short(self.content.get(key))}: {why}; {REMEDY}")

    def need(self, holds: bool, key: str, why: str) -> None:
        if not holds:
            self.refuse(key, why)

    def only(self, key: str, value: Any) -> None:
        """Refuses any value except the only one that this project can express."""
        given = self[key]
        same = given == value and isinstance(given, bool) == isinstance(value, bool)
        self.need(same, key, f"this project can express only {value!r}")

    def word(self, key: str, choices: Iterable[str | None]) -> Any:
        choices, given = tuple(choices), self[key]
        fits = given is None or isinstance(given, str)
        self.need(fits and given in choices, key, f"expected {' or '.join(map(repr, choices))}")
        return given

    def flag(self, key: str) -> bool:
        self.need(isinstance(self[key], bool), key, "expected true or false")
        return bool(self[key])

    def integer(self, key: str, low: int, high: int) -> int:
        self.need(_whole(self[key], low, high), key, f"expected a whole number from {low} to {high}")
        return int(self[key])

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return None if self[key] is None else self.integer(key, low, high)

    def number(self, key: str, low: float, high: float) -> float:
        self.need(_real(self[key], low, high), key, f"expected a number from {low:g} to {high:g}")
        return float(self[key])

    def integers(self, key: str, low: int, high: int, most: int) -> list[int]:
        fits = isinstance(self[key], list) and 1 <= len(self[key]) <= most
        fits = fits and all(_whole(value, low, high) for value in self[key])
        self.need(fits, key, f"expected 1 to {most} whole numbers from {low} to {high}")
        return [int(value) for value in self[key]]

    def numbers(self, key: str, low: float, high: float, count: int) -> list[float]:
        fits = isinstance(self[key], list) and len(self[key]) == count
        fits = fits and all(_real(value, low, high) for value in self[key])
        self.need(fits, key, f"expected {count} numbers from {low:g} to {high:g}")
        return [float(value) for value in self[key]]


class Part(NamedTuple):
    """A part of a model: its class or function, and the arguments."""

    make: Callable[..., Any]
    options: dict[str, Any]

    @property
    def node(self) -> dict[str, Any]:
        """The part as plain data, from which Hydra builds it."""
        return {"_target_": f"{self.make.__module__}.{self.make.__qualname__}", **self.options}

    def build(self, path: Path) -> Any:
        """Makes the part. Raises ValueError with the file's path if the arguments do not fit together."""
        try:
            return self.make(**self.options)
        except ValueError as error:
            raise ValueError(f"pretrained={path}: {_line(error)}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{_short(next(key for key in keys if keys.count(key) > 1))} occurs twice")
    return content


def _whole(value: Any, low: int, high: int) -> bool:
    return _real(value, low, high) and (isinstance(value, int) or value.is_integer())


def _real(value: Any, low: float, high: float) -> bool:
    """Whether a JSON value is a number within the range; NaN, infinity and true never are."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _short(value: Any) -> str:
    return SHORT.repr(value)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
