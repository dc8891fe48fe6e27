"""Loader processes that survive a signal to their process group: the run decides when they end."""

import signal
from typing import Any

from torch.utils.data import DataLoader

from lightning_diffusion.data.batch import Batch
from lightning_diffusion.data.dataset import Batches

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}


class Loader(DataLoader[Batch]):
    """A DataLoader whose workers survive Ctrl-C and a SIGTERM to the group, so that the run can save a checkpoint.

    A terminal sends Ctrl-C to every process of the group, and a scheduler SIGTERM. A worker killed by such a signal
    would end the run in the middle of a step. Workers therefore ignore these signals, which are blocked while they
    start, and the loader ends them with SIGKILL instead of SIGTERM.
    """

    def __init__(self, batches: Batches, num_workers: int, **options: Any) -> None:
        super().__init__(
            batches,
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=_ignore_signals,
            persistent_workers=num_workers > 0,
            **options,
        )

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            iterator = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for worker in getattr(iterator, "_workers", ()):
            worker._popen.terminate = worker._popen.kill
        return iterator


def _ignore_signals(worker: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
