"""A run as its folder tells: what was asked for, how far it came, and what came of it."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

OVERRIDES, CONFIG, RESULT, CURVE = "overrides.yaml", "config.yaml", "metrics.json", "metrics.csv"
LEVELS, ENVIRONMENT = "noise_levels.csv", "environment.json"
JOB, LOG, FAILURE = "job.yaml", "output.log", "failure.txt"  # of a sweep's job, whose words stand there from the first
CHECKPOINT = "checkpoints/last.ckpt"
ABOUT_THE_RUN = ("hydra.", "group=", "name=", "resume=")  # words that change nothing of what is trained
LOWER_IS_BETTER = ("train/loss", "val/", "fd_", "fid", "kd_", "kid")
HIGHER_IS_BETTER = ("inception_score", "is_", "precision", "recall", "density", "coverage")

Points = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Run:
    """Everything is read when it is asked for; what is missing is empty."""

    folder: Path

    @property
    def is_done(self) -> bool:
        return (self.folder / RESULT).is_file()

    @property
    def failure(self) -> str | None:
        """The cause, in a line, where the run is a sweep's job that failed."""
        path = self.folder / FAILURE
        return path.read_text().strip() if path.is_file() else None

    @property
    def state(self) -> str:
        return "failed" if self.failure is not None else "done" if self.is_done else "not finished"

    def is_started_by(self, words: list[str]) -> bool:
        """Whether these words began its command line; true of a folder that holds no run."""
        saved = _yaml(self.folder / OVERRIDES).get("overrides")
        return saved is None or saved[: len(words)] == words

    @cached_property
    def words(self) -> list[str]:
        """Of its command line, as far as they say what is trained."""
        saved = _yaml(self.folder / OVERRIDES) or _yaml(self.folder / JOB)
        return [
            word for word in saved.get("overrides", ()) if not word.startswith(("hydra.", "group=", "name=", "resume="))
        ]

    @cached_property
    def config(self) -> dict[str, Any]:
        return _yaml(self.folder / CONFIG)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Numbers of metrics.json, each score beside the others."""
        found = _json(self.folder / RESULT, {})
        scores = {name: score["value"] for name, score in found.get("scores", {}).items()}
        return {name: value for name, value in (found | scores).items() if isinstance(value, (int, float))}

    @cached_property
    def floors(self) -> dict[str, float]:
        """What held-out images reach, by score."""
        scores = _json(self.folder / RESULT, {}).get("scores", {})
        return {name: score["floor"]["value"] for name, score in scores.items() if "floor" in score}

    @cached_property
    def starts(self) -> list[dict[str, Any]]:
        """Command, code and machine of each time that it was started."""
        return list(_json(self.folder / ENVIRONMENT, []))

    @cached_property
    def curves(self) -> dict[str, Points]:
        """(steps, values) of everything that was logged."""
        found: dict[str, Points] = {}
        for row in _rows(self.folder / CURVE):
            for name, value in row.items():
                if name != "step" and value:
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
        return found

    @cached_property
    def levels(self) -> list[dict[str, float]]:
        """Of the last validation, by noise level."""
        return [{name: float(value) for name, value in row.items()} for row in _rows(self.folder / LEVELS)]

    def metric(self, name: str) -> float:
        """NaN where it was not measured."""
        return float(self.metrics.get(name, math.nan))


def find(folder: Path) -> list[Run]:
    """The runs in a folder, which may be one itself, in the order of their paths, numbers by value.

    A job that failed before it had written anything is one of them.
    """
    marks = {path.parent for mark in (OVERRIDES, JOB) for path in folder.rglob(mark)}
    return [Run(path) for path in sorted(marks, key=_natural)]


def best_of(metric: str) -> Literal["min", "max"] | None:
    """Which of its values is the best; None of what is no loss and no score."""
    return "min" if metric.startswith(LOWER_IS_BETTER) else "max" if metric.startswith(HIGHER_IS_BETTER) else None


def higher_is_better(metric: str) -> bool:
    return best_of(metric) == "max" or metric == "images_per_second"


def relative(path: Path) -> Path:
    """From the working folder, where it lies in it."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in path.parts]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)


def _yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def _json(path: Path, missing: Any) -> Any:
    try:
        return json.loads(path.read_text()) if path.is_file() else missing
    except ValueError as error:
        raise ValueError(f"{path}: unreadable ({error}); remove it") from error
