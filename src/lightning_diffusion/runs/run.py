"""A run as its folder has it: what was asked for, how far it came, and what came of it."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from lightning_diffusion.runs.records import JSON, SMALL, Record, load, load_picture, parse_table, parse_yaml
from lightning_diffusion.runs.schema import Result, parse_result, parse_starts, parse_words
from lightning_diffusion.system.files import Unreadable

OVERRIDES, CONFIG, RESULT, CURVE = "overrides.yaml", "config.yaml", "metrics.json", "metrics.csv"
LEVELS, ENVIRONMENT = "noise_levels.csv", "environment.json"
JOB, LOG, FAILURE = "job.yaml", "output.log", "failure.txt"  # of a sweep's job, whose words stand there from the first
SAMPLES, ANIMATION = "samples/final.png", "samples/trajectory.gif"
CHECKPOINT = "checkpoints/last.ckpt"
ABOUT_THE_RUN = ("hydra.", "group=", "name=", "resume=", "debug=", "logger", "print_config=")  # not what is trained
LOWER_IS_BETTER = ("train/loss", "val/", "fd_", "fid", "kd_", "kid")
HIGHER_IS_BETTER = ("inception_score", "is_", "precision", "recall", "density", "coverage")
Points = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Run:
    """Everything is read when it is asked for; what is missing is empty, and so is what is damaged beyond use."""

    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether its result is there and can be read."""
        return self._result().content is not None

    @property
    def failure(self) -> str | None:
        """The cause, in a line, where the run is a sweep's job that failed."""
        text, damage = self._failure()
        return text if damage is None else f"{FAILURE}: {damage}"

    @property
    def state(self) -> Literal["damaged", "failed", "done", "not finished"]:
        if self.damage:
            return "damaged"
        return "failed" if self.failure is not None else "done" if self.is_done else "not finished"

    @property
    def reason(self) -> str | None:
        """In a line, why it is damaged or failed."""
        notes = [f"{name}: {damage}" for name, damage in self.damage.items()]
        failure = [] if self.failure is None or FAILURE in self.damage else [self.failure]
        return "; ".join([*failure, *notes]) if failure or notes else None

    @cached_property
    def damage(self) -> dict[str, str]:
        """What is wrong with its files, by their names."""
        records: dict[str, Record[Any]] = {
            OVERRIDES: self._words(OVERRIDES),
            JOB: self._words(JOB),
            CONFIG: self._config,
            RESULT: self._read_result,
            CURVE: self._curve,
            LEVELS: self._levels,
            ENVIRONMENT: self._starts,
            FAILURE: self._failure(),
            SAMPLES: load_picture(self.folder / SAMPLES, "PNG"),
            ANIMATION: load_picture(self.folder / ANIMATION, "GIF"),
        }
        return {name: record.damage for name, record in records.items() if record.damage is not None}

    def is_started_by(self, words: list[str]) -> bool:
        """Whether these words began its command line; true of a folder that holds no run.

        Raises:
            Unreadable: its words are damaged.
        """
        saved, damage = self._words(OVERRIDES)
        if damage is not None:
            raise Unreadable(f"{self.folder / OVERRIDES}: {damage}")
        typed = self._words(JOB).content if saved is not None else None  # whom they trust stands there only
        return saved is None or (typed or saved)[: len(words)] == words

    @property
    def words(self) -> list[str]:
        """Of its command line, as far as they say what is trained."""
        return [word for word in self._command or () if not word.startswith(ABOUT_THE_RUN)]

    @property
    def has_words(self) -> bool:
        """Whether its command line is there and can be read."""
        return self._command is not None

    @property
    def config(self) -> dict[Any, Any]:
        return self._config.content

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers of metrics.json, each score beside the others."""
        return {} if self._read_result.content is None else self._read_result.content.numbers

    @property
    def floors(self) -> dict[str, float]:
        """What held-out images reach, by score."""
        return {} if self._read_result.content is None else self._read_result.content.floors

    @property
    def short_bound(self) -> float | None:
        """The log-SNR at which its bound ends, where its chain is too short for the whole of it."""
        return None if self._read_result.content is None else self._read_result.content.short_bound

    @property
    def counts(self) -> dict[str, int]:
        """Of how many samples a score is, by score; an earlier version's may not tell."""
        return {} if self._read_result.content is None else self._read_result.content.counts

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Command, code and machine of each time that it was started."""
        return self._starts.content

    @cached_property
    def curves(self) -> dict[str, Points]:
        """(steps, values) of everything that was logged."""
        found: dict[str, Points] = {}
        for row in self._curve.content:
            for name, value in row.items():
                if name != "step":
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(row["step"])
                    values.append(value)
        return found

    @property
    def levels(self) -> list[dict[str, float]]:
        """Of the last validation, by noise level."""
        return self._levels.content

    def metric(self, name: str) -> float:
        """NaN where it was not measured."""
        return float(self.metrics.get(name, math.nan))

    def picture(self, name: str) -> bytes | None:
        """The content of SAMPLES, a PNG, or ANIMATION, a GIF; None where it is missing or damaged."""
        return load_picture(self.folder / name, "GIF" if name == ANIMATION else "PNG").content

    @cached_property
    def _command(self) -> list[str] | None:
        saved = self._words(OVERRIDES).content
        return self._words(JOB).content if saved is None else saved

    def _words(self, name: str) -> Record[list[str] | None]:
        return load(self.folder / name, parse_words, None, SMALL)

    def _failure(self) -> Record[str | None]:
        return load(self.folder / FAILURE, lambda text: Record(text.strip()), None, SMALL)

    def _result(self) -> Record[Result | None]:
        return load(self.folder / RESULT, parse_result, None, JSON)

    @cached_property
    def _read_result(self) -> Record[Result | None]:
        return self._result()

    @cached_property
    def _config(self) -> Record[dict[Any, Any]]:
        return load(self.folder / CONFIG, lambda text: Record(parse_yaml(text)), {}, SMALL)

    @cached_property
    def _starts(self) -> Record[list[dict[str, Any]]]:
        return load(self.folder / ENVIRONMENT, parse_starts, [], JSON)

    @cached_property
    def _curve(self) -> Record[list[dict[str, float]]]:
        return load(self.folder / CURVE, partial(parse_table, needed=("step",)), [])

    @cached_property
    def _levels(self) -> Record[list[dict[str, float]]]:
        needed = ("time", "logsnr", "images", "loss", "error")
        return load(self.folder / LEVELS, partial(parse_table, needed=needed), [])


def find(folder: Path) -> list[Run]:
    """The runs in a folder, which may be one itself, in the order of their paths, numbers by value.

    A job that failed before it had written anything is one of them, and so is a run whose words lead nowhere.
    """
    return [Run(path) for path in sorted({path.parent for path in named(folder, OVERRIDES, JOB)}, key=_natural)]


def named(folder: Path, *names: str) -> Iterator[Path]:
    """Everything of these names below a folder, whatever it is; links to folders are not entered."""
    for parent, folders, files in os.walk(folder):
        for name in names:
            if name in files or name in folders:
                yield Path(parent, name)


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
    return [(int(part) if part.isdecimal() else -1, part) for part in path.parts]
