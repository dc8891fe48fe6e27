"""Seconds from the command to the end of its first training step.

python -m benchmarks.start [--rounds 5] [--out FOLDER]

Needs:  nothing beyond this project.
Prints: the median, least and most seconds of src.train, and of importing torch and lightning.
Takes:  about two minutes.

Each measurement is a new process; a warm-up round fills the disk's caches.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import lightning as L

from benchmarks.turns import Table, in_turns, options

IMPORTS = {"import torch": "import torch", "import torch, lightning": "import torch, lightning"}
WORDS = [
    "callbacks=default",
    "logger=csv",
    "+callbacks.first._target_=benchmarks.start.FirstStep",
    "trust=[benchmarks]",
]


class FirstStep(L.Callback):
    """Ends the process after the first step."""

    def on_train_batch_end(self, *args: Any) -> None:
        os._exit(0)


def run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    given = options(__doc__, rounds=5)
    with tempfile.TemporaryDirectory() as folder:
        folders = (f"hydra.run.dir={folder}/{number}" for number in range(given.rounds + 1))
        cases = {name: lambda code=code: run("-c", code) for name, code in IMPORTS.items()}
        cases["python -m src.train"] = lambda: run("-m", "src.train", *WORDS, next(folders))
        seconds = in_turns(cases, given.rounds, warm_up=1)
    table = Table(
        "start", "until the first step is done", "seconds, median", "least", "most", drawn=["seconds, median"]
    )
    for name, values in seconds.items():
        table.add(name, statistics.median(values), min(values), max(values))
    table.write(given.out)


if __name__ == "__main__":
    main()
