"""The contents of a run's files, with checked types."""

import math
from typing import Any, Final, NamedTuple

from lightning_diffusion.runs.comparable import HELD_OUT
from lightning_diffusion.runs.records import Record, is_measurable, is_number, parse_json, parse_yaml

NUMBERS = (*HELD_OUT, "steps", "images_per_second", "seconds", "terminal_snr", "parameters")  # of metrics.json
PER_1000: Final = "seconds_per_1000_samples"  # to draw them, without their scores
COST = ("nfe", PER_1000)
KINDS = ("exact", "bound")  # of a likelihood
START: dict[str, type | tuple[type, ...]] = {
    "command": str, "python": str, "libraries": dict, "system": str, "processor": str, "cores": (int, type(None)),
    "devices": list, "host": str,
}  # fmt: skip


class Result(NamedTuple):
    """The numbers of metrics.json, scores included; each score's value of held-out images, number of samples and
    whether the lowest ("min") or the highest value ("max") is the best.

    cost: of the scored samples. short_bound: the log-SNR at which a short chain's bound ends. likelihood: whether
    val/bits_per_dim is "exact" or a "bound". Earlier versions recorded neither cost, likelihood nor best.
    """

    numbers: dict[str, float]
    floors: dict[str, float]
    counts: dict[str, int]
    best: dict[str, str]
    cost: dict[str, float]
    short_bound: float | None = None
    likelihood: str | None = None


def parse_words(text: str) -> Record[list[str] | None]:
    """The words of a command line. Raises ValueError, as all parsers here do."""
    words = parse_yaml(text).get("overrides")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("overrides is not a list of words")
    return Record(words)


def parse_result(text: str) -> Record[Result | None]:
    """The numbers of metrics.json. Non-finite numbers become NaN."""
    found = parse_json(text)
    if not isinstance(found, dict) or "val/loss" not in found:
        raise ValueError("not a mapping with val/loss")
    scores = found.get("scores", {})
    if not isinstance(scores, dict) or not all(isinstance(score, dict) for score in scores.values()):
        raise ValueError("scores is not a mapping of mappings")
    known = {name: found[name] for name in NUMBERS if found.get(name) is not None}
    numbers = known | {name: score.get("value") for name, score in scores.items()}
    floors = {name: _floor(name, score["floor"]) for name, score in scores.items() if "floor" in score}
    counts = {name: score["num_samples"] for name, score in scores.items() if score.get("num_samples") is not None}
    cost, likelihood = parse_cost(found), found.get("likelihood")
    if likelihood is not None and likelihood not in KINDS:
        raise ValueError(f"likelihood is not {' or '.join(KINDS)}")
    for name, value in [*numbers.items(), *floors.items(), *counts.items()]:
        if not is_number(value):
            raise ValueError(f"{name} is not a number")
    others = {name: value for name, value in found.items() if name not in NUMBERS and is_number(value)}
    odd = [name for name, value in [*numbers.items(), *floors.items(), *cost.items()] if not is_measurable(value)]
    known_counts = {name: int(count) for name, count in counts.items() if is_measurable(count)}
    best = {name: score["best"] for name, score in scores.items() if score.get("best") in ("min", "max")}
    short = _short_bound(found.get("bound", {}))
    result = Result(finite(others | numbers), finite(floors), known_counts, best, finite(cost), short, likelihood)
    return Record(result, f"{odd[0]} is not a finite number" if odd else None)


def parse_cost(found: dict[Any, Any]) -> dict[str, float]:
    """The cost of the scored samples: network evaluations per sample, and seconds to draw 1,000 of them."""
    how = found.get("how", {})
    if not isinstance(how, dict):
        raise ValueError("how is not a mapping")
    cost = {name: how[name] for name in COST if how.get(name) is not None}
    for name, value in cost.items():
        if not is_number(value):
            raise ValueError(f"{name} is not a number")
    return cost


def finite(numbers: dict[str, float]) -> dict[str, float]:
    """The numbers, with NaN for those that are no measurement."""
    return {name: value if is_measurable(value) else math.nan for name, value in numbers.items()}


def _short_bound(bound: Any) -> float | None:
    if not isinstance(bound, dict) or bound.get("whole", True):
        return None
    high: Any = bound.get("high")
    return float(high) if is_number(high) and is_measurable(high) else None


def _floor(name: str, floor: Any) -> Any:
    if not isinstance(floor, dict):
        raise ValueError(f"the floor of {name} is not a mapping")
    return floor.get("value")


def parse_starts(text: str) -> Record[list[dict[str, Any]]]:
    """The complete entries of environment.json."""
    found = parse_json(text)
    if not isinstance(found, list):
        raise ValueError("not a list")
    good = [start for start in found if _is_start(start)]
    return Record(good, None if len(good) == len(found) else "an entry lacks a key or has a wrong type")


def _is_start(start: Any) -> bool:
    git = start.get("git") if isinstance(start, dict) else None
    return (
        isinstance(start, dict)
        and all(isinstance(start.get(key), kind) for key, kind in START.items())
        and (git is None or isinstance(git, dict))
    )
