"""Runs that are asked to stop: by a signal to any of their processes, wherever they are."""

import contextlib
import os
import signal
import threading
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
ASKED, OVER = "stop/asked", "stop/over"  # keys of the process group's store


class Stopped(SystemExit):
    """A run that was asked to stop, and did: its status is 128 + the signal's number."""


class StopOnSignal(L.Callback):
    """SIGTERM, SIGUSR1 and Ctrl-C end a run with a checkpoint; a second Ctrl-C ends it at once.

    A handler only takes a note. The run looks at it where it can end: between two steps, before each evaluation of the
    averaged network (validation, samples, scores) and while it waits for other ranks. Inside `ends_anywhere` it ends
    where it is. Rank 0 leads: the others pass their signals on to it, and work on until it has saved, so that it never
    waits for them inside a collective. Where weights are shared out, saving takes all ranks, which therefore stop
    together, between two steps.
    """

    def __init__(self) -> None:
        self._signum = self._interrupts = 0  # the first signal, and how often it was Ctrl-C
        self._leads = self._alone = True
        self._anywhere = self._installed = False
        self._previous: dict[int, Any] = {}
        self._hook: RemovableHandle | None = None
        self._watch: _Watch | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TrainingModule)
        self._leads, self._alone = trainer.is_global_zero, pl_module.device_mesh is None
        if not self._installed:
            self._previous = {signum: signal.getsignal(signum) for signum in SIGNALS}  # before Lightning's own
        self._hook = pl_module.ema.model.network.register_forward_pre_hook(lambda *_: self.look())
        if trainer.world_size > 1:
            self._watch = _Watch(self)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._install()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._install()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Between two steps, after the validation that may follow the first."""
        self.look()
        if not self._alone and trainer.strategy.reduce_boolean_decision(bool(self._signum), all=False):
            raise Stopped(128 + (self._signum or signal.SIGTERM))

    def look(self) -> None:
        """Ends the run here if it was asked to stop, and can."""
        if self._signum and self._leads and self._alone:
            raise Stopped(128 + self._signum)

    @contextlib.contextmanager
    def ends_anywhere(self) -> Iterator[None]:
        """For work that takes long, of which nothing is kept half done, and in which no rank waits for another."""
        self._anywhere = True
        try:
            self.look()
            yield
        finally:
            self._anywhere = False

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()
        if self._hook is not None:
            self._hook.remove()
        if self._watch is not None:
            self._watch.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A rank that fails because the first one has stopped leaves without a word; its watch goes on."""
        if self._watch is not None and not self._leads:
            self._watch.join(5 * POLL)
        if not isinstance(exception, Stopped):
            self._restore()

    def dismiss(self) -> None:
        """Lets the other ranks leave: rank 0 has saved."""
        if self._watch is not None:
            self._watch.dismiss()

    def asked(self) -> int:
        """The signal that was noted, or 0."""
        return self._signum

    def pass_on(self, signum: int) -> None:
        """Takes a signal that another rank has received as this process's own; called by a thread."""
        if not self._signum:
            self._signum = signum
            if self._installed:
                os.kill(os.getpid(), signal.SIGUSR1)  # calls `_note` in the main thread, which may be `ends_anywhere`

    def _install(self) -> None:
        """Later than `setup`, after which Lightning installs handlers of its own: they leave ranks waiting."""
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
            os._exit(128 + signum)  # other ranks and loaders follow when this process is gone
        self._signum = self._signum or signum
        if self._anywhere:
            self.look()


def look(trainer: L.Trainer) -> None:
    """Ends the run here if it was asked to stop, and can: for whoever takes long."""
    for callback in callbacks_of(trainer, StopOnSignal):
        callback.look()


@contextlib.contextmanager
def ends_anywhere(trainer: L.Trainer) -> Iterator[None]:
    """Within, a run that is asked to stop ends at once, wherever it is."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks_of(trainer, StopOnSignal):
            stack.enter_context(callback.ends_anywhere())
        yield


def dismiss(trainer: L.Trainer) -> None:
    """Lets the other ranks leave: rank 0 has saved."""
    for callback in callbacks_of(trainer, StopOnSignal):
        callback.dismiss()


class _Watch(threading.Thread):
    """Carries signals from any rank to the first, and ends the others when that one is done or gone."""

    def __init__(self, stop: StopOnSignal) -> None:
        super().__init__(name="stop", daemon=True)
        self._request, self._finished = stop, threading.Event()
        self._store = dist.distributed_c10d._get_default_store().clone()  # a connection of its own
        self._leads = dist.get_rank() == 0
        self.start()

    def run(self) -> None:
        while not self._finished.wait(POLL):
            try:
                self._exchange()
            except RuntimeError:  # no answer: the first rank is gone
                if not self._finished.wait(GRACE):
                    os._exit(1)

    def stop(self) -> None:
        self._finished.set()

    def dismiss(self) -> None:
        if self._leads:
            self._store.set(OVER, "")

    def _exchange(self) -> None:
        if self._leads:
            if self._store.check([ASKED]):
                self._request.pass_on(int(self._store.get(ASKED)))
            return
        if signum := self._request.asked():
            self._store.set(ASKED, str(signum))
        if self._store.check([OVER]):
            os._exit(0)  # it may be inside a collective, which nobody will join
