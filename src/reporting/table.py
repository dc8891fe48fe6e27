"""Runs side by side: what sets them apart, and which is best."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from src.console import printable
from src.files import write_text
from src.runs import Run, higher_is_better

FIRST = ("val/loss", "steps", "images_per_second", "seconds")
SEED = "seed"
LONGEST = 10_000  # characters of a cell
NONE = "–"  # a cell where only a default is meant


@dataclass(frozen=True)
class Comparison:
    """Runs, best first, and the keys whose values differ between them.

    Args:
        keys: as on the command line, in the order in which they were given.
        metric: what they are compared by.
    """

    runs: list[Run]
    keys: list[str]
    metric: str

    def values(self, run: Run) -> dict[str, str]:
        return {key: value_of(run, key) for key in self.keys}

    def label(self, run: Run) -> str:
        """What sets it apart, or else its folder's name."""
        given = {key: value for key, value in self.values(run).items() if value != NONE} if run.has_words else {}
        told = " ".join(f"{key}={value}" for key, value in given.items())
        return told or run.folder.resolve().name

    @property
    def done(self) -> list[Run]:
        return [run for run in self.runs if not math.isnan(run.metric(self.metric))]

    @property
    def known(self) -> list[Run]:
        """Those whose command line can be read."""
        return [run for run in self.runs if run.has_words]

    @property
    def metrics(self) -> list[str]:
        """The one compared by, the usual ones, then every score."""
        found = dict.fromkeys(name for run in self.runs for name in run.metrics)
        scores = [name for name in found if name not in (*FIRST, "terminal_snr")]
        return [name for name in dict.fromkeys((self.metric, *FIRST[:1], *scores, *FIRST[1:])) if name in found]

    @property
    def axes(self) -> list[str]:
        """The keys but the seed, those with most values first."""
        counts = {key: len({value_of(run, key) for run in self.known}) for key in self.keys if key != SEED}
        return sorted(counts, key=lambda key: -counts[key])

    def over(self, *keys: str) -> dict[tuple[str, ...], list[float]]:
        """The metric of the finished runs that have words, by their values of these keys."""
        found: dict[tuple[str, ...], list[float]] = {}
        for run in (run for run in self.done if run.has_words):
            found.setdefault(tuple(value_of(run, key) for key in keys), []).append(run.metric(self.metric))
        return found

    def over_seeds(self) -> list[dict[str, Any]]:
        """Mean and standard deviation where only the seed differs, best first; nothing where no seed does."""
        if SEED not in self.keys:
            return []
        others = [key for key in self.keys if key != SEED]
        rows = [
            {
                "label": " ".join(f"{key}={value}" for key, value in zip(others, values, strict=True)) or "all",
                "count": len(found),
                "mean": mean(found),
                "deviation": stdev(found) if len(found) > 1 else None,
            }
            for values, found in self.over(*others).items()
        ]
        return sorted(rows, key=lambda row: row["mean"], reverse=self.higher)

    @property
    def higher(self) -> bool:
        """Whether a higher metric is better."""
        return higher_is_better(self.metric)

    def write(self, path: Path) -> None:
        """A row for each run, as .csv; control characters are written as backslash escapes. Raises NotWritten."""
        rows: list[list[Any]] = [["run", *self.keys, "state", *self.metrics, "failure"]]
        for run in self.runs:
            numbers = [run.metrics.get(name, "") for name in self.metrics]
            rows.append([str(run.folder), *self.values(run).values(), run.state, *numbers, run.reason or ""])
        file = io.StringIO(newline="")
        csv.writer(file).writerows(
            [printable(cell, LONGEST) if isinstance(cell, str) else cell for cell in row] for row in rows
        )
        write_text(path, file.getvalue())


def compare(runs: list[Run], metric: str) -> Comparison:
    def rank(run: Run) -> tuple[bool, float]:
        value = run.metric(metric)
        return math.isnan(value), 0 if math.isnan(value) else -value if higher_is_better(metric) else value

    known = [run for run in runs if run.has_words]
    given = dict.fromkeys(key for run in known for key in _said(run))
    keys = [key for key in given if len({value_of(run, key) for run in known}) > 1]
    return Comparison(sorted(runs, key=rank), keys, metric)


def value_of(run: Run, key: str) -> str:
    """As its command line said, or else as its configuration does; – where only the default is meant."""
    said = _said(run)
    if key in said:
        return said[key]
    node: Any = run.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return NONE if node is None or isinstance(node, (dict, list)) else printable(node)


def _said(run: Run) -> dict[str, str]:
    pairs = (word.lstrip("+").partition("=") for word in run.words)
    return {key: value.strip("'\"") for key, _, value in pairs}


def in_order(values: set[str]) -> list[str]:
    """Numbers by size, then words as they are."""

    def key(value: str) -> tuple[bool, float, str]:
        try:
            return False, float(value), value
        except ValueError:
            return True, 0.0, value

    return sorted(values, key=key)
