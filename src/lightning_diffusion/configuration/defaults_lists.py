"""The defaults lists of the files in conf/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def entries(path: Path) -> list[Any]:
    """The defaults list of a file; an empty list if it has none."""
    found: list[Any] = (yaml.safe_load(path.read_text()) or {}).get("defaults", [])
    return found


def groups_in(path: Path) -> Iterator[tuple[str, str | None]]:
    """(group, option) of each group that a file's defaults list adds; overrides of other groups are left out."""
    for entry in entries(path):
        for key, option in entry.items() if isinstance(entry, dict) else ():
            if not key.startswith("override "):
                yield key.removeprefix("optional ").lstrip("/"), option


def overrides_in(path: Path) -> dict[str, str | None]:
    """The groups that a file's defaults list overrides, each with its option."""
    pairs = ((key, option) for entry in entries(path) if isinstance(entry, dict) for key, option in entry.items())
    return {key.removeprefix("override /"): option for key, option in pairs if key.startswith("override /")}
