"""Callbacks that others need to know."""

from typing import TypeVar

import lightning as L

Callback = TypeVar("Callback", bound=L.Callback)


def callbacks_of(trainer: L.Trainer, kind: type[Callback]) -> list[Callback]:
    """The trainer's callbacks of a class."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]
