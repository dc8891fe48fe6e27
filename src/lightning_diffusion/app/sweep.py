"""Sweeps: python -m src.train -m schedule=linear,cosine

Each job is an ordinary run in a separate process. So its ranks start as usual, jobs share no state, and a failed job
does not stop the others.
"""

import fcntl
import importlib
import logging
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lightning_diffusion.app.words import CONFIG_DIR, split
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.runs.comparable import warning
from lightning_diffusion.runs.job import Job
from lightning_diffusion.runs.records import SMALL, Record, load, parse_yaml
from lightning_diffusion.runs.run import JOB, LOG, Run, find, relative
from lightning_diffusion.system.console import printable
from lightning_diffusion.system.files import write_text
from lightning_diffusion.system.quoting import quoted

SWEEPS, WORDS = Path("runs/sweeps"), "sweep.yaml"
OWN = ("sweep=", "+sweep=", "resume=", "hydra.mode=")  # words about the sweep, not about its jobs


def run_job(program: str, config: DictConfig) -> float:
    """Run this job, or resume it if it was interrupted. A job that is done is not repeated.

    Returns:
        config.metric as the job measured it, which can guide the sweeper. For a failed job NaN, or the worst value,
        ±inf, if the sweeper has a direction.

    Raises:
        ConfigError: the job cannot be part of a sweep.
    """
    Sweep.folder, hydra = None, HydraConfig.get()
    if config.trainer.get("num_nodes", 1) != 1 or hydra.launcher.get("tasks_per_node", 1) != 1:
        raise ConfigError(
            "trainer.num_nodes, hydra.launcher.tasks_per_node: each job of a sweep runs on one node and starts its own "
            "ranks; leave both at 1"
        )
    sweep = Path(hydra.sweep.dir)
    words = [word for word in hydra.overrides.task if not word.startswith(OWN)]
    added = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    job = Job(Run(Path(hydra.runtime.output_dir)), words, [f"{CONFIG_DIR[0]}={folder}" for folder in added])
    job.check()
    keys = _recorded(sweep / WORDS, "keys")
    if not job.result.is_done:
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            write_text(job.folder / JOB, yaml.safe_dump({"overrides": job.words}, allow_unicode=True))
            with (job.folder / LOG).open("a+", errors="replace") as log:
                fcntl.flock(log, fcntl.LOCK_EX)  # the run holds it too, so this waits for one that outlived its sweep
                job.run(program, str(config.group or sweep.name), f"{config.name} {job.own(keys)}", log)
        except OSError as error:  # something else has the names of these files, or the disk is full
            raise ConfigError(f"hydra.sweep.dir: {printable(error)}; remove {relative(job.folder)}") from error
    print(f"{hydra.job.num}: {job.told(config.metric, keys)}", flush=True)
    value = job.result.metric(config.metric)
    if math.isnan(value) and (direction := hydra.sweeper.get("direction")) is not None:
        return -math.inf if "max" in str(direction) else math.inf
    return value


class Sweep(Callback):
    """Hydra's callback at the beginning and the end of a sweep."""

    folder: ClassVar[Path | None] = None  # of the sweep that this process started, until its first job

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        words = _own_words(sys.argv[1:])
        preset = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*words, *preset])
        keys = [word.key_or_group for word in parsed if word.is_sweep_override()]
        record = {"words": words, "keys": keys, "metric": config.metric}
        write_text(folder / WORDS, yaml.safe_dump(record, allow_unicode=True))
        Sweep.folder = folder
        if "optuna" in str(config.hydra.sweeper.get("_target_")):
            importlib.import_module("optuna").logging.set_verbosity(logging.WARNING)  # each job is printed here
        print(f"sweep: {relative(folder)}", flush=True)
        if note := warning(config.metric, keys):
            print(note, file=sys.stderr)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the number of finished jobs and list those that failed.

        Raises:
            SystemExit: status 1 if a job failed.
        """
        Sweep.folder, folder = None, Path(config.hydra.sweep.dir)
        jobs = find(folder)
        failed = [job for job in jobs if job.failure is not None]
        print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs done in {relative(folder)}")
        for job in failed:
            print(f"failed: {job.folder.relative_to(folder)}: {printable(job.failure)}", file=sys.stderr)
        if failed:
            print(f"fix the cause and repeat the command with resume=true to run {len(failed)} again", file=sys.stderr)
            raise SystemExit(1)


def sweep_to_resume(argv: list[str]) -> list[str]:
    """The word that leads to the folder of the sweep to resume; an empty list without resume=true.

    Raises:
        ConfigError: no sweep was started with these words.
    """
    if "resume=true" not in argv or any(word.startswith("hydra.sweep.dir=") for word in argv):
        return []
    damaged = []
    for path in sorted(SWEEPS.glob(f"*/{WORDS}"), reverse=True):
        try:
            if _recorded(path, "words") == _own_words(argv):
                return [f"hydra.sweep.dir={quoted(path.parent)}"]
        except ConfigError as error:
            damaged.append(str(error))
    raise ConfigError(
        f"resume=true: no sweep with these arguments in {SWEEPS}; leave it out, or give a run, resume=RUN_DIR"
        + "".join(f" ({note})" for note in damaged[:1])
    )


def discard_empty() -> Path | None:
    """Delete the files of a sweep that has no job yet, and return its folder; None if there is none."""
    folder, Sweep.folder = Sweep.folder, None
    written = [] if folder is None else list(folder.iterdir())
    if not all(path.name in (WORDS, "multirun.yaml") for path in written):  # Hydra writes the second
        return None
    for path in written:
        path.unlink()
    return folder


def _recorded(path: Path, key: str) -> list[str]:
    """The "words" of a sweep, or the "keys" that it sweeps, from its file. Raises ConfigError for a damaged file."""
    empty: dict[Any, Any] = {}
    found, damage = load(path, lambda text: Record(parse_yaml(text)), empty, SMALL)
    words = found.get(key)
    if damage is None and isinstance(words, list) and all(isinstance(word, str) for word in words):
        return words
    raise ConfigError(f"{printable(relative(path))}: {printable(damage or f'{key} is not a list of words')}")


def _own_words(argv: list[str]) -> list[str]:
    """The words that define a sweep, without resume=true and its folder."""
    others = ("resume=true", "hydra.sweep.dir=")
    return [word for word in split(argv).words if not word.startswith(others)]
