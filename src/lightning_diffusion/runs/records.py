"""Files that a killed program, a full disk or a stranger may have left: parsed within bounds, damage is a note."""

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
SMALL = 2**16  # bytes of YAML, which takes up to 30 seconds a megabyte, and of a failure's text
JSON = 2**24  # bytes of JSON, which takes twenty times as many in memory
PIXELS, FRAMES = 2**26, 2000  # of a picture, of all frames of an animation together; of an animation
LAST = {"PNG": b"IEND\xaeB`\x82", "GIF": b";"}  # bytes of a picture
LARGEST = 3.4e38  # float32's range: no measurement is larger


class Record(NamedTuple, Generic[T]):
    """What could be read of a file, and what is wrong with it, without its path; None for nothing."""

    content: T
    damage: str | None = None


def load(path: Path, parse: Callable[[str], Record[T]], missing: T, most: int = MOST) -> Record[T]:
    """A text file, parsed; `missing` where there is none, and where nothing of it can be used.

    Args:
        parse: text -> record. Raises ValueError for a text of no use.
        most: bytes; a larger file is damaged.
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
    """A picture's bytes, once all of it has been decoded; None where it is missing or damaged."""
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
    """A mapping in YAML, without aliases: a few lines of them can stand for billions of nodes. Raises ValueError."""
    try:
        found = yaml.load(text, _Loader)
    except Exception as error:  # on garbage PyYAML raises nearly anything, RecursionError too
        raise ValueError(f"not YAML that is read here ({_first_line(error)})") from error
    if not isinstance(found, dict):
        raise ValueError("not a mapping")
    if not text.endswith("\n"):
        raise ValueError("cut off in its last line")
    return found


def parse_json(text: str) -> Any:
    """Raises ValueError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({_first_line(error)})") from error


def parse_table(text: str, needed: Sequence[str]) -> Record[list[dict[str, float]]]:
    """Rows of numbers in .csv up to the first damaged one; empty cells are left out, NaN stands for what is not finite.

    Args:
        needed: columns with a finite number in every row.

    Raises:
        ValueError: one of them is missing.
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
    """Whether a number is finite and in float32's range."""
    return abs(value) <= LARGEST


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias")
        return super().compose_node(parent, index)


def _row(row: dict[Any, Any], needed: Sequence[str]) -> dict[str, float]:
    if None in row or None in row.values():
        raise ValueError("another number of cells than columns")
    numbers: dict[str, float] = {}
    for name, cell in row.items():
        if cell or name in needed:
            try:
                value = float(cell)
            except ValueError:
                raise ValueError(f"{name} is no number") from None
            if name in needed and not is_measurable(value):
                raise ValueError(f"{name} is no finite number")
            numbers[name] = value if is_measurable(value) else float("nan")
    return numbers


def _decode(data: bytes, kind: str) -> None:
    from PIL import Image  # here, as training reads no pictures

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
