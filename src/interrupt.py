"""Ctrl-C ends a program with status 130 and without a traceback, from its first import on."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STATUS = 128 + signal.SIGINT


def leave_at_once(name: str) -> None:
    """Until the program begins, Ctrl-C ends the process where it is: there is nothing to undo.

    Args:
        name: of the module that asks, which decides only where it is the program.
    """
    if name == "__main__" or os.path.basename(sys.argv[0]).startswith("diffusion-"):
        signal.signal(signal.SIGINT, lambda *_: os._exit(STATUS))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, Ctrl-C raises SystemExit, which unwinds as any error does: temporary files and empty folders go.

    A second Ctrl-C ends the process where it is.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(STATUS))
        raise SystemExit(STATUS)

    with _handling(leave):
        yield


@contextlib.contextmanager
def importing(undo: Callable[[], None]) -> Iterator[None]:
    """Within, Ctrl-C ends the process where it is: an error that is raised in an import may be taken for another, or
    be dropped by a library.

    Args:
        undo: what there is to undo before.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        undo()
        os._exit(STATUS)

    with _handling(leave):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT by a handler; only the main thread can have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
