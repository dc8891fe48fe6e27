"""The command line: Hydra around a program, and config_errors as one line."""

import contextlib
import importlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from lightning_diffusion.app.help import asks_for_help, help_text
from lightning_diffusion.app.sweep import discard_empty, sweep_to_resume
from lightning_diffusion.app.words import (
    VERSION,
    check_flags,
    check_form,
    config_folders,
    keys,
    no_such_key,
    opened,
    split,
)
from lightning_diffusion.configuration.errors import ConfigError, did_you_mean
from lightning_diffusion.configuration.trusted_targets import CONF
from lightning_diffusion.system.checkout import as_typed
from lightning_diffusion.system.console import console, printable
from lightning_diffusion.system.files import NotWritten
from lightning_diffusion.system.interrupt import importing, interruptible
from lightning_diffusion.system.lazy_import import TORCHMETRICS, defer
from lightning_diffusion.system.memory import keep_freed_memory
from lightning_diffusion.system.progress import Phase
from lightning_diffusion.system.quoting import pasted
from lightning_diffusion.system.version import version

STATUS = 2
MOST = 1500  # characters of a message
FULL_ERROR = "HYDRA_FULL_ERROR"
EXPECTED = (ValueError, TypeError, OSError, RuntimeError)
EXPECTED_BY_NAME = ("MisconfigurationException",)  # Lightning's, whose import takes seconds


class Program:
    """`python -m src.<name>`: conf/<config_name>.yaml composed with the command line, for app.commands.<name>.main.

    That module is imported once the words are known to compose: a misspelt one, --help and the Tab key need no torch.

    A mistake of the user's is one line on stderr and exit status 2, with a traceback only under HYDRA_FULL_ERROR=1.
    A run folder into which nothing was written is removed. Anything else that is raised is a bug: its traceback shows.

    Args:
        usage: the head of --help.
        config_name: None for the program's own name.
        job: what a job of a sweep does with (module, configuration) in place of the program.
        model_groups: groups of which a model's file chooses the option where the command line does not.
    """

    def __init__(
        self,
        name: str,
        usage: str | None,
        config_name: str | None = None,
        job: Callable[[str, DictConfig], Any] | None = None,
        model_groups: Sequence[str] = (),
    ) -> None:
        self.name, self.usage, self.config_name, self.job = name, usage or "", config_name or name, job
        self.left_open = model_groups

    def __call__(self) -> None:
        self._started, self._composed, self._with_traceback = time.time(), False, os.environ.get(FULL_ERROR) == "1"
        try:
            if (answer := self._answer(sys.argv[1:])) is not None:
                return _show(answer)
        except ConfigError as error:
            self._fail(error)
        flags, words = split(sys.argv[1:])
        sys.argv[1:] = [*flags, *words, *(["hydra.run.dir=."] if _follows() else [])]  # flags among words fail in Hydra
        os.environ[FULL_ERROR] = "1"  # Hydra's own short form of errors exits 1 and prints several lines
        try:
            with interruptible():
                sys.argv += sweep_to_resume(sys.argv[1:])
                sys.argv[1:] = opened(sys.argv[1:], self.config_name, self.left_open)
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.config_name)(self._run)()
        except Exception as error:
            if self._composed:
                raise
            if (folder := discard_empty()) is not None:
                _remove_empty(folder, since=self._started)
            self._fail(error)  # whatever Hydra makes of a command line
        finally:
            self._forget_full_error()

    def _answer(self, argv: list[str]) -> str | None:
        """The text that --help or --version asks for. Raises ConfigError for words that are no command line."""
        check_flags(argv, self.config_name)
        if VERSION in argv:
            return version()
        if asks_for_help(argv):
            return help_text(as_typed(self.usage), config_folders(argv), self.config_name, split(argv).words)
        check_form(argv, self.config_name)
        return None

    def _run(self, config: DictConfig) -> Any:
        self._composed = True
        self._forget_full_error()  # from here on an error is a bug, which Hydra shows well by itself
        try:
            if self.job is not None and HydraConfig.get().mode == RunMode.MULTIRUN:
                return self.job(self.name, config)
            with importing(self._leave_nothing):
                defer("torchmetrics", TORCHMETRICS)
                keep_freed_memory()
                with Phase("loading torch and Lightning"):
                    program = importlib.import_module(f"lightning_diffusion.app.commands.{self.name}")
            return program.main(config)
        except (ConfigError, NotWritten, OmegaConfBaseException) as error:
            self._fail(error)
        finally:
            self._leave_nothing()

    def _leave_nothing(self) -> None:
        """Removes the run's folder where nothing was written into it."""
        _remove_empty(Path(HydraConfig.get().runtime.output_dir), since=self._started)

    def _forget_full_error(self) -> None:
        if not self._with_traceback:
            os.environ.pop(FULL_ERROR, None)

    def _fail(self, error: Exception) -> NoReturn:
        if self._with_traceback:
            traceback.print_exception(error)
        console(stderr=True).print(
            f"error: {printable(as_typed(explain(error, self.config_name)), MOST)}", soft_wrap=True
        )
        raise SystemExit(STATUS)


@contextlib.contextmanager
def config_errors(key: str = "") -> Iterator[None]:
    """Everything that goes wrong inside is the user's mistake: bad values, clashes, missing files.

    Args:
        key: what a message that comes from elsewhere, and names no key, is about.
    """
    try:
        yield
    except (ConfigError, OmegaConfBaseException):
        raise  # one names its key, `explain` has words for the other
    except Exception as error:
        if not isinstance(error, EXPECTED) and type(error).__name__ not in EXPECTED_BY_NAME:
            raise
        raise ConfigError(_with_key(key, one_line(str(error)))) from error


def explain(error: Exception, config_name: str, words: Sequence[str] | None = None) -> str:
    """A configuration error in one line that names the key and the remedy.

    Args:
        words: that were composed; None for this process's command line.
    """
    argv = sys.argv[1:] if words is None else words
    text = f"{error}\n{error.__cause__ or ''}"
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or text.split()[-1]
        return f"{key}: missing; give {key}=…"
    if match := re.search(
        r"Could not find '([\w/.@-]+)/([^'/]*)'\s+Available options in '[^']*':\n((?:\t.*\n)+)", text
    ):
        group, option, options = match[1], match[2], match[3].split()
        return f"{group}={option}: no such option{did_you_mean(option, options)} (options: {', '.join(options)})"
    if match := re.search(r"Interpolation key '([\w.]+)' not found", text):
        return f"{match[1]}: missing; leave it in, or give another value"
    if match := re.search(r"Could not override '([\w./@-]+)'", text):
        return no_such_key(match[1], keys(config_name, argv))
    if isinstance(error, OverrideParseException) and (match := re.fullmatch(r"([\w./@+]+)=([^'\"]+)", error.override)):
        return f"{match[1]}: its value needs quotes, for Hydra and for the shell: {pasted(match[1], match[2])}"
    if match := re.match(r"Ambiguous value for argument '([\w./@+]+)=(.*)'\n", text):
        key, value = match[1], match[2]
        return (
            f"{key}={value}: add -m to sweep over these values, or give a list, '{key}=[{value}]', or one text, "
            + pasted(key, value)
        )
    return f"{one_line(str(error))} (the command line was: {' '.join(argv)})"


def _show(text: str) -> None:
    """To a pager that may be left before the end, too."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(text)


def _follows() -> bool:
    """Whether torchrun or SLURM started this process, and others before it: the first one alone has a run folder."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) > 0


def one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _with_key(key: str, text: str) -> str:
    return text if key in text else f"{key}: {text}"


def _remove_empty(folder: Path, since: float) -> None:
    """Removes the run's folder, and those above it that were made for it: empty, and not older than the program."""
    for candidate in (folder, folder.parent, folder.parent.parent):
        if candidate == Path.cwd() or not candidate.is_dir() or candidate.stat().st_mtime < since:
            return
        try:
            candidate.rmdir()
        except OSError:  # not empty
            return
