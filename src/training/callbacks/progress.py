"""One line that says how training goes."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from src.console import console
from src.training.loggers import is_log_step

NAMES = {"train/loss": "loss", "val/loss": "val loss", "val/bits_per_dim": "bits/dim", "images_per_second": "images/s"}


class RichProgress(ProgressBar):
    """A bar with step, loss, images/s, time gone and time left; where there is no terminal, a line now and then.

    Args:
        seconds_between_lines: without a terminal.
    """

    def __init__(self, seconds_between_lines: float = 15.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._console = console()
        self._progress: Progress | None = None
        self._metrics: dict[str, float] = {}
        self._last_line = time.monotonic()

    def disable(self) -> None:
        """Called by Lightning on every rank but the first."""
        self._console.quiet = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[metrics]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._progress.add_task("training", total=trainer.max_steps, completed=trainer.global_step, metrics="")
            self._progress.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_log_step(trainer, trainer.global_step):
            self._metrics |= {
                name: float(trainer.progress_bar_metrics[key])
                for key, name in NAMES.items()
                if key in trainer.progress_bar_metrics
            }
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=trainer.global_step, metrics=self._text())
        elif time.monotonic() - self._last_line > self.seconds_between_lines:
            self._last_line = time.monotonic()
            self._console.print(f"step {trainer.global_step}/{trainer.max_steps}  {self._text()}", highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _text(self) -> str:
        return "  ".join(f"{name} {_short(value)}" for name, value in self._metrics.items())

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.4f}"
