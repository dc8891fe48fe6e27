"""A run that another Python program starts and waits for, with its output shown as it appears."""

import os
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.runs.job import cause, started
from lightning_diffusion.runs.run import Run
from lightning_diffusion.system.files import write_text

ANNOUNCED = "LIGHTNING_DIFFUSION_ANNOUNCE"  # environment variable: the file into which the run writes its folder's path
KEPT = 200  # last lines of the output, which are searched for the cause of a failure
MULTIRUN = ("-m", "--multirun")
USAGE = 2  # exit status of a program after wrong arguments


def attend(words: Sequence[str]) -> Run:
    """Runs `python -m src.train WORDS` to its end and prints its output line by line.

    An interrupt is forwarded: the run saves a checkpoint, and KeyboardInterrupt is raised once it has ended.

    Raises:
        ConfigError: the program's one-line error.
        RuntimeError: the last line of a program that failed in another way.
    """
    if any(word in MULTIRUN for word in words):
        raise ConfigError("-m: a sweep has many runs; start it on the command line, python -m src.train -m …")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "run")
        process = started("train", words, **{ANNOUNCED: str(file)})
        with process:
            lines = _shown(process)
        announced = file.read_text() if file.is_file() else None
    if process.returncode != 0:
        kind = ConfigError if process.returncode == USAGE else RuntimeError
        raise kind(cause(process.returncode, lines))
    if announced is None:
        raise ConfigError(f"{' '.join(words)}: started no run")
    return Run(Path(announced))


def announce(folder: Path) -> None:
    """Writes the path of the run's folder for the program that attends it, if any."""
    if (file := os.environ.get(ANNOUNCED)) is not None:
        write_text(Path(file), str(folder.absolute()))


def _shown(process: "subprocess.Popen[str]") -> list[str]:
    """Prints the output to its end, even after an interrupt. Returns the last lines.

    A second interrupt ends the process at once, as a second Ctrl-C does.
    """
    assert process.stdout is not None
    lines: deque[str] = deque(maxlen=KEPT)
    interruption: KeyboardInterrupt | None = None
    while True:
        try:
            for line in process.stdout:
                lines.append(line)
                print(line, end="", flush=True)
            process.wait()
            break
        except KeyboardInterrupt as error:
            interruption = error
            process.send_signal(signal.SIGINT)
        except BaseException:
            process.terminate()
            raise
    if interruption is not None:
        raise interruption
    return list(lines)
