"""The families of models in a report: scores, likelihood and cost of each, side by side."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from lightning_diffusion.runs.comparable import BITS
from lightning_diffusion.runs.reporting.evaluations import Measurement, is_distance, measurements
from lightning_diffusion.runs.reporting.table import NONE, SEED, Comparison, value_of
from lightning_diffusion.runs.run import Run

MODEL = "model"  # the key that chooses the family
SCORES = ("precision", "recall", "density", "coverage", "near_copies")  # after the distance
OF_THE_MODEL = (BITS, "parameters", "seconds")  # the same whichever way it draws
FLOOR, EVALUATE = "held-out images", "src.evaluate"


class Cell(NamedTuple):
    """Mean and standard deviation over the runs that have this value, and their number.

    deviation: None for one run, or for equal values.
    """

    mean: float
    deviation: float | None
    num_runs: int


@dataclass(frozen=True)
class Row:
    """One way to draw from a family.

    Args:
        label: family, the settings in which its runs differ, and the drawing if it is not the runs' own.
        runs: with different seeds; empty for held-out images.
        number: of samples behind the scores; None if unknown.
        cells: by the name of the column; those without a value are missing.
        is_own: whether the samples are drawn as in training.
    """

    label: str
    family: str
    runs: list[Run]
    number: int | None
    cells: dict[str, Cell]
    is_own: bool = True

    @property
    def bits_sign(self) -> str:
        """≤ if the likelihood is a bound, or can be one."""
        return "" if all(run.likelihood == "exact" for run in self.runs) else "≤ "

    def value(self, column: str) -> float:
        """The mean of a column; NaN without one."""
        return self.cells[column].mean if column in self.cells else math.nan


@dataclass(frozen=True)
class Families:
    """A row for held-out images, then one for each way to draw, the least distance first.

    distance: the name of the Fréchet distance, or None if no run has one. damaged: files of evaluations.
    """

    distance: str | None
    rows: list[Row]
    damaged: dict[Path, str]

    @property
    def columns(self) -> dict[str, str]:
        """The scores: their titles and their names."""
        if self.distance is None:
            return {}
        titles = [self.distance, *(score.replace("_", "-") for score in SCORES)]
        return dict(zip(titles, [self.distance, *_others(self.distance)], strict=True))

    @property
    def numbers(self) -> list[int]:
        """The different numbers of samples behind the scores."""
        return sorted({row.number for row in self.rows if row.number is not None})


class _Entry(NamedTuple):
    """One run, drawn in one way."""

    label: str
    family: str
    run: Run
    values: dict[str, float]
    floors: dict[str, float]
    number: int | None
    is_own: bool


def compare_families(table: Comparison) -> Families | None:
    """The families of the finished runs; None if there is only one."""
    runs = [run for run in table.runs if run.is_done]
    if len({family(run) for run in runs}) < 2:
        return None
    read = {run.folder: measurements(run, table.runs) for run in runs}
    damaged = {path: r.damage for found in read.values() for path, r in found.items() if r.damage is not None}
    drawn = {folder: [m for record in found.values() for m in record.content] for folder, found in read.items()}
    distance = _distance(table.metric, runs, [m for found in drawn.values() for m in found])
    entries = [entry for run in runs for entry in _entries(run, _label(table, runs, run), distance, drawn[run.folder])]
    groups: dict[tuple[str, int | None], list[_Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.label, entry.number), []).append(entry)
    rows = sorted((_row(group) for group in groups.values()), key=lambda row: _last_if_missing(row, distance))
    return Families(distance, [*_floor(entries, distance), *rows], damaged)


def family(run: Run) -> str:
    """The family that the command line names; else the folder models/NAME of the model's class, or its class."""
    if (named := value_of(run, MODEL)) != NONE:
        return named
    node = run.config.get(MODEL)
    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(target, str):
        return NONE
    parts = target.split(".")
    return parts[-3] if len(parts) > 2 and parts[-2] == MODEL else parts[-1]


def _label(table: Comparison, runs: list[Run], run: Run) -> str:
    """The family, and the values of the keys, except the seed, in which its runs differ."""
    same = [other for other in runs if family(other) == family(run)]
    keys = [key for key in table.keys if key not in (MODEL, SEED)]
    differing = [key for key in keys if len({value_of(other, key) for other in same}) > 1]
    return " ".join([family(run), *(f"{key}={value_of(run, key)}" for key in differing)])


def _distance(metric: str, runs: list[Run], drawn: list[Measurement]) -> str | None:
    """The metric that ranks the runs, if it is a Fréchet distance, or the most common one."""
    if is_distance(metric):
        return metric
    found = Counter(name for numbers in [run.metrics for run in runs] for name in numbers if is_distance(name))
    found = found or Counter(name for m in drawn for name in m.scores if is_distance(name))
    return max(found, key=lambda name: found[name], default=None)


def _others(distance: str) -> list[str]:
    """The names of the other scores in the same features."""
    features = "inception" if distance == "fid" else distance.partition("_")[2]
    return [f"{score}_{features}" for score in SCORES]


def _entries(run: Run, label: str, distance: str | None, drawn: list[Measurement]) -> Iterator[_Entry]:
    """The run's own samples, and those of its evaluations that took another number of network evaluations."""
    scores = () if distance is None else (distance, *_others(distance))
    own = {name: run.metrics[name] for name in (*scores, *OF_THE_MODEL) if name in run.metrics} | run.cost
    yield _Entry(label, family(run), run, own, run.floors, run.counts.get(distance or ""), True)
    others: dict[tuple[str, int], _Entry] = {}
    for m in drawn:
        if distance not in m.scores or m.cost.get("nfe") in (None, run.cost.get("nfe") if distance in own else None):
            continue
        guidance = "" if m.guidance == run.config.get("guidance") else _named(m.guidance)
        words = f"{label}: {', '.join(filter(None, [m.drawing or EVALUATE, guidance]))}"
        values = {name: m.scores[name] for name in scores if name in m.scores} | m.cost
        values |= {name: own[name] for name in OF_THE_MODEL if name in own}
        entry = _Entry(words, family(run), run, values, m.floors, m.num_samples, False)
        others[words, m.num_samples] = entry  # the newest of equal ones
    yield from others.values()


def _named(node: object) -> str:
    """A part's class and its options, in words."""
    if not isinstance(node, dict):
        return ""
    options = [f"{key}={value}" for key, value in node.items() if isinstance(value, (int, float)) and key[:1] != "_"]
    return " ".join([str(node.get("_target_")).rpartition(".")[2], *options])


def _row(group: list[_Entry]) -> Row:
    first = group[0]
    return Row(first.label, first.family, [e.run for e in group], first.number, _cells(group), first.is_own)


def _cells(group: list[_Entry]) -> dict[str, Cell]:
    cells = {}
    for name in dict.fromkeys(name for entry in group for name in entry.values):
        values = [value for e in group if not math.isnan(value := e.values.get(name, math.nan))]
        if values:
            cells[name] = Cell(mean(values), stdev(values) if len(set(values)) > 1 else None, len(values))
    return cells


def _floor(entries: list[_Entry], distance: str | None) -> list[Row]:
    """Held-out images, as many as most entries have samples."""
    known = [entry for entry in entries if distance in entry.floors]
    if distance is None or not known:
        return []
    number = Counter(entry.number for entry in known).most_common(1)[0][0]
    floors = next(entry.floors for entry in known if entry.number == number)
    cells = {name: Cell(floors[name], None, 0) for name in (distance, *_others(distance)) if name in floors}
    return [Row(FLOOR, FLOOR, [], number, cells, False)]


def _last_if_missing(row: Row, distance: str | None) -> tuple[bool, float]:
    value = row.value(distance or "")
    return math.isnan(value), 0.0 if math.isnan(value) else value
