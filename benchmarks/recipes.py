"""Recipes at equal seconds: each trains for as many steps as its own speed allows, then its samples are measured.

python -m benchmarks.recipes FOLDER SECONDS 'NAME: key=value …' … [-- key=value …]   # words after -- belong to all
python -m src.report runs=FOLDER                                                      # the table and the pictures

Each is one run of src.train, FOLDER/NAME; the seconds are those of its training steps.
"""

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.loop import BareLoop, configuration, module_of, random_batches
from benchmarks.turns import in_turns
from lightning_diffusion.app.cli import CONF

COMMON = ["experiment=fashion_mnist", "logger=csv", "metric=fd_classifier", "callbacks.scores.share=null"]
WARM_UP, TIMED = 3, 9


def steps_within(seconds: float, words: list[str]) -> int:
    """How many training steps as these words describe them fit, by the median time of some on random images."""
    arguments = configuration(words)
    loop = BareLoop(module_of(arguments), random_batches(arguments.data), arguments.trainer)
    taken = in_turns({"step": loop.step}, rounds=TIMED, warm_up=WARM_UP)["step"]
    return max(1, int(seconds / statistics.median(taken)))


def words_of(recipe: str, seconds: float, common: list[str], folder: Path) -> tuple[Path, list[str]]:
    name, _, own = recipe.partition(":")
    words = [*COMMON, *common, *own.split()]
    steps = steps_within(seconds, words)
    ends: dict[str, Any] = {"trainer.max_steps": steps, "trainer.val_check_interval": steps, "run_dir": folder / name}
    return folder / name, [*words, *(f"{key}={value}" for key, value in ends.items())]


def main() -> None:
    folder, seconds, *rest = sys.argv[1:]
    middle = rest.index("--") if "--" in rest else len(rest)
    for recipe in rest[:middle]:
        run_dir, words = words_of(recipe, float(seconds), rest[middle + 1 :], Path(folder).resolve())
        print(f"{run_dir.name}: python -m src.train {' '.join(words)}", flush=True)
        subprocess.run([sys.executable, "-m", "src.train", *words], check=True, cwd=CONF.parent)


if __name__ == "__main__":
    main()
