"""The console summary of a run at its start and its end, and the files that record them."""

import json
import logging
import math
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import lightning as L
from omegaconf import OmegaConf
from rich.text import Text

from lightning_diffusion.data.module import ImageDataModule
from lightning_diffusion.models.contracts import Generator, Likelihood, Model
from lightning_diffusion.runs.comparable import is_figure
from lightning_diffusion.runs.run import CHECKPOINT, CONFIG, RESULT, Run, relative
from lightning_diffusion.system.checkout import as_typed
from lightning_diffusion.system.console import clock, console, printable
from lightning_diffusion.system.files import write_text
from lightning_diffusion.training.callbacks.lookup import callbacks_of
from lightning_diffusion.training.callbacks.scores import SampleScores
from lightning_diffusion.training.callbacks.throughput import Throughput
from lightning_diffusion.training.loggers.wandb import WandbLogger
from lightning_diffusion.training.module import TrainingModule
from lightning_diffusion.training.ownership import check_owned, own, tidy
from lightning_diffusion.training.summary import config_tree, file_rows, score_row, start_rows, validation_rows


def quiet() -> None:
    """Silences Lightning's routine messages and harmless warnings; other warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for harmless in (
        ".*does not have many workers.*",  # data in memory is fastest without workers
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*dataloader is not resumable.*",  # it is resumable: its order is a function of the batch's number
        ".*Experiment logs directory .* exists.*",
        ".*smaller than the logging interval.*",  # a run of a few steps
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*module.s. in eval mode at the start of training.*",  # the averaged copy always is in eval mode
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=harmless)


class Results:
    """Prints a run's summary at its start and its end, and writes config.yaml and metrics.json.

    As a context manager it closes the W&B run, whatever happens. On all ranks but the first it prints and writes
    nothing.
    """

    def __init__(self, trainer: L.Trainer, run_dir: Path, record: dict[str, Any]) -> None:
        """record: content of config.yaml."""
        self.trainer, self.run_dir, self._record = trainer, run_dir, record
        self._console = console(quiet=not trainer.is_global_zero)
        self._started = time.monotonic()

    def claim(self, resumed: bool) -> None:
        """Claims the folder and writes config.yaml. A resumed run's folder is repaired first.

        Args:
            resumed: whether the folder is that of the resumed run.

        Raises:
            FileExistsError: the folder holds another run, which is not overwritten.
            NotWritten: another process owns the folder, or it is not writable.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        own(self.run_dir)
        if resumed:
            tidy(self.run_dir)
        elif os.path.lexists(self.run_dir / CONFIG):
            folder = relative(self.run_dir)
            raise FileExistsError(
                f"run_dir={folder}: already holds a run; continue with resume={folder}, or choose another hydra.run.dir"
            )
        write_text(self.run_dir / CONFIG, OmegaConf.to_yaml(self._record))

    def start(
        self, module: TrainingModule, datamodule: ImageDataModule, called: Mapping[str, str], print_config: bool
    ) -> None:
        """Prints the summary of what will be trained.

        Args:
            called: the name of the part that the configuration chooses for each key: {"schedule": "cosine"}.
            print_config: whether to print the whole configuration too.
        """
        if not self.trainer.is_global_zero:
            return
        if print_config:
            self._console.print(config_tree("config", self._record))
        self._facts, self._draws = _facts(module.ema.model), isinstance(module.model, Generator)
        rows = start_rows(self.trainer, module, datamodule, called)
        self._table({"run": str(relative(self.run_dir)), **rows})

    def finish(self) -> dict[str, float]:
        """Writes metrics.json, prints the summary of the results, and returns the run's metrics."""
        measured = self.trainer.callback_metrics
        held_out = {name: float(value) for name, value in measured.items() if is_figure(name)}
        if not self.trainer.is_global_zero:
            return defaultdict(lambda: math.nan)
        throughput = next(iter(callbacks_of(self.trainer, Throughput)), None)
        seconds = time.monotonic() - self._started
        metrics = {
            **held_out,
            "steps": self.trainer.global_step,
            "images_per_second": throughput.rate if throughput else None,
            "seconds": seconds,
            **self._facts,
        }
        scores = next((callback.summary() for callback in callbacks_of(self.trainer, SampleScores)), {})
        metrics |= scores
        check_owned()
        write_text(self.run_dir / RESULT, json.dumps(metrics, indent=2) + "\n")
        self._table(
            {
                "training": f"{self.trainer.global_step:,} steps in {clock(seconds)}",
                **validation_rows(held_out),
                **score_row(scores),
                **file_rows(self.run_dir),
            }
        )
        if self.has_checkpoint and self._draws:
            command = as_typed(f"python -m src.sample ckpt_path={relative(self.run_dir)}/{CHECKPOINT}")
            self._console.print(f"more samples: {command}", soft_wrap=True)
        return Run(self.run_dir).metrics

    def remedy(self) -> str:
        """The remedy after a file could not be written, to be appended to the message."""
        folder = relative(self.run_dir)
        if not self.run_dir.is_dir():
            return ""
        retry = f"continue with resume={folder}" if self.has_checkpoint else f"remove {folder} and start again"
        return f"; free some space, then {retry}"

    @property
    def has_checkpoint(self) -> bool:
        return (self.run_dir / CHECKPOINT).exists()

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.finish(exit_code=1 if error else 0, hurry=isinstance(error, SystemExit))
        checkpoint = self.run_dir / CHECKPOINT
        if isinstance(error, SystemExit) and checkpoint.exists():
            self._console.print(f"stopped; continue with resume={relative(self.run_dir)}", soft_wrap=True)

    def _table(self, rows: dict[str, str]) -> None:
        width = max(map(len, rows)) + 2
        for name, value in rows.items():
            line = Text.assemble((name.ljust(width), "bold"), printable(value))
            self._console.print(line, soft_wrap=True)  # no line break in a path


def _facts(model: Model) -> dict[str, Any]:
    """Properties of the model that draws, for metrics.json."""
    likelihood = {"likelihood": model.kind} if isinstance(model, Likelihood) else {}
    return {"parameters": model.num_parameters, **likelihood, **model.facts()}
