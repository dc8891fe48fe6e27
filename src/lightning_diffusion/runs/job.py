"""A job of a sweep: a run in its own process, with a one-line report if it fails."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, NamedTuple

from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.runs.run import CHECKPOINT, CONFIG, CURVE, FAILURE, LOG, Run, relative
from lightning_diffusion.system.checkout import CHECKOUT
from lightning_diffusion.system.console import printable
from lightning_diffusion.system.files import Unreadable, write_text
from lightning_diffusion.system.quoting import quoted

AS_ON_A_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # set by Jupyter: would write bars into a log
TAIL = 2**16  # last bytes of a log, which are searched for the cause of a failure


class Job(NamedTuple):
    """A job: its run, its words of the command line, and the flags that all jobs share."""

    result: Run
    words: list[str]
    flags: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        return self.result.folder

    def check(self) -> None:
        """Raises ConfigError if other words started the run in the folder: its result is not this job's."""
        try:
            is_own = self.result.is_started_by(self.words)
        except Unreadable as error:
            raise ConfigError(f"hydra.sweep.dir: {printable(error)}; remove {relative(self.folder)}") from error
        if not is_own:
            raise ConfigError(f"hydra.sweep.dir: {relative(self.folder)} holds another job; choose another folder")

    def own(self, keys: list[str]) -> str:
        """The words in which this job differs from the sweep's others."""
        return " ".join(word for word in self.words if word.split("=")[0].lstrip("+") in keys)

    def told(self, metric: str, keys: list[str]) -> str:
        """One line on the job: its own words, then its metric or the cause of its failure."""
        words = self.own(keys)
        if self.result.failure is not None:
            return f"{words}: failed: {printable(self.result.failure)} ({relative(self.folder / LOG)})"
        return f"{words}: {metric} {self.result.metric(metric):.4g}"

    def run(self, program: str, group: str, name: str, log: IO[str]) -> None:
        """Starts the run and waits for it.

        Args:
            group, name: of its W&B run.

        Raises:
            SystemExit: a signal stopped the sweep; the run has saved a checkpoint by then.
        """
        if self.result.is_done:  # an earlier process has finished it meanwhile
            return
        (self.folder / FAILURE).unlink(missing_ok=True)
        if (self.folder / CHECKPOINT).exists():
            words = [f"resume={quoted(self.folder)}", *(word for word in self.words if word.startswith("trust="))]
        else:
            for leftover in (CONFIG, CURVE):  # of a run that was stopped before its first checkpoint
                (self.folder / leftover).unlink(missing_ok=True)
            named = [f"group={quoted(group)}", f"name={quoted(name)}"]
            words = [*self.words, *named, f"hydra.run.dir={quoted(self.folder)}", "hydra.mode=RUN"]
        command = [sys.executable, "-m", _module(program), *self.flags, *words]
        process = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches it only once, through this process
            preexec_fn=_end_with_parent,
        )
        with _passing_on(process) as signals:
            status = process.wait()
        if signals:
            raise SystemExit(128 + signals[0])
        if status != 0:
            write_text(self.folder / FAILURE, _cause(status, log) + "\n")


def _module(program: str) -> str:
    """The module to run with `python -m`: the checkout's, or the installed package's."""
    return f"src.{program}" if CHECKOUT is not None else f"lightning_diffusion.app.{program}"


def _environment() -> dict[str, str]:
    """The environment for a run of the same code. Under SLURM, the run starts its ranks itself, without srun."""
    path = os.pathsep.join(filter(None, (str(CHECKOUT or ""), os.environ.get("PYTHONPATH"))))
    without_srun = {"SLURM_JOB_NAME": "bash"} if "SLURM_NTASKS" in os.environ else {}
    return os.environ | {"PYTHONPATH": path} | without_srun


def _end_with_parent() -> None:
    """Makes the new process receive SIGTERM when this one ends, however it ends."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Forwards signals to the run, which then ends with a checkpoint. Yields the list of signals received."""
    signals: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)
        signals.append(signum)

    previous = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _cause(status: int, log: IO[str]) -> str:
    """The cause of a failure in one line, from the end of the log."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
    return cause(status, log.read().splitlines())


def cause(status: int, output: Iterable[str]) -> str:
    """The cause of a program's failure in one line, from its exit status and its output."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in output if line.strip()]
    candidates = [line for line in lines if line.startswith("error: ")] if status == 2 else lines
    return printable(candidates[-1].removeprefix("error: ")) if candidates else f"exit status {status}"


def started(program: str, words: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
    """Starts a program of the same code in its own process; stdout and stderr are one pipe, read line by line."""
    inherited = {name: value for name, value in _environment().items() if name not in AS_ON_A_TERMINAL}
    return subprocess.Popen(
        [sys.executable, "-m", _module(program), *words],
        env=inherited | {"PYTHONUNBUFFERED": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
