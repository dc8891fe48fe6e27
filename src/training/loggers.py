"""Where metrics go on every run, and when."""

import csv
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


def is_log_step(trainer: L.Trainer, step: int) -> bool:
    """Whether loggers keep what is logged at optimizer step number `step`, counted from 1: `log` costs milliseconds,
    so nobody calls it on other steps."""
    return step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


class CSVLogger(Logger):
    """metrics.csv: a row for each call, written at once. Going on in the same folder replaces the rows from there on.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {
            "step": step,
            **{key: value for key, value in metrics.items() if key != "epoch"},
        }
        if self._columns and set(row) <= set(self._columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._rewrite(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml has them."""

    def _rewrite(self, row: dict[str, Any]) -> None:
        """The first row of this run, or a column that the file does not have yet."""
        rows: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        if not self._columns:
            rows = list(itertools.takewhile(lambda old: not _again(old, row), rows))
        self._columns = list(dict.fromkeys(key for r in [*rows, row] for key in r))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows([*rows, row])
        os.replace(temporary, self.path)  # a run that is killed here keeps its rows


def _again(old: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a run that goes on with `row` comes to `old` now, or is past the place where it would have."""
    shared = any(old.get(key) for key in row if key != "step")
    return int(old["step"]) > row["step"] or (int(old["step"]) == row["step"] and shared)
