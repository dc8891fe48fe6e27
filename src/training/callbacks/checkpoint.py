"""The run's last checkpoints."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.trainer.states import TrainerFn

from src.checkpoints.folder import BEST, LAST
from src.checkpoints.seal import next_counter, saved, seal_of
from src.files import NotWritten, link
from src.training.callbacks.stop import Stopped, dismiss
from src.training.loggers import CSVLogger


class LastCheckpoint(Checkpoint):
    """Keeps the run's last checkpoints, step_NNNNNNN.ckpt: every n optimizer steps, at the end, and when the run is
    stopped by a signal. last.ckpt leads to the newest, best.ckpt to the best.

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
        self._saved_step = 0
        self._owes_validation = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step  # what a run goes on from is there already
        self._find_best(trainer)
        loop = trainer.fit_loop.epoch_loop
        if loop.restarting:
            _count_anew(trainer)
        if self._owes_validation:
            loop.val_loop.restarting, loop.val_loop._restart_stage = False, RestartStage.RESTARTED_MID_EVALUATION

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._owes_validation = False
        if self._is_best(trainer):
            self._save(trainer, best=True)
        elif trainer.state.fn == TrainerFn.FITTING:
            self._save_if_due(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Not at the end of the step before: a validation that follows it belongs to what is saved."""
        self._save_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            self._owes_validation = trainer.validating and trainer.state.fn == TrainerFn.FITTING
            self._save(trainer)
            dismiss(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Whether the run stopped inside the validation of the step that was saved, which is then repeated; the best
        value, and which save it belongs to."""
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

    def _save_if_due(self, trainer: L.Trainer) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def _save(self, trainer: L.Trainer, best: bool = False) -> None:
        """A kill between any two of these lines is mended when the run is resumed."""
        path, is_new = self._path(trainer), trainer.global_step != self._saved_step  # accumulation makes no step
        if best and trainer.is_global_zero:
            self._best_save = next_counter(self.directory) if is_new else _counter(path)
        if is_new:
            self._saved_step = trainer.global_step
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.settle()  # rows of steps that will not be repeated
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(content, path)  # no barrier: a run that stops saves on rank 0 alone
        if trainer.is_global_zero and (is_new or best):
            if is_new:
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


def _count_anew(trainer: L.Trainer) -> None:
    """Lightning's counters of a run that goes on, from its step alone: what a checkpoint holds of them depends on the
    hook that it was saved in, and some count a batch or a step twice."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress
    for count in (progress.total, progress.current):
        count.ready = count.started = count.processed = count.completed = (
            trainer.global_step * trainer.accumulate_grad_batches
        )
    loop.update_restart_stage()
    assert trainer.fit_loop._data_fetcher is not None
    at_validation = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # it goes on at this step's very end
    loop._batches_that_stepped = trainer.global_step - at_validation
