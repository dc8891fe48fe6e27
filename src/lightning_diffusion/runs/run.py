"""A run as recorded in its folder: its command, state, metrics and pictures."""

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
JOB, LOG, FAILURE = "job.yaml", "output.log", "failure.txt"  # of a sweep's job; job.yaml holds its words from the start
SAMPLES, ANIMATION = "samples/final.png", "samples/trajectory.gif"
GRID = "samples/step_"  # samples during training
PREDICTIONS = "samples/predictions.png"
MOST_PICTURES = 4  # that a run has in addition to its samples
CHECKPOINT = "checkpoints/last.ckpt"
ABOUT_THE_RUN = ("hydra.", "group=", "name=", "resume=", "debug=", "logger", "print_config=")  # not about the training
Points = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Run:
    """A run. Its files are read on demand; missing or unusable ones count as empty."""

    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether its result exists and is readable."""
        return self._result().content is not None

    @property
    def failure(self) -> str | None:
        """The cause of failure, in one line, if the run is a sweep's job that failed."""
        text, damage = self._failure()
        return text if damage is None else f"{FAILURE}: {damage}"

    @property
    def state(self) -> Literal["damaged", "failed", "done", "not finished"]:
        if self.damage:
            return "damaged"
        return "failed" if self.failure is not None else "done" if self.is_done else "not finished"

    @property
    def reason(self) -> str | None:
        """The cause of damage or failure, in one line."""
        notes = [f"{name}: {damage}" for name, damage in self.damage.items()]
        failure = [] if self.failure is None or FAILURE in self.damage else [self.failure]
        return "; ".join([*failure, *notes]) if failure or notes else None

    @cached_property
    def damage(self) -> dict[str, str]:
        """The damage of its files, by their names."""
        records: dict[str, Record[Any]] = {
            OVERRIDES: self._words(OVERRIDES),
            JOB: self._words(JOB),
            CONFIG: self._config,
            RESULT: self._read_result,
            CURVE: self._curve,
            LEVELS: self._levels,
            ENVIRONMENT: self._starts,
            FAILURE: self._failure(),
            **{name: load_picture(self.folder / name, "PNG") for name in (SAMPLES, *self.other_pictures)},
            ANIMATION: load_picture(self.folder / ANIMATION, "GIF"),
        }
        return {name: record.damage for name, record in records.items() if record.damage is not None}

    def is_started_by(self, words: list[str]) -> bool:
        """Whether its command line begins with these words. True for a folder without a run.

        Raises:
            Unreadable: the file with its words is damaged.
        """
        saved, damage = self._words(OVERRIDES)
        if damage is not None:
            raise Unreadable(f"{self.folder / OVERRIDES}: {damage}")
        typed = self._words(JOB).content if saved is not None else None  # only job.yaml holds trust=
        return saved is None or (typed or saved)[: len(words)] == words

    @property
    def words(self) -> list[str]:
        """The words of its command line that concern the training."""
        return [word for word in self._command or () if not word.startswith(ABOUT_THE_RUN)]

    @property
    def has_words(self) -> bool:
        """Whether its command line is recorded and readable."""
        return self._command is not None

    @property
    def config(self) -> dict[Any, Any]:
        return self._config.content

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of metrics.json, scores included."""
        return {} if self._read_result.content is None else self._read_result.content.numbers

    @property
    def floors(self) -> dict[str, float]:
        """The values of held-out images, by score."""
        return {} if self._read_result.content is None else self._read_result.content.floors

    @property
    def short_bound(self) -> float | None:
        """The log-SNR at which its likelihood bound ends, if its chain is too short to cover the whole range."""
        return None if self._read_result.content is None else self._read_result.content.short_bound

    @property
    def counts(self) -> dict[str, int]:
        """The number of samples behind each score. Earlier versions did not always record it."""
        return {} if self._read_result.content is None else self._read_result.content.counts

    @property
    def likelihood(self) -> str | None:
        """Whether val/bits_per_dim is "exact" or a "bound"; None if it was not recorded."""
        return None if self._read_result.content is None else self._read_result.content.likelihood

    @property
    def cost(self) -> dict[str, float]:
        """The cost of the scored samples: nfe, evaluations per sample, and seconds_per_1000_samples."""
        return {} if self._read_result.content is None else self._read_result.content.cost

    @property
    def best(self) -> dict[str, str]:
        """Whether the lowest ("min") or the highest value ("max") of each score is the best. Earlier versions did not
        record it."""
        return {} if self._read_result.content is None else self._read_result.content.best

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The command, code and machine of each start."""
        return self._starts.content

    @cached_property
    def curves(self) -> dict[str, Points]:
        """(steps, values) of each logged metric."""
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
        """The last validation's results by noise level."""
        return self._levels.content

    def metric(self, name: str) -> float:
        """The value of a metric; NaN if it was not measured."""
        return float(self.metrics.get(name, math.nan))

    @cached_property
    def other_pictures(self) -> list[str]:
        """The names of its pictures besides samples: predictions, reconstructions and the like."""
        names = sorted(f"samples/{path.name}" for path in self.folder.glob("samples/[!.]*.png"))
        return [name for name in names if name != SAMPLES and not name.startswith(GRID)][:MOST_PICTURES]

    def picture(self, name: str) -> bytes | None:
        """The bytes of ANIMATION (GIF) or another picture (PNG); None if the file is missing or damaged."""
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
    """The runs in a folder, which can be a run itself, in the order of their paths, with numbers compared by value.

    Jobs that failed before they wrote anything are included, and so are runs whose file of words is a dangling link.
    """
    return [Run(path) for path in sorted({path.parent for path in paths_named(folder, OVERRIDES, JOB)}, key=_natural)]


def paths_named(folder: Path, *names: str) -> Iterator[Path]:
    """The files, folders and links with one of these names below a folder. Links to folders are not followed."""
    for parent, folders, files in os.walk(folder):
        for name in names:
            if name in files or name in folders:
                yield Path(parent, name)


def relative(path: Path) -> Path:
    """The path relative to the working folder if it is inside, else the absolute path."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdecimal() else -1, part) for part in path.parts]
