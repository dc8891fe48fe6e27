"""Sweeps: each job is a run like any other, in a process of its own: python -m src.train -m schedule=linear,cosine

So ranks start as they do elsewhere, nothing of one job reaches the next, and a job that fails ends alone.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, ClassVar, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from src.config import Mistake, quoted
from src.runs import CHECKPOINT, CONFIG, CURVE, FAILURE, JOB, LOG, Run, find, relative

CODE = Path(__file__).resolve().parent.parent
SWEEPS, WORDS = Path("runs/sweeps"), "sweep.yaml"
OWN = ("sweep=", "+sweep=", "resume=", "hydra.mode=")  # words that are about the sweep, not about its jobs


def run_job(program: str, config: DictConfig) -> float:
    """Runs this job, goes on with it where it was cut, or finds it done.

    Returns:
        config.metric as the job measured it, which the sweeper may steer by; NaN of a job that failed.

    Raises:
        Mistake: for a job that cannot be one of a sweep.
    """
    hydra = HydraConfig.get()
    if config.trainer.get("num_nodes", 1) != 1 or hydra.launcher.get("tasks_per_node", 1) != 1:
        raise Mistake(
            "trainer.num_nodes, hydra.launcher.tasks_per_node: a job of a sweep starts its ranks itself, on one node; "
            "leave both at 1"
        )
    sweep = Path(hydra.sweep.dir)
    job = Job(Run(Path(hydra.runtime.output_dir)), [word for word in hydra.overrides.task if not word.startswith(OWN)])
    job.check()
    if not job.result.is_done:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / JOB).write_text(yaml.safe_dump({"overrides": job.words}, allow_unicode=True))
        with (job.folder / LOG).open("a+") as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # held by the run too: one that outlived its sweep is waited for
            job.run(program, str(config.group or sweep.name), log)
    keys = yaml.safe_load((sweep / WORDS).read_text())["keys"]
    print(f"{hydra.job.num}: {job.told(config.metric, keys)}", flush=True)
    return job.result.metric(config.metric)


class Job(NamedTuple):
    """A job's run, and what the command line says of it."""

    result: Run
    words: list[str]

    @property
    def folder(self) -> Path:
        return self.result.folder

    def check(self) -> None:
        """Raises Mistake where the folder holds a run that other words started: its result is not this job's."""
        if not self.result.is_started_by(self.words):
            raise Mistake(f"hydra.sweep.dir: {relative(self.folder)} holds another job; choose another folder")

    def told(self, metric: str, keys: list[str]) -> str:
        """What is its own among the sweep's jobs, and what came of it."""
        words = " ".join(word for word in self.words if word.split("=")[0].lstrip("+") in keys)
        if self.result.failure is not None:
            return f"{words}: failed: {self.result.failure} ({relative(self.folder / LOG)})"
        return f"{words}: {metric} {self.result.metric(metric):.4g}"

    def run(self, program: str, group: str, log: IO[str]) -> None:
        """Starts the run and waits for it.

        Raises:
            SystemExit: the sweep was asked to stop; its run has saved a checkpoint by then.
        """
        if self.result.is_done:  # by the run that was waited for
            return
        (self.folder / FAILURE).unlink(missing_ok=True)
        if (self.folder / CHECKPOINT).exists():
            words = [f"resume={quoted(self.folder)}"]
        else:
            for leftover in (CONFIG, CURVE):  # of a run that was cut before it had a checkpoint
                (self.folder / leftover).unlink(missing_ok=True)
            words = [*self.words, f"group={quoted(group)}", f"hydra.run.dir={quoted(self.folder)}", "hydra.mode=RUN"]
        command = [sys.executable, "-m", program, *words]
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
            (self.folder / FAILURE).write_text(_cause(status, self.folder / LOG) + "\n")


class Sweep(Callback):
    """The sweep's own beginning and end, as Hydra calls them."""

    folder: ClassVar[Path | None] = None  # of the sweep that this process has begun

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        words = _words(sys.argv[1:])
        parsed = OverridesParser.create().parse_overrides(words)
        keys = [word.key_or_group for word in parsed if word.is_sweep_override()] + list(
            config.hydra.sweeper.get("params") or ()
        )
        told = {"words": words, "keys": keys, "metric": config.metric}
        (folder / WORDS).write_text(yaml.safe_dump(told, allow_unicode=True))
        Sweep.folder = folder
        print(f"sweep: {relative(folder)}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Lists the jobs that failed.

        Raises:
            SystemExit: status 1 if any did.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = find(folder)
        failed = [job for job in jobs if job.failure is not None]
        print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs done in {relative(folder)}")
        for job in failed:
            print(f"failed: {job.folder.relative_to(folder)}: {job.failure}", file=sys.stderr)
        if failed:
            print(f"mend it and give the same command with resume=true to run {len(failed)} again", file=sys.stderr)
            raise SystemExit(1)


def folder_to_go_on_with(argv: list[str]) -> list[str]:
    """Of a sweep that is started again with resume=true, the word that leads to its folder; else nothing.

    Raises:
        Mistake: no sweep was started with these words.
    """
    if "resume=true" not in argv or any(word.startswith("hydra.sweep.dir=") for word in argv):
        return []
    started = sorted(SWEEPS.glob(f"*/{WORDS}"), reverse=True)
    for path in started:
        if yaml.safe_load(path.read_text())["words"] == _words(argv):
            return [f"hydra.sweep.dir={quoted(path.parent)}"]
    raise Mistake(f"resume=true: no sweep of these words in {SWEEPS}; leave it out, or name a run with resume=RUN_DIR")


def forget() -> Path | None:
    """Takes back what a sweep has written of which no job can be composed; its folder, empty by then."""
    folder, Sweep.folder = Sweep.folder, None
    written = [] if folder is None else list(folder.iterdir())
    if not all(path.name in (WORDS, "multirun.yaml") for path in written):  # the second is Hydra's
        return None
    for path in written:
        path.unlink()
    return folder


def _words(argv: list[str]) -> list[str]:
    return [word for word in argv if ("=" in word or word.startswith("~")) and word != "resume=true"]


def _environment() -> dict[str, str]:
    """Of a run of the same code that starts its ranks itself, where Lightning would leave that to SLURM's srun."""
    path = os.pathsep.join(filter(None, (str(CODE), os.environ.get("PYTHONPATH"))))
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


def _cause(status: int, log: Path) -> str:
    """In one line: what the run said last, or what ended it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")] if status == 2 else lines
    return told[-1].removeprefix("error: ") if told else f"exit status {status}"
