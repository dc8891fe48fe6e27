"""The connection to W&B, of which every call has a deadline."""

import contextlib
import importlib
import netrc
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from lightning_diffusion.system.files import Unreadable, read_text, write_text
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.training.ownership import make_run_folder

T = TypeVar("T")
PATIENCE = 10.0  # seconds for a call to W&B's process, which answers in milliseconds
OFFLINE_PATIENCE = 5.0  # seconds to start offline, which takes half a second


class WandbSession:
    """A W&B run that starts with the first call. An error or a missed deadline turns it off, and a line reports that.

    Args:
        options: of wandb.init; dir is the run's folder.
        init_timeout: seconds to wait for the server, before it starts offline.
        finish_timeout: seconds to wait for pending uploads at the end.
    """

    def __init__(self, options: dict[str, Any], init_timeout: float, finish_timeout: float) -> None:
        self.options, self.init_timeout, self.finish_timeout = options, init_timeout, finish_timeout
        self.wandb: Any = None  # the module, once it is used
        self.run: Any = None
        self._folder = Path(options["dir"]) / "wandb"  # of the W&B run, once it has started
        self._id_file = self._folder / "id.txt"
        self._off = False

    @property
    def id(self) -> str | None:
        """The id of the W&B run. None before it starts, or if its file is damaged: a new W&B run begins then."""
        try:
            written = read_text(self._id_file)
        except Unreadable:
            return None
        return written.strip() if re.fullmatch(r"[\w-]+\n", written) else None

    def call(self, function: Callable[[Any], object], seconds: float = PATIENCE) -> None:
        """Calls a function with the W&B run, which it starts first if needed."""
        if self._off:
            return
        try:
            if self.run is None:
                with Phase("starting W&B"):
                    self.run = self._start()
            within(seconds, lambda: function(self.run))
        except (Exception, SystemExit) as error:
            self._report("off", error)
            self.abandon()

    def abandon(self) -> None:
        """Abandons W&B's process; otherwise this process would wait for it at its end."""
        self._off = True
        with contextlib.suppress(Exception, SystemExit):
            within(1.0, self.wandb.teardown)

    def _start(self) -> Any:
        self.wandb = importlib.import_module("wandb")  # not at the top: importing takes half a second
        mode, failure = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline"), None
        try:
            run = within(self.init_timeout + 1, lambda: self._init(mode))
        except Exception as error:
            if mode != "online":
                raise
            failure, run = error, within(OFFLINE_PATIENCE, lambda: self._init("offline"))
        self._folder = Path(run.dir).parent
        make_run_folder(self._id_file.parent)
        write_text(self._id_file, run.id + "\n")
        if failure is not None:
            self._report("offline", failure)
        return run

    def _init(self, mode: Any) -> Any:
        settings = self.wandb.Settings(
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # seconds of logging that a kill can lose
            silent=True,
            console="off",
        )
        run = self.wandb.init(**self.options, id=self.id, resume="allow", mode=mode, settings=settings)
        run.define_metric("trainer/global_step")
        return run

    def _report(self, state: str, error: BaseException) -> None:
        which = "" if self._folder.name.startswith("offline") else "--include-online "
        command = f"wandb sync {which}{os.path.relpath(self._folder)}"
        print(f"W&B is {state} ({reason(error)}); upload the data so far with `{command}`", file=sys.stderr)


def reason(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


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
