"""The recipe that takes ten minutes on a CPU."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_diffusion.configuration.defaults_lists import entries, overrides_in
from lightning_diffusion.configuration.trusted_targets import CONF

SUFFIX = "_quick"  # of the experiments for ten minutes on two cores
SECONDS = 600


def ten_minutes(config: Mapping[str, Any], seconds_each: float) -> str:
    """A hint: the words that train on the same data in ten minutes.

    Args:
        config: the run's configuration as plain containers.
        seconds_each: the seconds of one step.
    """
    if (name := quick_form(config.get("data") or {})) is not None:
        return f"experiment={name} takes ten minutes on two cores"
    steps = max(1, round(SECONDS / seconds_each))
    return f"trainer.max_steps={steps} takes ten minutes; a smaller network learns more in that time"


def quick_form(data: Mapping[str, Any]) -> str | None:
    """The experiment of conf/experiment/*_quick.yaml for these data, or None."""
    for path in sorted((CONF / "experiment").glob(f"*{SUFFIX}.yaml")):
        option = next(iter(_options(path, "data")), None)
        if option is not None and _is_made_by(data, CONF / "data" / f"{option}.yaml"):
            return path.stem
    return None


def _options(path: Path, group: str) -> Iterator[str]:
    """The options that an experiment chooses in a group, its own before those of the experiments that it extends."""
    if (option := overrides_in(path).get(group)) is not None:
        yield option
    for entry in entries(path):
        if isinstance(entry, str) and entry != "_self_":
            yield from _options(path.with_name(f"{entry}.yaml"), group)


def _is_made_by(data: Mapping[str, Any], option: Path) -> bool:
    """Whether an option of conf/data reads the same data set: the same class and, if that reads several, the same
    name."""
    node = yaml.safe_load(option.read_text()) if option.is_file() else {}
    return bool(node) and all(data.get(key) == node.get(key) for key in ("_target_", "dataset"))
