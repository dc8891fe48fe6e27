"""What a configuration that comes out of a file may call: Hydra would call anything that Python can import."""

import functools
from collections.abc import Iterator
from typing import Any

from src.cli import CONF

OWN = "src."


def refuse_unknown(node: Any, source: str, remedy: str) -> None:
    """Raises ValueError where a configuration calls anything that no option in conf/ calls."""
    _refuse(node, _known(), f"{source}: its configuration calls {{}}, which conf/ does not; {remedy}")


def refuse_foreign(node: Any, source: str) -> None:
    """Raises ValueError where a model's configuration calls anything but this project's own options."""
    own = {target for target in _known() if target.startswith(OWN)}
    _refuse(
        node, own, f"{source}: its configuration calls {{}}, which is not part of this project (no option in conf/)"
    )


def targets(node: Any) -> Iterator[str]:
    """Everything that a configuration calls."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from targets(value)


def _refuse(node: Any, allowed: set[str], message: str) -> None:
    for target in targets(node):
        if target not in allowed:
            raise ValueError(message.format(target))


@functools.cache
def _known() -> set[str]:
    return {
        line.split("_target_:")[1].split("#")[0].strip()
        for path in CONF.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if "_target_:" in line
    }
