"""The amplification A of float32 rounding errors for each pair of schedule and prediction.

python -m benchmarks.rounding [--out FOLDER]

Needs:  nothing beyond this project.
Prints: the largest A over the clock of each pair; * marks those that training refuses, – those that do not exist.
Takes:  seconds.

docs/mathematics.md defines A. The schedules are those of conf/schedule, and chains of other lengths.
"""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.turns import Table, parser_of
from lightning_diffusion.app.cli import CONF
from lightning_diffusion.diffusion.discrete import DiscreteSchedule
from lightning_diffusion.diffusion.parameterization import Parameterization, PosteriorMean
from lightning_diffusion.diffusion.schedule import NoiseSchedule

WITHOUT_VALUES = {"custom"}  # its betas have no default
LENGTHS = {"linear": (*range(2, 23), 4000), "cosine": (4000,)}


def schedules() -> dict[str, NoiseSchedule]:
    found = {name: option("schedule", name) for name in names("schedule") if name not in WITHOUT_VALUES}
    lengths = [(name, T) for name, of_chain in LENGTHS.items() for T in of_chain]
    return found | {f"{name} schedule.T={T}": option("schedule", name, T=T) for name, T in lengths}


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def option(group: str, name: str, **values: int):  # type: ignore[no-untyped-def]
    return instantiate(OmegaConf.load(CONF / group / f"{name}.yaml"), **values)


def amplification(prediction: Parameterization, schedule: NoiseSchedule) -> str:
    """The largest A over the clock, with its mark."""
    if isinstance(prediction, PosteriorMean) and not isinstance(schedule, DiscreteSchedule):
        return "–"
    over_the_clock = prediction.amplification(schedule, schedule.clock())
    largest = float(over_the_clock.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
    try:
        prediction.check(schedule)
    except ValueError:
        return f"{largest:.2g} *"
    return f"{largest:.2g}"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, help="folder for the table as CSV")
    given = parser.parse_args()
    predictions = {name: option("parameterization", name) for name in names("parameterization")}
    table = Table("rounding", "schedule", *predictions)
    for name, schedule in schedules().items():
        table.add(name, *(amplification(prediction, schedule) for prediction in predictions.values()))
    table.write(given.out)


if __name__ == "__main__":
    main()
