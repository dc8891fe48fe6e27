"""Corrections to Lightning's training loop for resumed runs."""

from typing import Any

import lightning as L
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.loops.evaluation_loop import RestartStage

from lightning_diffusion.training.callbacks.lookup import is_over


class _EndingLoop(_FitLoop):
    """Lightning skips the whole loop for a run that is resumed after its last step. This loop still ends it properly:
    its validation, pictures and scores may be missing."""

    @property
    def skip(self) -> bool:
        trained = self.trainer.global_step > 0 and is_over(self.trainer) and self.trainer.limit_train_batches != 0
        return super().skip and not trained


def always_end(trainer: L.Trainer) -> None:
    """Makes a run that was killed after its last step finish when it is resumed."""
    trainer.fit_loop.__class__ = _EndingLoop


def restart(trainer: L.Trainer, owes_validation: bool) -> None:
    """Sets a resumed run's counters from its step, at the start of training. A new run's counters stay as they are.

    Args:
        owes_validation: whether the validation of that step is still to be run. After the last step, Lightning would
            skip it: `run_owed_validation` runs it.
    """
    loop = trainer.fit_loop.epoch_loop
    if loop.restarting:
        _reset_counters(trainer, owes_validation)
    if owes_validation:
        loop.val_loop.restarting, loop.val_loop._restart_stage = False, RestartStage.RESTARTED_MID_EVALUATION


def run_owed_validation(trainer: L.Trainer) -> None:
    """Runs the validation of the last step after training."""
    loop = trainer.fit_loop.epoch_loop
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped += 1


def _reset_counters(trainer: L.Trainer, owes_validation: bool) -> None:
    """Derives the counters from the step. Those in a checkpoint depend on the hook in which it was saved, and some
    count a batch or a step twice."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress
    for count in (progress.total, progress.current):
        count.ready = count.started = count.processed = count.completed = (
            trainer.global_step * trainer.accumulate_grad_batches
        )
    loop.update_restart_stage()
    assert trainer.fit_loop._data_fetcher is not None
    at_validation = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # the run resumes after this step
    loop._batches_that_stepped = trainer.global_step - (at_validation and (owes_validation or not is_over(trainer)))
