"""The version of what a checkpoint and an exported file hold, and how an earlier one is read."""

from typing import Any

VERSION = 2
KEY = "format_version"
FORMER = {  # version 1 named classes by these
    "src.backbones.": "lightning_diffusion.networks.",
    "src.data.": "lightning_diffusion.data.",
    "src.diffusion.": "lightning_diffusion.diffusion.",
    "src.model_file.weaker": "lightning_diffusion.checkpoints.loading.load_weak_model",
}
TARGET = "_target_"


def check_version(version: Any, source: str) -> None:
    """Raises ValueError for a file of a later version, or of none."""
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(
            f"{source}: its {KEY} is {ascii(version)[:40]}, and this installation reads 1 to {VERSION}; "
            "install a newer lightning-diffusion"
        )


def upgrade(node: Any, version: int) -> Any:
    """A file's configuration with today's names of classes. What else it holds stays as it is, unchecked."""
    if version == 1:
        waiting, seen = [node], set[int]()
        while waiting:
            node_at = waiting.pop()
            if id(node_at) in seen or not isinstance(node_at, (dict, list)):
                continue
            seen.add(id(node_at))
            if isinstance(node_at, dict) and isinstance(node_at.get(TARGET), str):
                node_at[TARGET] = _today(node_at[TARGET])
            waiting.extend(node_at.values() if isinstance(node_at, dict) else node_at)
    return node


def _today(name: str) -> str:
    former = next((prefix for prefix in FORMER if name.startswith(prefix)), None)
    return name if former is None else FORMER[former] + name.removeprefix(former)
