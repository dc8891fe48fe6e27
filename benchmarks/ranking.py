"""Whether the figures of validation rank models as their samples do.

python -m src.train -m schedule=linear,cosine,sigmoid seed=0,1,2
python -m benchmarks.ranking runs/sweeps/TIME [--score fd_classifier]
"""

import argparse
import math
from pathlib import Path

from scipy.stats import spearmanr

from benchmarks.turns import Table
from lightning_diffusion.runs.comparable import BITS, LOSS
from lightning_diffusion.runs.run import find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--score", default="fd_classifier", help="of samples, lower is better")
    given = parser.parse_args()
    names = (BITS, LOSS, given.score)
    runs = [run for run in find(given.folder) if not any(math.isnan(run.metric(name)) for name in names)]
    table = Table("ranking", "run", *names)
    for run in runs:
        table.add(" ".join(run.words), *(f"{run.metric(name):.4f}" for name in names))
    scores = [run.metric(given.score) for run in runs]
    for name in (BITS, LOSS):
        rank = spearmanr([run.metric(name) for run in runs], scores).statistic
        print(f"rank correlation of {name} and {given.score} over {len(runs)} runs: {rank:.2f}")


if __name__ == "__main__":
    main()
