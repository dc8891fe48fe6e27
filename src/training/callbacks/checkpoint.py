"""The run's last checkpoint, and the signals that ask a run to stop."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint


class Stopped(SystemExit):
    """A run that was asked to stop, and did: its status is 128 + the signal's number."""


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` of the run: every n optimizer steps, at the end, and when the run is stopped by a signal.

    Args:
        path: of the checkpoint.
        every_n_steps: > 0.
    """

    def __init__(self, path: str, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.checkpoint.every_n_steps={every_n_steps}: must be at least 1")
        self.path, self.every_n_steps = Path(path), every_n_steps
        self._saved_step = 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self._saved_step:  # a step of accumulation changes nothing
            self._saved_step = trainer.global_step
            trainer.save_checkpoint(self.path)


class StopOnSignal(L.Callback):
    """SIGTERM and Ctrl-C end the run after the step in progress, on every rank; a second Ctrl-C ends it at once.

    A handler only sets a flag: work in a handler deadlocks collectives.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._previous[signum] = signal.signal(signum, self._note)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False):
            raise Stopped(128 + (self._signum or signal.SIGTERM))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()
