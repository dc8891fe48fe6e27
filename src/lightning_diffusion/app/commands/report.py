"""The report of several runs on one page."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from lightning_diffusion.app.cli import config_errors
from lightning_diffusion.app.output import show, table
from lightning_diffusion.configuration.arguments import Text, at_least, parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.runs.comparable import BITS, LOSS, misled_by
from lightning_diffusion.runs.reporting.page import write
from lightning_diffusion.runs.reporting.table import Comparison, compare
from lightning_diffusion.runs.run import Run, find, relative
from lightning_diffusion.system.console import printable
from lightning_diffusion.system.progress import Phase

SHOWN, DAMAGED = 10, 30  # the most runs and damaged files that are listed


@dataclass(frozen=True)
class Arguments:
    """The keys of conf/report.yaml."""

    runs: Text
    metric: str | None
    output_dir: Text | None
    num_pictures: int


def main(config: DictConfig) -> None:
    """Write the report of the runs in a folder, and print the best of them and the damaged files."""
    arguments = parse(config, Arguments)
    at_least(1, num_pictures=arguments.num_pictures)
    folder = Path(str(arguments.runs)).expanduser()
    runs = find(folder) if folder.is_dir() else []
    if not runs:
        raise ConfigError(f"runs={arguments.runs}: no run found; give a run's folder, or a folder of runs")
    output_dir = Path(str(arguments.output_dir or folder / "report")).expanduser()
    with Phase(f"reading {len(runs)} runs"), config_errors(f"runs={arguments.runs}"):  # a folder that cannot be written
        comparison = compare(runs, _metric(arguments.metric, runs))
        damaged = write(comparison, folder, output_dir, arguments.num_pictures)
    show(_best(comparison), *comparison.notes)
    show(*(f"damaged: {relative(path)}: {reason}" for path, reason in list(damaged.items())[:DAMAGED]))
    if len(damaged) > DAMAGED:
        show(f"damaged: … {len(damaged) - DAMAGED} more files")
    show(f"{os.path.relpath(output_dir)}/report.html, report.csv, *.png")


def _metric(wanted: str | None, runs: list[Run]) -> str:
    """The requested metric, or the one that most runs use, if it can compare them."""
    measured = sorted({name for run in runs for name in run.metrics})
    if wanted is not None and measured and wanted not in measured:
        raise ConfigError(f"metric={wanted}: not measured in these runs; choose {', '.join(map(printable, measured))}")
    named = Counter(metric for run in runs if isinstance(metric := run.config.get("metric"), str))
    usual = [metric for metric, _ in named.most_common()] + [BITS, LOSS]
    keys = compare(runs, usual[0]).keys
    comparing = [metric for metric in usual if not misled_by(metric, keys)]
    return wanted or next((metric for metric in comparing + usual if metric in measured), usual[0])


def _best(comparison: Comparison) -> Table:
    metric = comparison.metric
    best = table("run", *comparison.keys, metric, "state", right=[metric])
    for run in comparison.runs[:SHOWN]:
        value = f"{run.metric(metric):.4g}" if run in [*comparison.done, *comparison.apart] else "–"
        if run in comparison.apart:
            value += f" (N = {run.counts.get(metric, 'unknown')})"
        cells = [run.folder.resolve().name, *comparison.values(run).values(), value, run.reason or run.state]
        best.add_row(*map(printable, cells))
    if len(comparison.runs) > SHOWN:
        best.add_row(f"… {len(comparison.runs) - SHOWN} more")
    return best
