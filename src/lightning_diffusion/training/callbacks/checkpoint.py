"""The callback that saves a run's checkpoints."""

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
    """Saves checkpoints as step_NNNNNNN.ckpt and keeps the newest ones.

    It saves every n optimizer steps, at the end, once within the first minute, and when a signal stops the run.
    last.ckpt links to the newest checkpoint, best.ckpt to the best.

    A step is saved before its validation, pictures and scores, which can take minutes, so that a kill during these
    loses no training. The checkpoint records that the validation is still to be run; a resumed run starts with it.
    After the validation the step is saved again, with the state that the validation changed.

    Args:
        directory: folder of the checkpoints.
        every_n_steps: > 0.
        keep: number of checkpoints, ≥ 2: if one is damaged, another is left.
        monitor: metric that decides which step is the best so far; that step is kept too. None keeps no best step.
        mode: "min" if lower values are better, "max" if higher ones are.
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
        """Moves this callback to the front: Lightning calls checkpoint callbacks last, after all slow work."""
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
        """Saves at the next step's first batch, not at the end of the last step: a validation may come in between."""
        step, seen = trainer.global_step, self._seen_step
        self._seen_step = step
        if step != seen and (self._is_due(trainer) or self._is_first_due(trainer, pl_module)):
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
        """Whether the step's validation is still to be run, the best value, and the counter of its checkpoint."""
        return {"owes_validation": self._owes_validation, "best": self._best, "best_save": self._best_save}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._owes_validation = state_dict["owes_validation"]
        self._best, self._best_save = state_dict["best"], state_dict["best_save"]

    def check(self, measured: Sequence[str]) -> None:
        """Raises ValueError if the monitored metric is not among the measured ones."""
        if self.monitor is not None and self.monitor not in measured:
            raise ValueError(f"callbacks.checkpoint.monitor={self.monitor}: choose null or {', '.join(measured)}")

    def _is_best(self, trainer: L.Trainer) -> bool:
        """Whether the monitored value is the best so far. NaN, the value of an unmeasured metric, never is."""
        value = float(trainer.callback_metrics.get(self.monitor or "", math.nan))
        better = value < self._best if self.mode == "min" else value > self._best
        if better or (math.isnan(self._best) and not math.isnan(value)):
            self._best = value
            return True
        return False

    def _path(self, trainer: L.Trainer) -> Path:
        return self.directory / f"step_{trainer.global_step:07d}.ckpt"

    def _is_new(self, trainer: L.Trainer) -> bool:
        """Whether the step has no checkpoint yet. An accumulated batch is not a step."""
        return trainer.global_step != self._saved_step

    def _is_due(self, trainer: L.Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0

    def _is_first_due(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Whether the run's first checkpoint is due. If every rank takes part in saving, all ranks decide together."""
        due = self._lacks_first and time.monotonic() - self._started > FIRST
        if self._lacks_first and isinstance(module, TrainingModule) and module.device_mesh is not None:
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        return due

    def _save(self, trainer: L.Trainer, best: bool = False, again: bool = False) -> None:
        """Writes the checkpoint, updates the links and prunes. Resuming repairs a kill between any two of these lines.

        Args:
            best: whether this step is the best so far.
            again: whether to replace an existing checkpoint of this step.
        """
        path, writes = self._path(trainer), again or self._is_new(trainer)
        if best and trainer.is_global_zero:
            self._best_save = next_counter(self.directory) if writes else _counter(path)
        if writes:
            self._saved_step, self._lacks_first = trainer.global_step, False
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.settle()  # a resumed run will not log these rows again
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(content, path)  # no barrier: a stopping run saves on rank 0 only
        if trainer.is_global_zero and (writes or best):
            if writes:
                link(self.directory / LAST, path)
            if best:
                link(self.directory / BEST, path)
            self._prune(path)

    def _find_best(self, trainer: L.Trainer) -> None:
        """Links best.ckpt to the best checkpoint so far. If that is gone, the next measured value becomes the best."""
        if trainer.is_global_zero and self._best_save:
            found = [path for path, seal in saved(self.directory).items() if seal.counter == self._best_save]
            if found:
                link(self.directory / BEST, found[0])
            else:
                self._best, self._best_save = math.nan, 0

    def _prune(self, newest: Path) -> None:
        """Deletes all but the newest checkpoints and the best. Files without a seal are kept."""
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
