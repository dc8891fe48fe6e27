"""Fair timings on a noisy machine: cases take turns, medians, ratios within a round; tables as text and CSV."""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lightning_diffusion.system.memory import keep_freed_memory


def in_turns(cases: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each case in each measured round. A temporary slowdown of the machine affects all cases equally."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(warm_up + rounds):
        for name, case in cases.items():
            began = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - began)
    return {name: values[warm_up:] for name, values in seconds.items()}


def speed_up(seconds: Mapping[str, Sequence[float]], of: str, over: str) -> float:
    """How many times faster `of` is than `over`, as the median over the rounds."""
    return statistics.median(slow / fast for slow, fast in zip(seconds[over], seconds[of], strict=True))


class Table:
    """Prints rows as Markdown when they are added; `write` saves them as CSV and as a bar plot.

    Args:
        name: of the files.
        columns: the first holds the name of each row.
        drawn: the columns to plot as bars.
    """

    def __init__(self, name: str, *columns: str, drawn: Sequence[str] = ()) -> None:
        self.name, self.columns, self.drawn, self.rows = name, columns, drawn, list[tuple[str, ...]]()
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, *cells: object) -> None:
        row = tuple(f"{cell:.3g}" if isinstance(cell, float) else f"{cell}" for cell in cells)
        self.rows.append(row)
        print(f"| {' | '.join(row)} |", flush=True)

    def write(self, folder: Path | None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{self.name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([self.columns, *self.rows])
            if self.drawn:
                self._figure().savefig(folder / f"{self.name}.png", dpi=120)

    def _figure(self) -> Figure:
        """The bar plot, with the first row at the top."""
        figure = Figure(figsize=(7, 1 + 0.4 * len(self.rows) * max(1, len(self.drawn) * 0.7)), layout="constrained")
        axes, height = figure.subplots(), 0.8 / len(self.drawn)
        for number, column in enumerate(self.drawn):
            values = [float(row[self.columns.index(column)]) for row in self.rows]
            places = [i + number * height for i in range(len(values))]
            axes.bar_label(axes.barh(places, values, 0.9 * height, label=column), padding=2, fontsize="small")
        middle = (len(self.drawn) - 1) * height / 2
        axes.set_yticks([i + middle for i in range(len(self.rows))], [row[0] for row in self.rows])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(xlabel=self.drawn[0] if len(self.drawn) == 1 else "", ylabel=self.columns[0])
        if len(self.drawn) > 1:
            figure.legend(loc="outside upper right", ncols=len(self.drawn), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help prints the module's docstring as it is."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def options(doc: str | None, rounds: int) -> argparse.Namespace:
    """The command line's precision, number of rounds and output folder. Freed memory is kept, as in src.train."""
    keep_freed_memory()
    parser = parser_of(doc)
    parser.add_argument("--bf16", action="store_true", help="run all networks in bfloat16 autocast")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"number of measured rounds; {rounds} by default")
    parser.add_argument("--out", type=Path, help="folder for the tables as CSV and as plots")
    return parser.parse_args()
