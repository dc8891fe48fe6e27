"""Training speed."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import lightning as L

from lightning_diffusion.training.callbacks.lookup import callbacks_of
from lightning_diffusion.training.loggers.csv import is_log_step


class Throughput(L.Callback):
    """Logs images per second over all devices, without validation and sampling.

    It measures between log steps, where the loss is read anyway, so it adds no synchronization with the device.
    """

    def __init__(self) -> None:
        self.seconds, self.images = 0.0, 0
        self._since, self._pending = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pending += len(batch.images) * trainer.world_size
        if is_log_step(trainer, trainer.global_step):
            rate = self._pending / (time.perf_counter() - self._since)
            self._pause()
            self._restart()
            pl_module.log("images_per_second", rate, prog_bar=True, on_step=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause()

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Excludes the work inside from the measurement."""
        self._pause()
        yield
        self._restart()

    @property
    def rate(self) -> float:
        """Images per second over the whole run."""
        return self.images / self.seconds if self.seconds else 0.0

    def _pause(self) -> None:
        self.seconds += time.perf_counter() - self._since
        self.images += self._pending
        self._pending = 0

    def _restart(self) -> None:
        self._since, self._pending = time.perf_counter(), 0


@contextlib.contextmanager
def untimed(trainer: L.Trainer) -> Iterator[None]:
    """Excludes the work inside from the measured speed of training."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks_of(trainer, Throughput):
            stack.enter_context(callback.untimed())
        yield
