"""Queries of the trainer that several callbacks share."""

from typing import TypeVar

import lightning as L

Callback = TypeVar("Callback", bound=L.Callback)


def callbacks_of(trainer: L.Trainer, kind: type[Callback]) -> list[Callback]:
    """The trainer's callbacks of one class."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def is_over(trainer: L.Trainer) -> bool:
    """Whether the run has taken its last step."""
    return 0 <= trainer.max_steps <= trainer.global_step
