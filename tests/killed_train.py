"""src.train, which kills itself at a chosen place: python -m tests.killed_train PLACE COUNT words…"""

import os
import signal
import sys
from pathlib import Path

from lightning_diffusion.training.callbacks import checkpoint, samples
from lightning_diffusion.training.loggers import csv as loggers
from src.train import main


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at(count, original, before=die, after=lambda: None):
    """`original`, but the call of that number ends the process, before or after."""
    calls = iter(range(1, 10**9))

    def call(*arguments, **options):
        last = next(calls) == count
        if last:
            before()
        result = original(*arguments, **options)
        if last:
            after()
        return result

    return call


def before_link(count):
    checkpoint.link = at(count, checkpoint.link)


def after_link(count):
    checkpoint.link = at(count, checkpoint.link, before=lambda: None, after=die)


def before_prune(count):
    checkpoint.LastCheckpoint._prune = at(count, checkpoint.LastCheckpoint._prune)


def before_rename(count):
    """Dies before a checkpoint is renamed from its temporary file in the same folder."""
    count, replace = iter(range(1, count + 1)), os.replace

    def call(source, target):
        if Path(target).name.startswith("step_") and Path(target).suffix == ".ckpt" and next(count, None) is None:
            die()
        replace(source, target)

    os.replace = call


def within_row(count):
    """Half a row is written."""
    original = loggers.CSVLogger._append

    def torn(self, row):
        text = loggers._csv(self._columns, [row], header=False)
        with self.path.open("a", newline="") as file:
            file.write(text[: len(text) // 2])
            file.flush()
        die()

    calls = iter(range(1, count))
    loggers.CSVLogger._append = lambda self, row: torn(self, row) if next(calls, None) is None else original(self, row)


def in_animation(count):
    """After the last step: what is kept of the run by then was saved before its pictures."""
    samples.write_gif = at(count, samples.write_gif)


if __name__ == "__main__":
    place, count = sys.argv[1:3]
    del sys.argv[1:3]
    globals()[place](int(count))
    main()
