"""Whether validation metrics rank the models of a sweep in the same order as a score of their samples.

python -m src.train -m schedule=linear,cosine,sigmoid seed=0,1,2
python -m benchmarks.ranking runs/sweeps/TIME [--score fd_classifier]

Needs:  a finished sweep whose runs have the score, and scipy.
Prints: the metrics of each run, and the rank correlation of each validation metric with the score.
Takes:  seconds.
"""

import math
from pathlib import Path

from benchmarks.turns import Table, parser_of
from lightning_diffusion.runs.comparable import BITS, LOSS
from lightning_diffusion.runs.run import find


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="folder of the sweep")
    parser.add_argument("--score", default="fd_classifier", help="score of samples, fd_classifier by default")
    given = parser.parse_args()
    from scipy.stats import spearmanr

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
