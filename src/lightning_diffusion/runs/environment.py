"""What a run was started with: its exact words, the code, the libraries and the machine."""

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
    """Adds this start of the run to its environment.json, a list of them. Raises NotWritten."""
    path = run_dir / ENVIRONMENT
    write_text(path, json.dumps([*_starts(path), environment()], indent=2) + "\n")


def _starts(path: Path) -> list[Any]:
    """The starts before this one; a file that holds no list of them is kept beside it, and reported."""
    if not os.path.lexists(path):
        return []
    with contextlib.suppress(ValueError):  # Unreadable is one
        starts = json.loads(read_text(path))
        if isinstance(starts, list):
            return starts
    aside = path.with_name(f"{path.name}.damaged")
    print(f"{relative(path)}: damaged; kept as {aside.name}, and begun anew", file=sys.stderr)
    with writing(path):
        os.replace(path, aside)
    return []


def environment() -> dict[str, Any]:
    """command, started, folder; git; python, libraries that are installed; host, system, processor, cores, devices."""
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
    """What was typed, for a shell."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    return " ".join(map(for_shell, [*program, *sys.argv[1:]]))


def git() -> dict[str, Any] | None:
    """The code's commit, and whether it was changed since; None where it lies in no checkout of its own."""
    if CHECKOUT is None:
        return None
    try:
        commit, changes = _ask("rev-parse", "HEAD"), _ask("status", "--porcelain", PACKAGE)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}


def _ask(*words: str) -> str:
    asked = subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, timeout=10, check=True)
    return asked.stdout.strip()


def _version(library: str) -> str | None:
    """None where it is not installed: a run without W&B does without wandb."""
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
