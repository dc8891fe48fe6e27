"""One job of a sweep: a run in a process of its own, started, waited for and, where it fails, told in a line."""

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

AS_ON_A_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # a Jupyter kernel's: bars in what is a log
TAIL = 2**16  # bytes of a log that are searched for the cause


class Job(NamedTuple):
    """A job's run, what the command line says of it, and flags of the command line that each job takes too."""

    result: Run
    words: list[str]
    flags: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        return self.result.folder

    def check(self) -> None:
        """Raises ConfigError where the folder holds a run that other words started: its result is not this job's."""
        try:
            is_own = self.result.is_started_by(self.words)
        except Unreadable as error:
            raise ConfigError(f"hydra.sweep.dir: {printable(error)}; remove {relative(self.folder)}") from error
        if not is_own:
            raise ConfigError(f"hydra.sweep.dir: {relative(self.folder)} holds another job; choose another folder")

    def own(self, keys: list[str]) -> str:
        """What sets it apart among the sweep's jobs."""
        return " ".join(word for word in self.words if word.split("=")[0].lstrip("+") in keys)

    def told(self, metric: str, keys: list[str]) -> str:
        """What is its own, and what came of it."""
        words = self.own(keys)
        if self.result.failure is not None:
            return f"{words}: failed: {printable(self.result.failure)} ({relative(self.folder / LOG)})"
        return f"{words}: {metric} {self.result.metric(metric):.4g}"

    def run(self, program: str, group: str, name: str, log: IO[str]) -> None:
        """Starts the run and waits for it.

        Args:
            group, name: of its W&B run.

        Raises:
            SystemExit: the sweep was asked to stop; its run has saved a checkpoint by then.
        """
        if self.result.is_done:  # by the run that was waited for
            return
        (self.folder / FAILURE).unlink(missing_ok=True)
        if (self.folder / CHECKPOINT).exists():
            words = [f"resume={quoted(self.folder)}", *(word for word in self.words if word.startswith("trust="))]
        else:
            for leftover in (CONFIG, CURVE):  # of a run that was cut before it had a checkpoint
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
            start_new_session=True,  # Ctrl-C reaches it once: from here
            preexec_fn=_end_with_parent,
        )
        with _passing_on(process) as asked:
            status = process.wait()
        if asked:
            raise SystemExit(128 + asked[0])
        if status != 0:
            write_text(self.folder / FAILURE, _cause(status, log) + "\n")


def _module(program: str) -> str:
    """What `python -m` runs: a checkout's own word, or the installed package's."""
    return f"src.{program}" if CHECKOUT is not None else f"lightning_diffusion.app.{program}"


def _environment() -> dict[str, str]:
    """Of a run of the same code that starts its ranks itself, where Lightning would leave that to SLURM's srun."""
    path = os.pathsep.join(filter(None, (str(CHECKOUT or ""), os.environ.get("PYTHONPATH"))))
    alone = {"SLURM_JOB_NAME": "bash"} if "SLURM_NTASKS" in os.environ else {}
    return os.environ | {"PYTHONPATH": path} | alone


def _end_with_parent() -> None:
    """In the new process: SIGTERM when the sweep is gone, however it went."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Signals to the sweep go to its run, which ends with a checkpoint; they are noted for the sweep to end too."""
    asked: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)
        asked.append(signum)

    previous = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _cause(status: int, log: IO[str]) -> str:
    """In one line: what the run said last, or what ended it."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
    return cause(status, log.read().splitlines())


def cause(status: int, output: Iterable[str]) -> str:
    """In one line, why a program ended with this status, out of the lines of its output."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in output if line.strip()]
    told = [line for line in lines if line.startswith("error: ")] if status == 2 else lines
    return printable(told[-1].removeprefix("error: ")) if told else f"exit status {status}"


def started(program: str, words: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
    """A program of the same code in a process of its own, whose output, with its errors, is read line by line."""
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
