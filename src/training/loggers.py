"""Where metrics go: a CSV file always, W&B without ever standing in the way."""

import netrc
import os
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_warn


def csv_logger(run_dir: str, flush_every_n_steps: int = 100) -> CSVLogger:
    """metrics.csv in the run's folder, a row per logged step."""
    return CSVLogger(run_dir, name="", version="", flush_logs_every_n_steps=flush_every_n_steps)


class WandbLogger(LightningWandbLogger):
    """W&B online where an API key is at hand, otherwise offline: it never prompts, and an unreachable server costs
    seconds, not the run.

    WANDB_MODE overrides the choice. Everything, W&B's own caches too, lies under the run's folder.

    Args:
        run_dir: folder of the run.
        project, name, group, tags: as in wandb.init.
        init_timeout: seconds to wait for the server.
    """

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
            os.environ.setdefault(variable, str(Path(run_dir) / "wandb"))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        settings = wandb.Settings(init_timeout=init_timeout, silent=True, console="off")
        super().__init__(
            name=name, save_dir=run_dir, project=project, group=group, tags=tags, settings=settings, mode=mode
        )
        del self._wandb_init["anonymous"]  # W&B warns of it

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            try:
                return LightningWandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
            except wandb.errors.CommError as error:
                reason = str(error).splitlines()[0]
                rank_zero_warn(f"W&B: no answer ({reason}); logging offline, upload later with `wandb sync`")
                self._wandb_init["mode"] = "offline"
        return LightningWandbLogger.experiment.fget(self)  # type: ignore[attr-defined]


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
