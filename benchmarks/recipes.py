"""Recipes compared after equal training time: each trains for as many steps as fit, then its samples are scored.

python -m benchmarks.recipes FOLDER SECONDS 'NAME: key=value …' … [-- key=value …]   # words after -- apply to all
python -m src.report runs=FOLDER                                                      # the table and the pictures

Needs:  Fashion-MNIST, or other data named by the words.
Prints: the command of each run of src.train, which writes to FOLDER/NAME, and its output.
Takes:  for each recipe SECONDS of training steps, besides timing, sampling and scoring.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.loop import BareLoop, configuration, module_of, random_batches
from benchmarks.turns import in_turns, parser_of
from lightning_diffusion.app.cli import CONF

COMMON = ["experiment=fashion_mnist", "logger=csv", "metric=fd_classifier", "callbacks.scores.share=null"]
WARM_UP, TIMED = 3, 9


def steps_within(seconds: float, words: list[str]) -> int:
    """The number of training steps that fit, estimated from the median time of a few steps on random images."""
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
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("seconds", type=float, help="of training steps for each recipe")
    parser.add_argument("recipes", metavar="RECIPE", nargs=argparse.REMAINDER, help="'NAME: key=value …'")
    given = parser.parse_args()
    middle = given.recipes.index("--") if "--" in given.recipes else len(given.recipes)
    common, folder = given.recipes[middle + 1 :], given.folder.resolve()
    runs = [words_of(recipe, given.seconds, common, folder) for recipe in given.recipes[:middle]]
    for run_dir, words in runs:
        print(f"{run_dir.name}: python -m src.train {' '.join(words)}", flush=True)
        subprocess.run([sys.executable, "-m", "src.train", *words], check=True, cwd=CONF.parent)


if __name__ == "__main__":
    main()
