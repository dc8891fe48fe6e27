"""Stopping a run by a signal to any of its processes, at any time."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import lightning as L
import torch.distributed as dist
from torch.utils.hooks import RemovableHandle

from lightning_diffusion.training.callbacks.lookup import callbacks_of
from lightning_diffusion.training.module import TrainingModule

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
POLL, GRACE = 0.2, 3.0  # seconds
ASKED, OVER = "asked", "over"  # keys of the process group's store


class Stopped(SystemExit):
    """Raised to end a run that a signal asked to stop. Its exit status is 128 + the signal's number."""


class StopOnSignal(L.Callback):
    """SIGTERM, SIGUSR1 and Ctrl-C end a run with a checkpoint; a second Ctrl-C ends it at once.

    The signal handler only records the signal. The run checks for it where it can end: between two steps, before each
    evaluation of the averaged network (validation, samples, scores) and while it waits for other ranks. Inside
    `interruptible` it ends immediately. Rank 0 decides: the others forward their signals to it and keep working until
    it has saved, so that it never waits for them inside a collective. With sharded weights, saving takes all ranks;
    they stop together, between two steps.
    """

    def __init__(self) -> None:
        self._signum = self._interrupts = 0  # the first signal; number of Ctrl-C
        self._leads = self._unsharded = True
        self._anywhere = self._installed = False
        self._previous: dict[int, Any] = {}
        self._hook: RemovableHandle | None = None
        self._relay: _SignalRelay | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._leads, self._unsharded = trainer.is_global_zero, pl_module.device_mesh is None
        if not self._installed:
            self._previous = {signum: signal.getsignal(signum) for signum in SIGNALS}  # before Lightning's own
        self._hook = pl_module.ema.model.network.register_forward_pre_hook(lambda *_: self.stop_if_asked())
        if trainer.world_size > 1:
            self._relay = _SignalRelay(self)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._install()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._install()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Stops between two steps, after the validation that can follow the first of them."""
        self.stop_if_asked()
        if not self._unsharded and trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False):
            raise Stopped(128 + (self._signum or signal.SIGTERM))

    def stop_if_asked(self) -> None:
        """Ends the run here if a signal asked it to stop and this rank may end it."""
        if self._signum and self._leads and self._unsharded:
            raise Stopped(128 + self._signum)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets a signal end the slow work inside at any point. The work must be atomic, and no rank may wait for
        another in it."""
        self._anywhere = True
        try:
            self.stop_if_asked()
            yield
        finally:
            self._anywhere = False

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()
        if self._hook is not None:
            self._hook.remove()
        if self._relay is not None:
            self._relay.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the relay time to end this rank silently if it failed only because rank 0 has stopped."""
        if self._relay is not None and not self._leads:
            self._relay.join(5 * POLL)
        if not isinstance(exception, Stopped):
            self._restore()

    def dismiss(self) -> None:
        """Lets the other ranks end: rank 0 has saved."""
        if self._relay is not None:
            self._relay.dismiss()

    def asked(self) -> int:
        """The recorded signal, or 0."""
        return self._signum

    def pass_on(self, signum: int) -> None:
        """Handles a signal that another rank received. A thread calls this."""
        if not self._signum:
            self._signum = signum
            if self._installed:
                os.kill(os.getpid(), signal.SIGUSR1)  # runs `_note` in the main thread, which may be in `interruptible`

    def _install(self) -> None:
        """Installs the handlers after Lightning's own, which `setup` is too early for: those leave ranks waiting."""
        if not self._installed:
            self._installed = True
            for signum in SIGNALS:
                signal.signal(signum, self._note)

    def _restore(self) -> None:
        if self._installed:
            self._installed = False
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._interrupts += signum == signal.SIGINT
        if self._interrupts > 1:
            os._exit(128 + signum)  # other ranks and data workers end with this process
        self._signum = self._signum or signum
        if self._anywhere:
            self.stop_if_asked()


def stop_if_asked(trainer: L.Trainer) -> None:
    """Ends the run here if a signal asked it to stop and this rank may end it. For slow work."""
    for callback in callbacks_of(trainer, StopOnSignal):
        callback.stop_if_asked()


@contextlib.contextmanager
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Lets a signal end the run at any point of the work inside."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks_of(trainer, StopOnSignal):
            stack.enter_context(callback.interruptible())
        yield


def dismiss(trainer: L.Trainer) -> None:
    """Lets the other ranks end: rank 0 has saved."""
    for callback in callbacks_of(trainer, StopOnSignal):
        callback.dismiss()


def _connect_to_store() -> dist.Store:
    """Returns a new connection to the process group's store: a collective can block the one that it uses.

    The prefix hides the keys of earlier starts, because torchrun can keep its store when it restarts the ranks.
    """
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return dist.PrefixStore(f"stop/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


class _SignalRelay(threading.Thread):
    """Forwards signals from any rank to rank 0, and ends the other ranks when rank 0 has finished or died."""

    def __init__(self, stop: StopOnSignal) -> None:
        super().__init__(name="signal relay", daemon=True)
        self._request, self._finished = stop, threading.Event()
        self._store = _connect_to_store()
        self._leads = dist.get_rank() == 0
        self.start()

    def run(self) -> None:
        while not self._finished.wait(POLL):
            try:
                self._exchange()
            except RuntimeError:  # no answer: rank 0 is gone
                if not self._finished.wait(GRACE):
                    os._exit(1)

    def stop(self) -> None:
        """Ends the thread. A process that exits while a thread is inside a call of the store can abort."""
        self._finished.set()
        self.join(GRACE)

    def dismiss(self) -> None:
        if self._leads:
            self._store.set(OVER, "")
            self.stop()
            time.sleep(2 * POLL)  # the others read it before the store ends with this process

    def _exchange(self) -> None:
        if self._leads:
            if self._store.check([ASKED]):
                self._request.pass_on(int(self._store.get(ASKED)))
            return
        if signum := self._request.asked():
            self._store.set(ASKED, str(signum))
        if self._store.check([OVER]):
            os._exit(0)  # this rank may be in a collective that no other rank joins
