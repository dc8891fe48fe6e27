"""Loader processes that outlive a signal to their process group: the run decides when they end."""

import signal
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from src.data.dataset import Batches
from src.images import Batch

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers survive Ctrl-C and a SIGTERM to the group, so that the run can save a checkpoint.

    A terminal sends Ctrl-C to every process of the group, and a scheduler its SIGTERM. A worker that dies of it ends
    the run in the middle of a step. Each worker ignores SIGINT and SIGUSR1, and its first SIGTERM. Signals are held
    back while workers start.
    """

    def __init__(self, batches: Batches, num_workers: int, **options: Any) -> None:
        super().__init__(
            batches,
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=_outlive_signals,
            persistent_workers=num_workers > 0,
            **options,
        )

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_signals(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _once(number: int, frame: FrameType | None) -> None:
    """The group's SIGTERM; the next one is the loader's own, for a worker that hangs."""
    signal.signal(number, signal.SIG_DFL)
