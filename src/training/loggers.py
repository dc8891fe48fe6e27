"""Where metrics go: a CSV file always, W&B without ever standing in the way."""

import csv
import netrc
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import wandb
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


def is_log_step(trainer: L.Trainer, step: int) -> bool:
    """Whether loggers keep what is logged at optimizer step number `step`, counted from 1: `log` costs milliseconds,
    so nobody calls it on other steps."""
    return step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


class CSVLogger(Logger):
    """metrics.csv: a row for each call, written at once. Going on in the same folder replaces the rows from there on.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {
            "step": step,
            **{key: value for key, value in metrics.items() if key != "epoch"},
        }
        if self._columns and set(row) <= set(self._columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._rewrite(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml has them."""

    def _rewrite(self, row: dict[str, Any]) -> None:
        """The first row of this run, or a column that the file does not have yet."""
        rows: list[dict[str, Any]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        if not self._columns:
            rows = [old for old in rows if not _again(old, row)]
        self._columns = list(dict.fromkeys(key for r in [*rows, row] for key in r))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows([*rows, row])


def _again(old: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a run that goes on with `row` has yet to come to `old`, or comes to it now."""
    shared = any(old.get(key) for key in row if key != "step")
    return int(old["step"]) > row["step"] or (int(old["step"]) == row["step"] and shared)


class WandbLogger(LightningWandbLogger):
    """W&B online where an API key is at hand, otherwise offline: it never prompts, and an unreachable server costs
    seconds, not the run.

    WANDB_MODE overrides the choice. Everything, W&B's own caches too, lies under the run's folder.

    Args:
        run_dir: folder of the run.
        project, name, group, tags: as in wandb.init.
        init_timeout: seconds to wait for the server.
    """

    _folders: ClassVar[set[str]] = set()  # variables that an earlier run in this process has set

    def __init__(
        self,
        run_dir: str,
        project: str = "lightning-diffusion",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        init_timeout: float = 10.0,
    ) -> None:
        for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            if variable in self._folders or variable not in os.environ:  # a user's own choice stands
                self._folders.add(variable)
                os.environ[variable] = str(Path(run_dir) / "wandb")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        settings = wandb.Settings(init_timeout=init_timeout, silent=True, console="off")
        super().__init__(
            name=name, save_dir=run_dir, project=project, group=group, tags=tags, settings=settings, mode=mode
        )
        del self._wandb_init["anonymous"]  # W&B warns of it
        self._id_file = Path(run_dir) / "wandb" / "id.txt"
        if self._id_file.is_file():  # the run goes on
            self._id = self._wandb_init["id"] = self._id_file.read_text().strip()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            try:
                run = LightningWandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
                self._id_file.parent.mkdir(parents=True, exist_ok=True)
                self._id_file.write_text(run.id + "\n")
                return run
            except wandb.errors.CommError as error:
                reason = str(error).splitlines()[0]
                print(f"W&B: no answer ({reason}); logging offline, upload later with `wandb sync`", file=sys.stderr)
                self._wandb_init["mode"] = "offline"
        return LightningWandbLogger.experiment.fget(self)  # type: ignore[attr-defined]


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
