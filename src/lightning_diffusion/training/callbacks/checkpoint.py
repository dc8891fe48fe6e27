"""The run's last checkpoints."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from lightning_diffusion.checkpoints.folder import BEST, LAST
from lightning_diffusion.checkpoints.seal import next_counter, saved, seal_of
from lightning_diffusion.system.files import NotWritten, link
from lightning_diffusion.training.callbacks.lookup import is_over
from lightning_diffusion.training.callbacks.restart import always_end, restart, run_owed_validation
from lightning_diffusion.training.callbacks.stop import Stopped, dismiss
from lightning_diffusion.training.loggers.csv import CSVLogger
from lightning_diffusion.training.module import TrainingModule

FIRST = 30.0  # seconds from the start of the program after which a run without a checkpoint saves one


class LastCheckpoint(Checkpoint):
    """Keeps the run's last checkpoints, step_NNNNNNN.ckpt: every n optimizer steps, at the end, within the first
    minute, and when the run is stopped by a signal. last.ckpt leads to the newest, best.ckpt to the best.

    A step is saved before its validation, its pictures and its scores, which may take minutes: a kill during these
    loses no training. The checkpoint then notes that the step still owes its validation, which a resumed run runs
    first. After the validation the step is saved once more, with what the validation has changed.

    Args:
        directory: of the checkpoints.
        every_n_steps: > 0.
        keep: how many, ≥ 2: should one be damaged, there is another.
        monitor: the metric by which a validation's step is the best so far, and kept besides; None keeps none.
        mode: whether the best value is the least or the greatest.
    """

    def __init__(
        self,
        directory: str,
        every_n_steps: int,
        keep: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if every_n_steps < 1 or keep < 2:
            raise ValueError(
                f"callbacks.checkpoint.every_n_steps={every_n_steps}, keep={keep}: choose every_n_steps >= 1, keep >= 2"
            )
        self.directory, self.every_n_steps, self.keep = Path(directory), every_n_steps, keep
        self.monitor, self.mode, self._best = monitor, mode, math.nan
        self._best_save = 0  # the counter of the best checkpoint, from 1
        self._saved_step = self._seen_step = 0
        self._owes_validation = self._lacks_first = False
        self._started = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning calls checkpoints last; this one comes before whatever takes long."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [self, *others]  # type: ignore[attr-defined]
        always_end(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = self._seen_step = trainer.global_step  # a resumed run's step is saved already
        self._lacks_first = bool(trainer.strategy.broadcast(not saved(self.directory)))
        self._find_best(trainer)
        restart(trainer, self._owes_validation)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _belongs_to_training(trainer) and self._is_new(trainer) and (self._is_due(trainer) or is_over(trainer)):
            self._owes_validation = True
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        owed, self._owes_validation = self._owes_validation, False
        best = self._is_best(trainer)
        if best or (owed and _belongs_to_training(trainer)):
            self._save(trainer, best, again=owed)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Not at the end of the step before: a validation that follows it belongs to what is saved."""
        step, seen = trainer.global_step, self._seen_step
        self._seen_step = step
        if step != seen and (self._is_due(trainer) or self._is_first_due(trainer, pl_module)):  # no step's second batch
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._owes_validation:
            run_owed_validation(trainer)
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self._owes_validation = trainer.validating and trainer.state.fn == TrainerFn.FITTING
            self._save(trainer, again=self._lacks_first)
            dismiss(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Whether the validation of the step is still to be run; the best value, and which save it belongs to."""
        return {"owes_validation": self._owes_validation, "best": self._best, "best_save": self._best_save}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._owes_validation = state_dict["owes_validation"]
        self._best, self._best_save = state_dict["best"], state_dict["best_save"]

    def check(self, measured: Sequence[str]) -> None:
        """Raises ValueError where nothing of the monitor's name is measured."""
        if self.monitor is not None and self.monitor not in measured:
            raise ValueError(f"callbacks.checkpoint.monitor={self.monitor}: choose null or {', '.join(measured)}")

    def _is_best(self, trainer: L.Trainer) -> bool:
        """Whether the monitored value is the best so far; NaN, where nothing was measured, never is."""
        value = float(trainer.callback_metrics.get(self.monitor or "", math.nan))
        better = value < self._best if self.mode == "min" else value > self._best
        if better or (math.isnan(self._best) and not math.isnan(value)):
            self._best = value
            return True
        return False

    def _path(self, trainer: L.Trainer) -> Path:
        return self.directory / f"step_{trainer.global_step:07d}.ckpt"

    def _is_new(self, trainer: L.Trainer) -> bool:
        """Whether the step has no checkpoint yet; a batch that is accumulated makes no step."""
        return trainer.global_step != self._saved_step

    def _is_due(self, trainer: L.Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0

    def _is_first_due(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Whether it is time for a checkpoint of a run that has none; where all ranks save it, all decide together."""
        due = self._lacks_first and time.monotonic() - self._started > FIRST
        if self._lacks_first and isinstance(module, TrainingModule) and module.device_mesh is not None:
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        return due

    def _save(self, trainer: L.Trainer, best: bool = False, again: bool = False) -> None:
        """A kill between any two of these lines is mended when the run is resumed.

        Args:
            best: whether this step is the best so far.
            again: whether to replace the step's checkpoint where there is one.
        """
        path, writes = self._path(trainer), again or self._is_new(trainer)
        if best and trainer.is_global_zero:
            self._best_save = next_counter(self.directory) if writes else _counter(path)
        if writes:
            self._saved_step, self._lacks_first = trainer.global_step, False
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.settle()  # rows of steps that will not be repeated
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(content, path)  # no barrier: a run that stops saves on rank 0 alone
        if trainer.is_global_zero and (writes or best):
            if writes:
                link(self.directory / LAST, path)
            if best:
                link(self.directory / BEST, path)
            self._prune(path)

    def _find_best(self, trainer: L.Trainer) -> None:
        """Leads best.ckpt to the best so far; where that is gone, the next value measured is the best."""
        if trainer.is_global_zero and self._best_save:
            found = [path for path, seal in saved(self.directory).items() if seal.counter == self._best_save]
            if found:
                link(self.directory / BEST, found[0])
            else:
                self._best, self._best_save = math.nan, 0

    def _prune(self, newest: Path) -> None:
        """Keeps the last saves and the best; a file without a seal is none of them, and left alone."""
        found = saved(self.directory)
        kept = {newest, *list(found)[: self.keep]}
        try:
            for path, seal in found.items():
                if path not in kept and seal.counter != self._best_save:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise NotWritten(f"{path}: could not be removed ({error.strerror})") from error


def _counter(path: Path) -> int:
    seal = seal_of(path)
    return seal.counter if seal is not None else 0


def _belongs_to_training(trainer: L.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
