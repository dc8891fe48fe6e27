"""Saves checkpoints until it is killed: python -m tests.training.save_forever FOLDER"""

import itertools
import sys
from pathlib import Path

from lightning_diffusion.system.files import link
from tests.training.test_durable import save

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for number in itertools.count(1):
        save(folder / f"step_{number}.ckpt", number, size=300_000)
        link(folder / "last.ckpt", folder / f"step_{number}.ckpt")
        if number > 2:
            (folder / f"step_{number - 2}.ckpt").unlink()
