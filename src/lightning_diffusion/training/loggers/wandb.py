"""The logger for W&B, which never stops or delays a run."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_diffusion.runs.comparable import best_of
from lightning_diffusion.runs.run import CONFIG
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.training.loggers.wandb_session import PATIENCE, WandbSession, reason, within

HURRY = 5.0  # seconds when a signal asked the run to stop


class WandbLogger(Logger):
    """Logs to W&B, online if there is an API key and offline otherwise. It never prompts, and neither stops nor delays
    the run.

    If the server does not answer, the run waits `init_timeout` seconds at the start, then logs offline, and waits
    `finish_timeout` seconds at the end. Any other failure turns W&B off. One line reports either case.

    A run's row in W&B shows the best value of losses and scores, and the last value of everything else. WANDB_MODE
    overrides the choice of online or offline. All files, W&B's own caches too, are stored under the run's folder.

    Args:
        run_dir: folder of the run.
        project, name, group, tags: as in wandb.init.
        init_timeout: seconds to wait for the server.
        finish_timeout: seconds to wait for pending uploads at the end.
        log_checkpoints: uploads the last checkpoint, and the best one if there is one, as artifacts. Only online.
    """

    _folders: ClassVar[set[str]] = set()  # variables set by an earlier run in this process

    def __init__(
        self,
        run_dir: str,
        project: str = "lightning-diffusion",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        init_timeout: float = 7.0,
        finish_timeout: float = 30.0,
        log_checkpoints: bool = False,
    ) -> None:
        super().__init__()
        for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            if variable in self._folders or variable not in os.environ:  # keep a user's own choice
                self._folders.add(variable)
                os.environ[variable] = str(Path(run_dir) / "wandb")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        self.project, self.log_checkpoints = project, log_checkpoints
        self._run_dir = Path(run_dir)
        options = {"dir": run_dir, "project": project, "name": name, "group": group, "tags": tags}
        self._session = WandbSession(options, init_timeout, finish_timeout)
        self._best: dict[str, str] = {}
        self._defined: set[str] = set()  # metrics whose step and summary W&B has

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        """The id of the W&B run, if it has one."""
        return self._session.id

    def declare(self, best: Mapping[str, str]) -> None:
        """Takes the direction of each score, "min" or "max", before the first of its values is logged."""
        self._best.update(best)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._session.call(lambda run: self._log(run, metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Logs the configuration with dotted keys, as on the command line and in a sweep, and uploads config.yaml."""
        self._session.call(lambda run: run.config.update(dotted(dict(params)), allow_val_change=True))
        if (self._run_dir / CONFIG).is_file():
            self._session.call(
                lambda run: run.save(str(self._run_dir / CONFIG), base_path=str(self._run_dir), policy="now")
            )

    @rank_zero_only
    def log_picture(self, key: str, path: Path, step: int) -> None:
        """Logs an image, or an animation if the file is a .gif."""
        kind = "Video" if path.suffix == ".gif" else "Image"
        self._session.call(lambda run: self._log(run, {key: getattr(self._session.wandb, kind)(str(path))}, step))

    @rank_zero_only
    def finish(self, exit_code: int, hurry: bool = False) -> None:
        """Ends the W&B run, as failed if the exit code is not 0. With `hurry` it does not wait for pending uploads."""
        session = self._session
        if session.run is not None:
            if self.log_checkpoints and not hurry and not session.run.offline:
                self._upload_checkpoints()
            with Phase("closing the W&B run"):
                session.call(lambda run: run.finish(exit_code), HURRY if hurry else session.finish_timeout + PATIENCE)
            session.abandon()

    def _log(self, run: Any, values: Mapping[str, Any], step: int | None) -> None:
        for key in values.keys() - self._defined:  # one by one: of overlapping patterns, W&B picks any
            best = self._best.get(key) or best_of(key)
            run.define_metric(key, step_metric="trainer/global_step", step_sync=True, summary=best)
            self._defined.add(key)
        run.log({**values, "trainer/global_step": step})

    def _upload_checkpoints(self) -> None:
        """Uploads the checkpoints as artifacts. Reports a failure in a line and continues."""
        run = self._session.run
        for name in ("last", "best"):
            path = self._run_dir / "checkpoints" / f"{name}.ckpt"
            if path.is_file():
                upload = partial(run.log_artifact, str(path.resolve()), f"{run.id}-{name}", "model")
                try:
                    within(self._session.finish_timeout, upload)
                except Exception as error:
                    print(f"W&B did not accept {path.name} ({reason(error)})", file=sys.stderr)


def dotted(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Flattens a mapping: {"schedule": {"T": 10}} becomes {"schedule.T": 10}."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= dotted(value, f"{path}{key}.") if isinstance(value, Mapping) and value else {f"{path}{key}": value}
    return found
