"""How ranks that work apart come together: nobody waits for another's long work inside a collective."""

import time
from typing import Any

import lightning as L
import torch.distributed as dist

from lightning_diffusion.training.callbacks.stop import look

POLL = 0.05  # seconds


class RankBarrier:
    """A place where all ranks meet, as often as they like, each in its own time.

    A collective ends a run when a rank comes later than the backend's time-out (10 to 30 minutes). Here ranks wait at
    the process group's key-value store for as long as it takes, and exchange values once all are there.

    Args:
        name: unlike that of any other meeting.
    """

    def __init__(self, name: str) -> None:
        self.name, self._times = name, 0

    def __call__(self, trainer: L.Trainer, value: Any = None) -> list[Any]:
        """Returns all ranks' values, in rank order, on every rank. Everybody must come equally often."""
        if trainer.world_size == 1:
            return [value]
        self._times += 1
        store = dist.distributed_c10d._get_default_store()
        here = [f"{self.name}/{self._times}/{rank}" for rank in range(trainer.world_size)]
        store.set(here[trainer.global_rank], "here")
        while not store.check(here):
            look(trainer)
            time.sleep(POLL)
        values: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(values, value)
        return values
