"""From runs to one page."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from lightning_diffusion.app.cli import mistakes
from lightning_diffusion.configuration.arguments import Text, at_least, parse
from lightning_diffusion.configuration.errors import ConfigError
from lightning_diffusion.runs.comparable import BITS, LOSS, misled_by
from lightning_diffusion.runs.reporting.page import write
from lightning_diffusion.runs.reporting.table import Comparison, compare
from lightning_diffusion.runs.run import Run, find, relative
from lightning_diffusion.system.console import console, printable, table
from lightning_diffusion.system.progress import Phase

SHOWN, DAMAGED = 10, 30  # runs and damaged files that are listed


@dataclass(frozen=True)
class Arguments:
    """The keys of conf/report.yaml."""

    runs: Text
    metric: str | None
    output_dir: Text | None
    num_pictures: int


def main(config: DictConfig) -> None:
    """Writes the report of the runs in a folder, and prints the best of them and every damaged file."""
    arguments = parse(config, Arguments)
    at_least(1, num_pictures=arguments.num_pictures)
    folder = Path(str(arguments.runs)).expanduser()
    runs = find(folder) if folder.is_dir() else []
    if not runs:
        raise ConfigError(f"runs={arguments.runs}: no run in it; name a run's folder, or one that runs lie in")
    output_dir = Path(str(arguments.output_dir or folder / "report")).expanduser()
    with Phase(f"reading {len(runs)} runs"), mistakes(f"runs={arguments.runs}"):  # a folder that cannot be written
        comparison = compare(runs, _metric(arguments.metric, runs))
        damaged = write(comparison, folder, output_dir, arguments.num_pictures)
    terminal = console()
    terminal.print(_best(comparison))
    for note in comparison.notes:
        terminal.print(printable(note), soft_wrap=True)
    for path, reason in list(damaged.items())[:DAMAGED]:
        terminal.print(f"damaged: {printable(relative(path))}: {printable(reason)}", soft_wrap=True)
    if len(damaged) > DAMAGED:
        terminal.print(f"damaged: … {len(damaged) - DAMAGED} more files")
    terminal.print(f"{printable(os.path.relpath(output_dir))}/report.html, report.csv, *.png", soft_wrap=True)


def _metric(asked: str | None, runs: list[Run]) -> str:
    """The one asked for, or else the one that most of the runs name, if it can compare them."""
    measured = sorted({name for run in runs for name in run.metrics})
    if asked is not None and measured and asked not in measured:
        raise ConfigError(f"metric={asked}: not measured in these runs; choose {', '.join(map(printable, measured))}")
    named = Counter(metric for run in runs if isinstance(metric := run.config.get("metric"), str))
    usual = [metric for metric, _ in named.most_common()] + [BITS, LOSS]
    keys = compare(runs, usual[0]).keys
    comparing = [metric for metric in usual if not misled_by(metric, keys)]
    return asked or next((metric for metric in comparing + usual if metric in measured), usual[0])


def _best(runs: Comparison) -> Table:
    columns = [printable(column) for column in ("run", *runs.keys, runs.metric, "state")]
    shown = table(*columns, right=[printable(runs.metric)])
    for run in runs.runs[:SHOWN]:
        value = f"{run.metric(runs.metric):.4g}" if run in [*runs.done, *runs.apart] else "–"
        if run in runs.apart:
            value += f" (N = {run.counts.get(runs.metric, 'unknown')})"
        words = [run.folder.resolve().name, *runs.values(run).values(), value, run.reason or run.state]
        shown.add_row(*map(printable, words))
    if len(runs.runs) > SHOWN:
        shown.add_row(f"… {len(runs.runs) - SHOWN} more")
    return shown
