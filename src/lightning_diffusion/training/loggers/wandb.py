"""The logger for W&B, which never stops or delays a run."""

import contextlib
import importlib
import netrc
import os
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar, TypeVar

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_diffusion.runs.run import CONFIG, best_of
from lightning_diffusion.system.files import Unreadable, read_text, write_text
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.training.ownership import make_run_folder

T = TypeVar("T")
PATIENCE = 10.0  # seconds for a call to W&B's process, which answers in milliseconds
HURRY = 5.0  # seconds when a signal asked the run to stop
OFFLINE_PATIENCE = 5.0  # seconds to start offline, which takes half a second


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
        self.init_timeout, self.finish_timeout = init_timeout, finish_timeout
        self.project = project
        self._options: dict[str, Any] = {"dir": run_dir, "project": project, "name": name, "group": group, "tags": tags}
        self._run_dir, self.log_checkpoints = Path(run_dir), log_checkpoints
        self._id_file = Path(run_dir) / "wandb" / "id.txt"
        self._wandb: Any = None
        self._defined: set[str] = set()  # metrics whose step and summary W&B has
        self._run: Any = None
        self._folder = Path(run_dir) / "wandb"  # of the W&B run, once there is one
        self._off = False

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        """The id of the W&B run. None before it starts, or if its file is damaged: a new W&B run begins then."""
        try:
            written = read_text(self._id_file)
        except Unreadable:
            return None
        return written.strip() if re.fullmatch(r"[\w-]+\n", written) else None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self._guard(lambda run: self._log(run, metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Logs the configuration with dotted keys, as on the command line and in a sweep, and uploads config.yaml."""
        self._guard(lambda run: run.config.update(dotted(dict(params)), allow_val_change=True))
        if (self._run_dir / CONFIG).is_file():
            self._guard(lambda run: run.save(str(self._run_dir / CONFIG), base_path=str(self._run_dir), policy="now"))

    @rank_zero_only
    def log_picture(self, key: str, path: Path, step: int) -> None:
        """Logs an image, or an animation if the file is a .gif."""
        kind = "Video" if path.suffix == ".gif" else "Image"
        self._guard(lambda run: self._log(run, {key: getattr(self._wandb, kind)(str(path))}, step))

    @rank_zero_only
    def finish(self, exit_code: int, hurry: bool = False) -> None:
        """Ends the W&B run, as failed if the exit code is not 0. With `hurry` it does not wait for pending uploads."""
        if self._run is not None:
            if self.log_checkpoints and not hurry and not self._run.offline:
                self._upload_checkpoints()
            with Phase("closing the W&B run"):
                self._guard(lambda run: run.finish(exit_code), HURRY if hurry else self.finish_timeout + PATIENCE)
            self._leave()

    def _log(self, run: Any, values: Mapping[str, Any], step: int | None) -> None:
        for key in values.keys() - self._defined:  # one by one: of overlapping patterns, W&B picks any
            run.define_metric(key, step_metric="trainer/global_step", step_sync=True, summary=best_of(key))
            self._defined.add(key)
        run.log({**values, "trainer/global_step": step})

    def _upload_checkpoints(self) -> None:
        """Uploads the checkpoints as artifacts. Reports a failure in a line and continues."""
        for name in ("last", "best"):
            path = self._run_dir / "checkpoints" / f"{name}.ckpt"
            if path.is_file():
                upload = partial(self._run.log_artifact, str(path.resolve()), f"{self._run.id}-{name}", "model")
                try:
                    within(self.finish_timeout, upload)
                except Exception as error:
                    print(f"W&B did not accept {path.name} ({_reason(error)})", file=sys.stderr)

    def _guard(self, call: Callable[[Any], object], seconds: float = PATIENCE) -> None:
        """Calls W&B, which it starts first if needed. An error or a missed deadline turns W&B off."""
        if self._off:
            return
        try:
            if self._run is None:
                with Phase("starting W&B"):
                    self._run = self._start()
            within(seconds, lambda: call(self._run))
        except (Exception, SystemExit) as error:
            self._tell("off", error)
            self._leave()

    def _start(self) -> Any:
        self._wandb = importlib.import_module("wandb")  # not at the top: importing takes half a second
        mode, trouble = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline"), None
        try:
            run = within(self.init_timeout + 1, lambda: self._init(mode))
        except Exception as error:
            if mode != "online":
                raise
            trouble, run = error, within(OFFLINE_PATIENCE, lambda: self._init("offline"))
        self._folder = Path(run.dir).parent
        make_run_folder(self._id_file.parent)
        write_text(self._id_file, run.id + "\n")
        if trouble is not None:
            self._tell("offline", trouble)
        return run

    def _init(self, mode: Any) -> Any:
        settings = self._wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # seconds of logging that a kill can lose
            silent=True,
            console="off",
        )
        run = self._wandb.init(**self._options, id=self.version, resume="allow", mode=mode, settings=settings)
        run.define_metric("trainer/global_step")
        return run

    def _tell(self, state: str, error: BaseException) -> None:
        which = "" if self._folder.name.startswith("offline") else "--include-online "
        command = f"wandb sync {which}{os.path.relpath(self._folder)}"
        print(f"W&B is {state} ({_reason(error)}); upload the data so far with `{command}`", file=sys.stderr)

    def _leave(self) -> None:
        """Abandons W&B's process; otherwise this process would wait for it at its end."""
        self._off = True
        with contextlib.suppress(Exception, SystemExit):
            within(1.0, self._wandb.teardown)


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def dotted(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Flattens a mapping: {"schedule": {"T": 10}} becomes {"schedule.T": 10}."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= dotted(value, f"{path}{key}.") if isinstance(value, Mapping) and value else {f"{path}{key}": value}
    return found


def within(seconds: float, call: Callable[[], T]) -> T:
    """Returns or raises the outcome of `call`, which runs in a thread; a thread that misses the deadline is abandoned.

    Raises:
        TimeoutError: `call` took longer than `seconds`.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=work, daemon=True).start()
    if not wait([done], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return done.result()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
