"""The comparison of runs: the keys in which they differ, and their ranking by a metric."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lightning_diffusion.runs.comparable import BITS, BITS_ERROR, HELD_OUT, LOSS, higher_is_better, sentence, warning
from lightning_diffusion.runs.run import Run
from lightning_diffusion.system.console import printable
from lightning_diffusion.system.files import csv_text, write_text

FIRST = (BITS, BITS_ERROR, LOSS, "steps", "images_per_second", "seconds", "parameters")
SEED = "seed"
LONGEST = 10_000  # characters of a cell
NONE = "–"  # a cell whose run uses the default


@dataclass(frozen=True)
class Comparison:
    """Runs, best first, and the keys whose values differ between them.

    A score depends on the number of samples, so only runs with the same number are ranked together.

    Args:
        runs: first the ranked runs, then those with another number of samples, then those without the metric.
        keys: as on the command line, in the order in which they were given.
        metric: the metric that ranks the runs.
        number: number of samples behind the metric of the ranked runs; None if it has none or it is unknown.
    """

    runs: list[Run]
    keys: list[str]
    metric: str
    number: int | None = None

    def values(self, run: Run) -> dict[str, str]:
        return {key: value_of(run, key) for key in self.keys}

    def label(self, run: Run) -> str:
        """The run's values of the differing keys, or its folder's name if there are none."""
        given = {key: value for key, value in self.values(run).items() if value != NONE} if run.has_words else {}
        text = " ".join(f"{key}={value}" for key, value in given.items())
        return text or run.folder.resolve().name

    @property
    def done(self) -> list[Run]:
        """The ranked runs."""
        return [run for run in self._measured if run.counts.get(self.metric) == self.number]

    @property
    def apart(self) -> list[Run]:
        """The runs that are not ranked because their score is of another number of samples."""
        return [run for run in self._measured if run.counts.get(self.metric) != self.number]

    @property
    def notes(self) -> list[str]:
        """Notes on the metric: first which runs it compares, then the special cases of this comparison."""
        special = (self._unranked(), warning(self.metric, self.keys), self._short())
        return [sentence(self.metric), *(note for note in special if note)]

    def _unranked(self) -> str | None:
        if not self.apart:
            return None
        numbers = in_order({str(run.counts.get(self.metric, "unknown")) for run in self.apart})
        return (
            f"{self.metric} depends on the number of samples: {_runs(len(self.done))} with N = "
            f"{self.number or 'unknown'} ranked, {_runs(len(self.apart))} with another N ({', '.join(numbers)}) listed "
            "below. To compare all, score each with src.evaluate at the same num_samples, or with extrapolate=true."
        )

    @property
    def _measured(self) -> list[Run]:
        return [run for run in self.runs if not math.isnan(run.metric(self.metric))]

    @property
    def known(self) -> list[Run]:
        """The runs whose command line is readable."""
        return [run for run in self.runs if run.has_words]

    @property
    def metrics(self) -> list[str]:
        """The names of the columns: the ranking metric, validation metrics, scores, then the rest."""
        found = dict.fromkeys(name for run in self.runs for name in run.metrics)
        scores = [name for name in found if name not in (*FIRST, "terminal_snr")]
        return [name for name in dict.fromkeys((self.metric, *HELD_OUT, *scores, *FIRST)) if name in found]

    @property
    def axes(self) -> list[str]:
        """The keys except the seed, those with the most values first."""
        counts = {key: len({value_of(run, key) for run in self.known}) for key in self.keys if key != SEED}
        return sorted(counts, key=lambda key: -counts[key])

    def over(self, *keys: str) -> dict[tuple[str, ...], list[float]]:
        """The metric of the ranked runs with a readable command line, by their values of these keys."""
        found: dict[tuple[str, ...], list[float]] = {}
        for run in (run for run in self.done if run.has_words):
            found.setdefault(tuple(value_of(run, key) for key in keys), []).append(run.metric(self.metric))
        return found

    def over_seeds(self) -> list[dict[str, Any]]:
        """Mean and standard deviation over runs that differ only in the seed, best first; empty without such runs."""
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

    def _short(self) -> str | None:
        """A note on runs whose likelihood bound ends early."""
        short = [run for run in self.done if run.short_bound is not None]
        if self.metric != BITS or not short:
            return None
        labels = ", ".join(f"{self.label(run)} (log-SNR {run.short_bound:.1f})" for run in short)
        return f"A short chain's bound ends early, at its first step, which accounts for part of its value: {labels}."

    @property
    def higher(self) -> bool:
        """Whether a higher metric is better."""
        return _is_higher_better(self.runs, self.metric)

    def write(self, path: Path) -> None:
        """Writes a .csv with a row for each run, control characters as backslash escapes. Raises NotWritten."""
        columns = [(name, part) for name in self.metrics for part in self._parts(name)]
        heads = [f"{part}/{name}" if part else name for name, part in columns]
        rows: list[list[Any]] = [["run", *self.keys, "state", *heads, "failure"]]
        for run in self.runs:
            found: dict[str, Mapping[str, float]] = {"": run.metrics, "num_samples": run.counts, "floor": run.floors}
            numbers = [found[part].get(name, "") for name, part in columns]
            rows.append([str(run.folder), *self.values(run).values(), run.state, *numbers, run.reason or ""])
        cells = ([printable(cell, LONGEST) if isinstance(cell, str) else cell for cell in row] for row in rows)
        write_text(path, csv_text(cells))

    def _parts(self, name: str) -> list[str]:
        """The .csv columns of a metric: its value and, for a score, the number of samples and the floor."""
        return ["", "num_samples", "floor"] if any(name in {**run.counts, **run.floors} for run in self.runs) else [""]


def compare(runs: list[Run], metric: str) -> Comparison:
    """Ranks the runs with the most common number of samples, the greatest of equally common ones."""
    counts = Counter(run.counts.get(metric) for run in runs if not math.isnan(run.metric(metric)))
    number = max(counts, key=lambda N: (counts[N], N or 0), default=None)

    higher = _is_higher_better(runs, metric)

    def rank(run: Run) -> tuple[bool, bool, float]:
        value = run.metric(metric)
        if math.isnan(value):
            return True, True, 0
        return False, run.counts.get(metric) != number, -value if higher else value

    known = [run for run in runs if run.has_words]
    given = dict.fromkeys(key for run in known for key in _said(run))
    keys = [key for key in given if len({value_of(run, key) for run in known}) > 1]
    return Comparison(sorted(runs, key=rank), keys, metric, number)


def _is_higher_better(runs: list[Run], metric: str) -> bool:
    """Whether a higher metric is better, as the runs record it. The name decides if they do not, or disagree."""
    recorded = {run.best[metric] for run in runs if metric in run.best}
    return recorded == {"max"} if len(recorded) == 1 else higher_is_better(metric)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def value_of(run: Run, key: str) -> str:
    """The value of a key from the run's command line, or else from its configuration; – for a default."""
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
    """Sorts numbers by value, then words by their letters."""

    def key(value: str) -> tuple[bool, float, str]:
        try:
            return False, float(value), value
        except ValueError:
            return True, 0.0, value

    return sorted(values, key=key)
