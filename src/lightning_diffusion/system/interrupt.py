"""Ctrl-C and SIGTERM end a program with status 130 or 143 and no traceback, even during its imports."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # set for a process that is one of several


def leave_at_once(name: str) -> None:
    """Lets Ctrl-C and SIGTERM end the process immediately until the program begins; there is nothing to undo yet.

    Args:
        name: of the calling program. The call has an effect only if that program was started.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = os.path.basename(sys.argv[0]) if spec is None else spec.name
    if started in (f"src.{name}", f"lightning_diffusion.app.{name}", f"diffusion-{name}"):
        for number in _signals():
            signal.signal(number, _leave)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM raise SystemExit inside the context, so that temporary files and empty folders are
    removed.

    A second Ctrl-C ends the process immediately.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _leave)
        raise SystemExit(128 + number)

    with _handling(leave):
        yield


@contextlib.contextmanager
def importing(undo: Callable[[], None]) -> Iterator[None]:
    """Makes both signals end the process immediately inside the context. Raised in an import, SystemExit could be
    mistaken for another error or swallowed by a library.

    Args:
        undo: called first, to remove what the program has made so far.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        undo()
        os._exit(128 + number)

    with _handling(leave):
        yield


def let_sigterm_end_at_once() -> None:
    """Lets SIGTERM end a process immediately that waits for others in calls that no handler can interrupt."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Installs a handler of the signals; only the main thread can have one."""
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
    """The signals to handle: not SIGTERM if this is one of several processes, see `let_sigterm_end_at_once`."""
    return SIGNALS[:1] if any(name in os.environ for name in RANK_VARIABLES) else SIGNALS


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
