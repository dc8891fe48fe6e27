"""What Lightning must be told of a run that is resumed."""

from typing import Any

import lightning as L
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.loops.evaluation_loop import RestartStage

from lightning_diffusion.training.callbacks.lookup import is_over


class _EndingLoop(_FitLoop):
    """Lightning skips a run that was resumed after its last step. Here its end comes: a validation, pictures and scores
    may be missing."""

    @property
    def skip(self) -> bool:
        trained = self.trainer.global_step > 0 and is_over(self.trainer) and self.trainer.limit_train_batches != 0
        return super().skip and not trained


def always_end(trainer: L.Trainer) -> None:
    """Lets a run that was killed after its last step come to its end when it is resumed."""
    trainer.fit_loop.__class__ = _EndingLoop


def restart(trainer: L.Trainer, owes_validation: bool) -> None:
    """Sets the counters of a resumed run from its step, at the start of training; others are left as they are.

    Args:
        owes_validation: whether the validation of that step is still to be run. Of a run that has taken its last step
            already, Lightning would leave it out: `run_owed_validation` runs it.
    """
    loop = trainer.fit_loop.epoch_loop
    if loop.restarting:
        _count_anew(trainer, owes_validation)
    if owes_validation:
        loop.val_loop.restarting, loop.val_loop._restart_stage = False, RestartStage.RESTARTED_MID_EVALUATION


def run_owed_validation(trainer: L.Trainer) -> None:
    """The validation that belongs to the last step, after training."""
    loop = trainer.fit_loop.epoch_loop
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped += 1


def _count_anew(trainer: L.Trainer, owes_validation: bool) -> None:
    """Counters from the step alone: what a checkpoint holds of them depends on the hook that it was saved in, and some
    count a batch or a step twice."""
    loop = trainer.fit_loop.epoch_loop
    progress: Any = loop.batch_progress
    for count in (progress.total, progress.current):
        count.ready = count.started = count.processed = count.completed = (
            trainer.global_step * trainer.accumulate_grad_batches
        )
    loop.update_restart_stage()
    assert trainer.fit_loop._data_fetcher is not None
    at_validation = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # it resumes at this step's very end
    loop._batches_that_stepped = trainer.global_step - (at_validation and (owes_validation or not is_over(trainer)))
