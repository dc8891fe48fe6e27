"""Ctrl-C and SIGTERM end a program with status 130 or 143 and without a traceback, from its first import on."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
OF_A_RANK = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # variables of a process that is one of several


def leave_at_once(name: str) -> None:
    """Until the program begins, Ctrl-C and SIGTERM end the process where it is: there is nothing to undo.

    Args:
        name: of the program that asks. It decides only if it is the one that was started.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = os.path.basename(sys.argv[0]) if spec is None else spec.name
    if started in (f"src.{name}", f"lightning_diffusion.app.{name}", f"diffusion-{name}"):
        for number in _signals():
            signal.signal(number, _leave)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM raise SystemExit, which unwinds as any error does: temporary files and empty folders
    go.

    A second Ctrl-C ends the process where it is.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _leave)
        raise SystemExit(128 + number)

    with _handling(leave):
        yield


@contextlib.contextmanager
def importing(undo: Callable[[], None]) -> Iterator[None]:
    """Within, both end the process where it is: an error that is raised in an import may be taken for another, or be
    dropped by a library.

    Args:
        undo: what there is to undo before.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        undo()
        os._exit(128 + number)

    with _handling(leave):
        yield


def let_sigterm_end_at_once() -> None:
    """For a process that waits for others in calls that no handler interrupts: SIGTERM ends it where it is."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The signals by a handler; only the main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in _signals()}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def _signals() -> tuple[signal.Signals, ...]:
    """Those that are handled: not SIGTERM where this is one of several processes, see `let_sigterm_end_at_once`."""
    return SIGNALS[:1] if any(name in os.environ for name in OF_A_RANK) else SIGNALS


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
