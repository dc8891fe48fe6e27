"""Progress of long work: a bar on a terminal, an occasional line in a log."""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from lightning_diffusion.system.console import clock, console, printable
from lightning_diffusion.system.interrupt import RANK_VARIABLES

QUIET, EVERY = 5.0, 15.0  # seconds until the first line in a log, and between lines
ONE_LINE = Column(no_wrap=True)


class Phase:
    """A context for work that can take long, which shows its progress.

    Only the first of several processes shows it, and only the innermost of nested phases writes lines. A phase shorter
    than QUIET seconds leaves no line in a log. A separate thread writes the lines, so that work without steps shows the
    elapsed time.

    Args:
        what: the work, in a few words.
        total: number of steps that `advance` will count; None if unknown.
        unit: of the steps, in the singular.
        done: steps of an earlier run.
        note: called for each line, for additional text.
    """

    _open: list["Phase"] = []  # noqa: RUF012 - all of this process, the innermost last
    _bars: Progress | None = None  # shared by all phases on a terminal

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "step",
        done: int = 0,
        note: Callable[[], str] = lambda: "",
    ) -> None:
        self.what, self.total, self.unit, self.note = what, total, unit, note
        self.done, self.in_a_log, self._told = done, False, False
        self._first: tuple[float, int] | None = None  # the time of the first step, and the steps done by then
        self._over = threading.Event()

    def __enter__(self) -> "Phase":
        self._started, self._begin = time.monotonic(), self.done
        if any(int(os.environ.get(name) or 0) > 0 for name in RANK_VARIABLES):
            return self
        self._open.append(self)
        terminal = console()
        if terminal.is_terminal:
            if Phase._bars is None:
                Phase._bars = Progress(
                    SpinnerColumn(), TextColumn("{task.description}", markup=False, table_column=ONE_LINE),
                    BarColumn(bar_width=12), _Status(table_column=ONE_LINE), console=terminal, transient=True,
                )  # fmt: skip
                Phase._bars.start()
            self._task = Phase._bars.add_task(self.what, total=self.total, completed=self.done, phase=self)
        else:
            self.in_a_log = True
            self._thread = threading.Thread(target=self._write, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self not in self._open:
            return
        self._open.remove(self)
        self._over.set()
        if self.in_a_log:
            self._thread.join()
            if self._told and error is None:
                say(f"{self.what}: done in {clock(time.monotonic() - self._started)}")
        elif Phase._bars is not None:
            Phase._bars.remove_task(self._task)
            if not self._open:
                Phase._bars.stop()
                Phase._bars = None

    def advance(self, count: int = 1) -> None:
        """Counts steps."""
        self.done += count
        if self._first is None:
            self._first = time.monotonic(), self.done
        if Phase._bars is not None and self in self._open:
            Phase._bars.update(self._task, completed=self.done)

    @property
    def seconds_left(self) -> float | None:
        """An estimate by the pace since the first step, which can include preparations; None before it."""
        if self._first is None or self.total is None:
            return None
        now, (since, count) = time.monotonic(), self._first
        if self.done == count:
            since, count = self._started, self._begin
        return (now - since) / (self.done - count) * (self.total - self.done)

    def said(self) -> str:
        """The steps done, the note, and the time left, or the elapsed time if no steps are counted."""
        of = "" if self.total is None else f"/{self.total:,}"
        steps = f"{self.unit} {self.done:,}{of}" if self._first is not None or self.total is not None else ""
        left, so_far = self.seconds_left, time.monotonic() - self._started
        when = f"{clock(so_far)} so far" if left is None else f"{clock(left)} left"
        return ", ".join(filter(None, (steps, self.note(), when)))

    def _write(self) -> None:
        """Writes a line after QUIET seconds, then one every EVERY seconds."""
        wait = QUIET
        while not self._over.wait(wait):
            wait = EVERY
            if self._open and self._open[-1] is self:
                self._told = True
                say(f"{self.what}: {self.said()}")


class _Status(ProgressColumn):
    def render(self, task: Task) -> Text:
        phase: Phase = task.fields["phase"]
        return Text(phase.said())


def say(line: str) -> None:
    """Prints a line above the bars, or in the log."""
    terminal = Phase._bars.console if Phase._bars is not None else console()
    terminal.print(printable(line), soft_wrap=True)
