"""The metrics file of every run, and the steps at which metrics are logged."""

import csv
import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_diffusion.runs.run import relative
from lightning_diffusion.system.files import csv_text, read_bytes, write_text, writing
from lightning_diffusion.training.ownership import check_owned, make_run_folder


def is_log_step(trainer: L.Trainer, step: int) -> bool:
    """Whether loggers write at optimizer step number `step`, counted from 1. A call of `log` takes milliseconds, so
    other steps make none."""
    return step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


class CSVLogger(Logger):
    """Writes metrics.csv, a row for each call, immediately. A run that resumes in the same folder replaces the rows
    after its checkpoint and drops those that a kill left incomplete.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.name or self.path.is_dir():
            raise ValueError(f"logger.csv.path={path!r}: name a file")
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Raises NotWritten."""
        row: dict[str, Any] = {
            "step": step,
            **{key: value for key, value in metrics.items() if key != "epoch"},
        }
        check_owned()
        if self._columns and set(row) <= set(self._columns):
            self._append(row)
        else:
            self._rewrite(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run's config.yaml holds them."""

    @rank_zero_only
    def settle(self) -> None:
        """Flushes the rows to the disk, before a checkpoint is saved."""
        if self._columns:
            with writing(self.path), self.path.open("ab") as file:
                os.fsync(file.fileno())

    def _append(self, row: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("r+b", buffering=0) as file:  # creates no new file if it is gone
            file.seek(0, os.SEEK_END)
            file.write(_csv(self._columns, [row], header=False).encode())

    def _rewrite(self, row: dict[str, Any]) -> None:
        """Writes the whole file: for this run's first row, or for a column that the file does not have yet."""
        if not self._columns:
            make_run_folder(self.path.parent)
        rows = _read(self.path) if self.path.exists() else []
        if not self._columns:
            rows = list(itertools.takewhile(lambda old: not _is_rewritten(old, row), rows))
        self._columns = list(dict.fromkeys(key for r in [*rows, row] for key in r))
        write_text(self.path, _csv(self._columns, [*rows, row]))


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool = True) -> str:
    cells = ([row.get(column) for column in columns] for row in rows)
    return csv_text([columns, *cells] if header else cells)


def _read(path: Path) -> list[dict[str, Any]]:
    """The complete rows; prints how many are incomplete. The last row is incomplete if its line does not end."""
    lines = read_bytes(path).decode(errors="replace").splitlines(keepends=True)
    torn = [lines.pop()] if lines and not lines[-1].endswith("\n") else []
    rows = list(csv.DictReader(lines))
    whole = [row for row in rows if _is_whole(row)]
    if dropped := len(torn) + len(rows) - len(whole):
        print(f"{relative(path)}: dropped {dropped} incomplete row{'s' * (dropped > 1)}", file=sys.stderr)
    return whole


def _is_whole(row: Mapping[str | None, str | None]) -> bool:
    return None not in row and None not in row.values() and (row.get("step") or "").isdecimal()


def _is_rewritten(old: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a run that resumes with `row` writes `old` again: it is of a later step, or of the same call."""
    shared = any(old.get(key) for key in row if key != "step")
    return int(old["step"]) > row["step"] or (int(old["step"]) == row["step"] and shared)
