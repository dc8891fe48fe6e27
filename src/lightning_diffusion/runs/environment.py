"""The record of each start of a run: its command, code, libraries and machine."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lightning_diffusion.runs.run import ENVIRONMENT, relative
from lightning_diffusion.system.checkout import CHECKOUT
from lightning_diffusion.system.files import read_text, write_text, writing
from lightning_diffusion.system.quoting import for_shell

PACKAGE = "src/lightning_diffusion"
LIBRARIES = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "torch-fidelity", "wandb", "numpy")


def record(run_dir: Path) -> None:
    """Adds this start to the list in the run's environment.json. Raises NotWritten."""
    path = run_dir / ENVIRONMENT
    write_text(path, json.dumps([*_starts(path), environment()], indent=2) + "\n")


def _starts(path: Path) -> list[Any]:
    """The earlier starts. A damaged file is renamed and reported."""
    if not os.path.lexists(path):
        return []
    with contextlib.suppress(ValueError):  # Unreadable is one
        starts = json.loads(read_text(path))
        if isinstance(starts, list):
            return starts
    aside = path.with_name(f"{path.name}.damaged")
    print(f"{relative(path)}: damaged; renamed to {aside.name} and started a new file", file=sys.stderr)
    with writing(path):
        os.replace(path, aside)
    return []


def environment() -> dict[str, Any]:
    """A start: command, started, folder, git, python, installed libraries, host, system, processor, cores, devices."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "folder": str(Path.cwd()),
        "git": git(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name)) is not None},
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": devices or ["cpu"],
    }


def command() -> str:
    """The command line of this process, quoted for a shell."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    return " ".join(map(for_shell, [*program, *sys.argv[1:]]))


def git() -> dict[str, Any] | None:
    """The code's commit, and whether the code was changed since; None outside a checkout of this project."""
    if CHECKOUT is None:
        return None
    try:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", PACKAGE)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}


def _git(*words: str) -> str:
    command = ["git", "-C", str(CHECKOUT), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _version(library: str) -> str | None:
    """The version of a library; None if it is not installed, as wandb may be for runs without W&B."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
