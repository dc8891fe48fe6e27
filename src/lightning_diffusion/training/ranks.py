"""A barrier for ranks with unequal amounts of work, which never wait for each other inside a collective."""

import time
from typing import Any

import lightning as L
import torch.distributed as dist

from lightning_diffusion.training.callbacks.stop import stop_if_asked

POLL = 0.05  # seconds


class RankBarrier:
    """Waits for all ranks without a time limit. It can be used repeatedly.

    A collective ends a run if a rank arrives later than the backend's time-out (10 to 30 minutes). This barrier waits
    at the process group's key-value store as long as necessary, and exchanges values once all ranks have arrived.

    Args:
        name: different from that of any other barrier.
    """

    def __init__(self, name: str) -> None:
        self.name, self._times = name, 0

    def __call__(self, trainer: L.Trainer, value: Any = None) -> list[Any]:
        """Returns all ranks' values, in rank order, on every rank. Every rank must call it equally often."""
        if trainer.world_size == 1:
            return [value]
        self._times += 1
        store = dist.distributed_c10d._get_default_store()
        here = [f"{self.name}/{self._times}/{rank}" for rank in range(trainer.world_size)]
        store.set(here[trainer.global_rank], "here")
        while not store.check(here):
            stop_if_asked(trainer)
            time.sleep(POLL)
        values: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(values, value)
        return values
