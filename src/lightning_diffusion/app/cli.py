"""The command line: a program run by Hydra, with each user error as one line."""

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
    add_missing_keys,
    check_flags,
    check_form,
    config_folders,
    no_such_key,
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
    """`python -m src.<name>`: conf/<config_name>.yaml, composed with the command line, runs app.commands.<name>.main.

    That module is imported only after the configuration composes: misspelt words, --help and the Tab key need no torch.

    A user error is one line on stderr and exit status 2, with a traceback only under HYDRA_FULL_ERROR=1. A run folder
    that is still empty is removed. Any other exception is a bug and shows its traceback.

    Args:
        usage: the beginning of --help.
        config_name: the name of the configuration; None for the program's own name.
        job: runs a job of a sweep, given (name, configuration), instead of the program.
        model_groups: groups whose option comes from the model's file if the command line chooses none.
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
        self.model_groups = model_groups

    def __call__(self) -> None:
        self._started, self._composed, self._with_traceback = time.time(), False, os.environ.get(FULL_ERROR) == "1"
        try:
            if (answer := self._answer(sys.argv[1:])) is not None:
                return _show(answer)
        except ConfigError as error:
            self._fail(error)
        flags, words = split(sys.argv[1:])
        own_folder = ["hydra.run.dir=."] if _is_follower() else []
        sys.argv[1:] = [*flags, *words, *own_folder]  # Hydra refuses flags between words
        os.environ[FULL_ERROR] = "1"  # otherwise Hydra prints several lines and exits with 1
        try:
            with interruptible():
                sys.argv += sweep_to_resume(sys.argv[1:])
                sys.argv[1:] = add_missing_keys(sys.argv[1:], self.config_name, self.model_groups)
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=self.config_name)(self._run)()
        except Exception as error:
            if self._composed:
                raise
            if (folder := discard_empty()) is not None:
                _remove_empty(folder, since=self._started)
            self._fail(error)  # any error of Hydra's about the command line
        finally:
            self._forget_full_error()

    def _answer(self, argv: list[str]) -> str | None:
        """The text of --help or --version, if requested. Raises ConfigError for a malformed command line."""
        check_flags(argv, self.config_name)
        if VERSION in argv:
            return version()
        if asks_for_help(argv):
            return help_text(as_typed(self.usage), config_folders(argv), self.config_name, split(argv).words)
        check_form(argv, self.config_name)
        return None

    def _run(self, config: DictConfig) -> Any:
        self._composed = True
        self._forget_full_error()  # from here on an error is a bug, and Hydra shows its traceback
        try:
            if self.job is not None and HydraConfig.get().mode == RunMode.MULTIRUN:
                return self.job(self.name, config)
            with importing(self._remove_empty_run):
                defer("torchmetrics", TORCHMETRICS)
                keep_freed_memory()
                with Phase("loading torch and Lightning"):
                    program = importlib.import_module(f"lightning_diffusion.app.commands.{self.name}")
            return program.main(config)
        except (ConfigError, NotWritten, OmegaConfBaseException) as error:
            self._fail(error)
        finally:
            self._remove_empty_run()

    def _remove_empty_run(self) -> None:
        """Remove the run's folder if nothing was written to it."""
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
    """Turn expected errors inside into ConfigErrors: bad values, conflicts, missing files.

    Args:
        key: put before a message that does not name it.
    """
    try:
        yield
    except (ConfigError, OmegaConfBaseException):
        raise  # the first names its key, and `explain` words the second
    except Exception as error:
        if not isinstance(error, EXPECTED) and type(error).__name__ not in EXPECTED_BY_NAME:
            raise
        raise ConfigError(_with_key(key, one_line(str(error)))) from error


def explain(error: Exception, config_name: str, words: Sequence[str] | None = None) -> str:
    """One line about a configuration error, with the key and the remedy.

    Args:
        words: the words that were composed; None for this process's command line.
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
        return f"{match[1]}: missing; keep this key, or give another value"
    if match := re.search(r"Error resolving interpolation '\$\{(\w+)\}'", text):
        return f"{match[1]}: choose one option of this group; --help {match[1]} shows them"
    if match := re.search(r"Could not override '([\w./@-]+)'", text):
        return no_such_key(match[1], config_name, argv)
    if isinstance(error, OverrideParseException) and (match := re.fullmatch(r"([\w./@+]+)=([^'\"]+)", error.override)):
        return f"{match[1]}: the value needs quotes for Hydra and for the shell; give {pasted(match[1], match[2])}"
    if match := re.match(r"Ambiguous value for argument '([\w./@+]+)=(.*)'\n", text):
        key, value = match[1], match[2]
        return (
            f"{key}={value}: several values; add -m to sweep over them, or give a list, '{key}=[{value}]', or a text, "
            + pasted(key, value)
        )
    return f"{one_line(str(error))} (the command line was: {' '.join(argv)})"


def _show(text: str) -> None:
    """Print a text; a pager can be closed before its end."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(text)


def _is_follower() -> bool:
    """Whether torchrun or SLURM started this process with a rank above 0. Only rank 0 has a run folder."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) > 0


def one_line(text: str) -> str:
    """The lines of a text, joined by semicolons."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def _with_key(key: str, text: str) -> str:
    return text if key in text else f"{key}: {text}"


def _remove_empty(folder: Path, since: float) -> None:
    """Remove the run's folder and the two above it, if they are empty and not older than the program."""
    for candidate in (folder, folder.parent, folder.parent.parent):
        if candidate == Path.cwd() or not candidate.is_dir() or candidate.stat().st_mtime < since:
            return
        try:
            candidate.rmdir()
        except OSError:  # not empty
            return
