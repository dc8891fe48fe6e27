"""The run's last checkpoint, and the signals that ask a run to stop."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from src.training.durable import checksum_of, link


class Stopped(SystemExit):
    """A run that was asked to stop, and did: its status is 128 + the signal's number."""


class LastCheckpoint(Checkpoint):
    """Keeps the run's last checkpoints, step_NNNNNNN.ckpt: every n optimizer steps, at the end, and when the run is
    stopped by a signal. last.ckpt leads to the newest.

    Args:
        directory: of the checkpoints.
        every_n_steps: > 0.
        keep: how many, ≥ 2: should one be damaged, there is another.
    """

    def __init__(self, directory: str, every_n_steps: int, keep: int = 2) -> None:
        if every_n_steps < 1 or keep < 2:
            raise ValueError(
                f"callbacks.checkpoint.every_n_steps={every_n_steps}, keep={keep}: choose every_n_steps >= 1, keep >= 2"
            )
        self.directory, self.every_n_steps, self.keep = Path(directory), every_n_steps, keep
        self._saved_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step  # what a run goes on from is there already

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._save_if_due(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Not at the end of the step before: a validation that follows it belongs to what is saved."""
        self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self._save(trainer)

    def _save_if_due(self, trainer: L.Trainer) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self._saved_step:  # a step of accumulation changes nothing
            self._saved_step = trainer.global_step
            path = self.directory / f"step_{trainer.global_step:07d}.ckpt"
            trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                link(self.directory / "last.ckpt", path)
                self._prune()

    def _prune(self) -> None:
        """By age, not by number: a run that went on from an earlier step has saved the smaller one last."""
        saved = sorted(self.directory.glob("step_*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        for old in saved[: -self.keep]:
            old.unlink()
            checksum_of(old).unlink(missing_ok=True)


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

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Between two steps, after the validation that may follow the first."""
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
