"""From runs to one page."""

import os
from collections import Counter
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.cli import mistakes
from src.config import Mistake, Text, at_least, check
from src.reporting.page import write
from src.reporting.table import Comparison, compare
from src.runs import Run, find

SLOTS = {"runs": Text, "metric": str | None, "output_dir": Text | None, "num_pictures": int}
SHOWN = 10


def main(config: DictConfig) -> None:
    """Writes the report of the runs in a folder, and prints the best of them."""
    plain = check(config, SLOTS)
    at_least(plain, 1, "num_pictures")
    folder = Path(str(plain["runs"])).expanduser()
    runs = find(folder) if folder.is_dir() else []
    if not runs:
        raise Mistake(f"runs={plain['runs']}: no run in it; name a run's folder, or one that runs lie in")
    output_dir = Path(str(plain["output_dir"] or folder / "report")).expanduser()
    with mistakes(f"runs={plain['runs']}"):  # a file that was cut off, a folder that cannot be written
        table = compare(runs, _metric(plain["metric"], runs))
        write(table, folder, output_dir, plain["num_pictures"])
    console = Console(highlight=False)
    console.print(_best(table))
    console.print(f"{os.path.relpath(output_dir)}/report.html, report.csv, *.png", soft_wrap=True)


def _metric(asked: str | None, runs: list[Run]) -> str:
    """The one asked for, or else the one that most of the runs name."""
    measured = sorted({name for run in runs for name in run.metrics})
    named = Counter(run.config["metric"] for run in runs if "metric" in run.config)
    metric = asked or (named.most_common(1)[0][0] if named else "val/loss")
    if measured and metric not in measured:
        raise Mistake(f"metric={metric}: not measured in these runs; choose {', '.join(measured)}")
    return metric


def _best(table: Comparison) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", *table.keys, table.metric, "state"):
        shown.add_column(column, justify="right" if column == table.metric else "left")
    for run in table.runs[:SHOWN]:
        value = f"{run.metric(table.metric):.4g}" if run in table.done else "–"
        shown.add_row(run.folder.resolve().name, *table.values(run).values(), value, run.failure or run.state)
    if len(table.runs) > SHOWN:
        shown.add_row(f"… {len(table.runs) - SHOWN} more")
    return shown
