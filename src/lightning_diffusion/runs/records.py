"""Safe reading of files that may be damaged or hostile: sizes are limited, and damage is reported as a note."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import yaml

from lightning_diffusion.system.files import MOST, Unreadable, read_bytes, read_text

T = TypeVar("T")
SMALL = 2**16  # bytes of YAML, which takes up to 30 seconds per megabyte, and of a failure's text
JSON = 2**24  # bytes of JSON, which takes twenty times as much memory
PIXELS, FRAMES = 2**26, 2000  # pixels of a picture or of all frames of an animation; frames of an animation
LAST = {"PNG": b"IEND\xaeB`\x82", "GIF": b";"}  # last bytes of a complete picture
LARGEST = 3.4e38  # float32's range: no measurement is larger


class Record(NamedTuple, Generic[T]):
    """The readable content of a file, and a note on its damage, without its path; None if it is intact."""

    content: T
    damage: str | None = None


def load(path: Path, parse: Callable[[str], Record[T]], missing: T, most: int = MOST) -> Record[T]:
    """Reads and parses a text file. The content is `missing` if there is no file, or nothing in it can be used.

    Args:
        parse: text -> record. Raises ValueError for an unusable text.
        most: bytes; a larger file counts as damaged.
    """
    if not os.path.lexists(path):
        return Record(missing)
    try:
        text = read_text(path, most)
        if not text.strip():
            raise ValueError("empty")
        return parse(text)
    except ValueError as error:
        return Record(missing, _reason(error, path))


def load_picture(path: Path, kind: Literal["PNG", "GIF"]) -> Record[bytes | None]:
    """The bytes of a picture that decodes completely; None if it is missing or damaged."""
    if not os.path.lexists(path):
        return Record(None)
    try:
        data = read_bytes(path)
        _decode(data, kind)
    except Unreadable as error:
        return Record(None, _reason(error, path))
    except Exception as error:  # on garbage Pillow raises nearly anything
        why = str(error) if isinstance(error, ValueError) else "damaged"
        return Record(None, f"not a readable {kind} ({why})")
    return Record(data)


def parse_yaml(text: str) -> dict[Any, Any]:
    """Parses a YAML mapping without aliases: a few lines with aliases can expand to billions of nodes.

    Raises ValueError.
    """
    try:
        found = yaml.load(text, _Loader)
    except Exception as error:  # on garbage PyYAML raises nearly anything, RecursionError too
        raise ValueError(f"not readable as YAML ({_first_line(error)})") from error
    if not isinstance(found, dict):
        raise ValueError("not a mapping")
    if not text.endswith("\n"):
        raise ValueError("cut off in its last line")
    return found


def parse_json(text: str) -> Any:
    """Parses JSON. Raises ValueError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({_first_line(error)})") from error


def parse_table(text: str, needed: Sequence[str]) -> Record[list[dict[str, float]]]:
    """Parses .csv rows of numbers up to the first damaged one. Empty cells are omitted; non-finite numbers become NaN.

    Args:
        needed: columns that must have a finite number in every row.

    Raises:
        ValueError: a needed column is missing.
    """
    whole, damage = text.endswith("\n"), None
    reader = csv.DictReader(io.StringIO(text if whole else text[: text.rfind("\n") + 1], newline=""))
    rows: list[dict[str, float]] = []
    try:
        for name in needed:
            if name not in (reader.fieldnames or ()):
                raise ValueError(f"no column {name}")
        for row in reader:
            rows.append(_row(row, needed))
    except (csv.Error, ValueError) as error:
        damage = f"line {reader.line_num}: {error}"
    return Record(rows, damage or (None if whole else "cut off in its last line"))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_measurable(value: float) -> bool:
    """Whether a number is finite and within float32's range."""
    return abs(value) <= LARGEST


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases are not allowed")
        return super().compose_node(parent, index)


def _row(row: dict[Any, Any], needed: Sequence[str]) -> dict[str, float]:
    if None in row or None in row.values():
        raise ValueError("the numbers of cells and columns differ")
    numbers: dict[str, float] = {}
    for name, cell in row.items():
        if cell or name in needed:
            try:
                value = float(cell)
            except ValueError:
                raise ValueError(f"{name} is not a number") from None
            if name in needed and not is_measurable(value):
                raise ValueError(f"{name} is not a finite number")
            numbers[name] = value if is_measurable(value) else float("nan")
    return numbers


def _decode(data: bytes, kind: str) -> None:
    from PIL import Image  # not at the top: training reads no pictures

    if not data.endswith(LAST[kind]):
        raise ValueError("cut off")
    with Image.open(io.BytesIO(data), formats=(kind,)) as file:
        pixels = 0
        for i in range(FRAMES):
            try:
                file.seek(i)
            except EOFError:
                return
            pixels += file.width * file.height
            if pixels > PIXELS:
                raise ValueError(f"{file.width}×{file.height} pixels")
            file.load()
    raise ValueError(f"more than {FRAMES} frames")


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
