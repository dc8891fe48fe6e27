"""W&B, which never stands in the way of a run."""

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
HURRY = 5.0  # seconds for a run that was asked to stop
OFFLINE_PATIENCE = 5.0  # seconds to start offline, which takes half of one


class WandbLogger(Logger):
    """W&B online where an API key is at hand, otherwise offline. It never prompts, and neither ends nor delays the run.

    A server that does not answer costs `init_timeout` seconds at the start, after which the run is logged offline, and
    `finish_timeout` at the end; anything else that fails turns W&B off. Either is told in one line.

    A run's row shows the best of losses and scores, and the last of anything else. WANDB_MODE overrides online
    and offline. Everything, W&B's own caches too, lies under the run's folder.

    Args:
        run_dir: folder of the run.
        project, name, group, tags: as in wandb.init.
        init_timeout: seconds to wait for the server.
        finish_timeout: seconds to wait for what is still to be uploaded.
        log_checkpoints: uploads the last checkpoint, and the best one where one is kept, as artifacts; online alone.
    """

    _folders: ClassVar[set[str]] = set()  # variables that an earlier run in this process has set

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
            if variable in self._folders or variable not in os.environ:  # a user's own choice stands
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
        self._defined: set[str] = set()  # what W&B knows the step and the best of
        self._run: Any = None
        self._folder = Path(run_dir) / "wandb"  # of the W&B run, once there is one
        self._off = False

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        """The id of the W&B run; None where there is none yet, or a torn one, after which a new W&B run begins."""
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
        """With dotted keys, as on the command line and in a sweep; config.yaml beside them, as it stands."""
        self._guard(lambda run: run.config.update(dotted(dict(params)), allow_val_change=True))
        if (self._run_dir / CONFIG).is_file():
            self._guard(lambda run: run.save(str(self._run_dir / CONFIG), base_path=str(self._run_dir), policy="now"))

    @rank_zero_only
    def log_picture(self, key: str, path: Path, step: int) -> None:
        """An image, or an animation if the file is a .gif."""
        kind = "Video" if path.suffix == ".gif" else "Image"
        self._guard(lambda run: self._log(run, {key: getattr(self._wandb, kind)(str(path))}, step))

    @rank_zero_only
    def finish(self, exit_code: int, hurry: bool = False) -> None:
        """Ends the W&B run, as failed where the code is not 0; in a hurry what is not uploaded by then is left."""
        if self._run is not None:
            if self.log_checkpoints and not hurry and not self._run.offline:
                self._upload_checkpoints()
            with Phase("closing W&B's run"):
                self._guard(lambda run: run.finish(exit_code), HURRY if hurry else self.finish_timeout + PATIENCE)
            self._leave()

    def _log(self, run: Any, values: Mapping[str, Any], step: int | None) -> None:
        for key in values.keys() - self._defined:  # one by one: of patterns that overlap, W&B takes any
            run.define_metric(key, step_metric="trainer/global_step", step_sync=True, summary=best_of(key))
            self._defined.add(key)
        run.log({**values, "trainer/global_step": step})

    def _upload_checkpoints(self) -> None:
        """What fails here is told, and no reason to leave the run unfinished."""
        for name in ("last", "best"):
            path = self._run_dir / "checkpoints" / f"{name}.ckpt"
            if path.is_file():
                upload = partial(self._run.log_artifact, str(path.resolve()), f"{self._run.id}-{name}", "model")
                try:
                    within(self.finish_timeout, upload)
                except Exception as error:
                    print(f"W&B has not taken {path.name} ({_reason(error)})", file=sys.stderr)

    def _guard(self, call: Callable[[Any], object], seconds: float = PATIENCE) -> None:
        """The one door to W&B: what comes back through it as an error, or not in time, turns W&B off."""
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
        self._wandb = importlib.import_module("wandb")  # here, not above: only where it is used, half a second
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
            x_transaction_log_flush_interval=1.0,  # of what is on disk should the process be killed
            silent=True,
            console="off",
        )
        run = self._wandb.init(**self._options, id=self.version, resume="allow", mode=mode, settings=settings)
        run.define_metric("trainer/global_step")
        return run

    def _tell(self, state: str, error: BaseException) -> None:
        which = "" if self._folder.name.startswith("offline") else "--include-online "
        command = f"wandb sync {which}{os.path.relpath(self._folder)}"
        print(f"W&B is {state} ({_reason(error)}); `{command}` uploads what there is", file=sys.stderr)

    def _leave(self) -> None:
        """Lets go of W&B's process, which would else be waited for when this one ends."""
        self._off = True
        with contextlib.suppress(Exception, SystemExit):
            within(1.0, self._wandb.teardown)


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def dotted(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"schedule": {"T": 10}} as {"schedule.T": 10}."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= dotted(value, f"{path}{key}.") if isinstance(value, Mapping) and value else {f"{path}{key}": value}
    return found


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, from a thread of its own, which is left behind where it takes longer.

    Raises:
        TimeoutError: after so many seconds.
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
